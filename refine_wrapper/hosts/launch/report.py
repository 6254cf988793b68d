"""How a process of a launched command says that it refined, which ``refine-wrapper run`` waits for.

Each report is one small file in the folder that ``run`` made and removes. Without ``run`` nothing is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

# The same as config_sources.LAUNCH_VARIABLE, which takes pydantic along.
_LAUNCH_VARIABLE = "REFINE_WRAPPER_LAUNCH"
_SUFFIX = ".refined.json"

_noted: set[tuple[int, str]] = set()


class Report(NamedTuple):
    """One process that refined.

    Attributes:
        host: Name of the adapter's host.
        process: Its process id.
        facts: What the adapter added.
    """

    host: str
    process: int
    facts: Mapping[str, Any]


def launch_settings() -> dict[str, Any] | None:
    """What ``refine-wrapper run`` left for the processes that it starts; None in any other process."""
    text = os.environ.get(_LAUNCH_VARIABLE)
    return json.loads(text) if text else None


def note_refined(host: str, **facts: Any) -> None:
    """Report that Stage 1 really ran in this process. Adapters call it once drafts were sampled and scored.

    Only the first call in a process writes, and only if ``refine-wrapper run`` started it. Never raises: a
    report that cannot be written must not end a training run.

    Args:
        host: Name of the adapter's host.
        facts: Anything that helps whoever reads the report, as JSON.
    """
    key = (os.getpid(), host)  # with the process, because a forked one inherits the set
    if key not in _noted:
        _noted.add(key)
        _write(
            f"{host}-{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}",
            json.dumps({"host": host, "process": os.getpid(), "facts": facts}, default=str),
        )


def mark(event: str) -> None:
    """Leave a trace of how far the hook got, for the message when nothing refined. Never raises."""
    _write(event, "")


def read_reports(folder: str) -> list[Report]:
    """All reports in a folder, by host and process."""
    reports: list[Report] = []
    for name in os.listdir(folder):
        if name.endswith(_SUFFIX):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                reports.append(Report(**json.load(file)))
    return sorted(reports, key=lambda report: (report.host, report.process))


def read_marks(folder: str) -> list[str]:
    """How far the hook got in any process, sorted."""
    return sorted(name for name in os.listdir(folder) if not name.endswith((_SUFFIX, ".tmp")))


def _write(name: str, text: str) -> None:
    try:
        settings = launch_settings()
        if settings is None:
            return
        path = os.path.join(settings["reports"], name)
        if os.path.exists(path):
            return
        partial = f"{path}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)  # atomic: a reader sees all of it or nothing
    except (OSError, ValueError, KeyError):
        # The folder is gone when a process outlives `run`, and it was never there on another machine.
        return
