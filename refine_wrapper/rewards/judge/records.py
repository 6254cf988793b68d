"""What the judge read and said, on disk: judge.jsonl, one line per judgement, where texts may be written."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.judge.failures import JudgeError
from refine_wrapper.rewards.judge.store import Reply
from refine_wrapper.settings.sources import resolve

try:
    import fcntl
except ImportError:  # Windows: an append of one line is not shared between processes there
    fcntl = None

FILE_NAME: Final = "judge.jsonl"
_log = logging.getLogger(__name__)


class Records:
    """Appends judgements to a file that several processes share. A disk that fails costs a warning, said once.

    Args:
        folder: Where the file goes. None: where the groups are traced, if that trace has texts, else nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder if folder is not None else _traced_texts()
        self._failed = False

    def write(
        self,
        key: str,
        request: Mapping[str, Any],
        reply: Reply | None,
        verdict: list[float] | JudgeError,
        order: Sequence[int],
        *,
        cached: bool,
    ) -> None:
        """Append one judgement. ``order`` says which completion of the group stood where in the prompt."""
        if self._folder is None or self._failed:
            return
        failed = isinstance(verdict, JudgeError)
        record = {
            "key": key,
            "time": round(time.time(), 3),
            "model": request["model"],
            "messages": request["messages"],
            "reply": None if reply is None else reply.text,
            "scores": None if failed else verdict,
            "failure": str(verdict) if failed else None,
            "order": list(order),
            "cached": cached,
        }
        line = (json.dumps(record, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                while line:
                    line = line[os.write(descriptor, line) :]
            finally:
                os.close(descriptor)  # releases the lock
        except OSError as error:
            self._failed = True
            _log.warning("refine: judge: %s cannot be written, and is left out: %s", FILE_NAME, error)


def _traced_texts() -> Path | None:
    # Only what flags, environment and file say is known here: a reward does not see the host's own configuration.
    try:
        config = resolve()
    except ConfigError:
        return None
    return config.trace_dir if config.trace_texts else None
