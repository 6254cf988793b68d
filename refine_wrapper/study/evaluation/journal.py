"""The folder of an evaluation: settings.json, answers.jsonl that grows batch by batch, evaluation.json at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from refine_wrapper.errors import ConfigError
from refine_wrapper.files import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there two processes in one folder are not kept apart
    fcntl = None

SETTINGS_FILE: Final = "settings.json"
ANSWERS_FILE: Final = "answers.jsonl"
RESULT_FILE: Final = "evaluation.json"


class Journal:
    """One evaluation on disk. Whole batches are appended, and a batch that a killed process left half is cut off.

    Args:
        folder: Made if missing.
        identity: All that decides the answers; nested mappings of plain values.
        fresh: Throw away what is there.

    Attributes:
        folder: Of the evaluation.
        records: The lines of answers.jsonl.
        identity: As it stands in settings.json.

    Raises:
        ConfigError: If the folder holds answers to other settings (with what differs), is in use, or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder = folder
        self.records: list[dict[str, Any]] = []
        self.identity: dict[str, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / ANSWERS_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"refine: {str(folder)!r} cannot be written: {error.strerror}.") from None
        try:
            self._lock()
            if fresh:
                for name in (SETTINGS_FILE, RESULT_FILE):
                    (folder / name).unlink(missing_ok=True)
                os.ftruncate(self._descriptor, 0)
            self.claim(identity)
            self._read()
        except BaseException:
            self.close()
            raise

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Write what decides the answers, or hold it against what the folder has; parts that are new are added.

        Raises:
            ConfigError: With what differs.
        """
        # Settings without answers are of a run that was refused before it sampled: they bind nobody.
        answered = os.fstat(self._descriptor).st_size > 0
        there = read_identity(self.folder) if answered or self.identity else None
        if there is None and answered:
            raise ConfigError(
                f"refine: {self.folder} has answers of unknown settings ({SETTINGS_FILE} is missing or broken). Give "
                "--out another folder, or --fresh to throw them away."
            )
        differences = _differences(there, identity) if there is not None else []
        if differences:
            raise ConfigError(
                f"refine: {self.folder} holds answers to other settings: {'; '.join(differences)}. Give --out another "
                "folder, or --fresh to throw these away."
            )
        self.identity = {**(there or {}), **identity}
        if self.identity != there:
            write_json(self.folder / SETTINGS_FILE, self.identity)

    @property
    def finished(self) -> bool:
        """Whether everything was sampled: the result is written last. (Somebody may have cut the answers since.)"""
        result = read_json(self.folder / RESULT_FILE)
        return result is not None and result.get("num_problems") == len(self.records)

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add a batch: all of its lines in one write, on disk when this returns."""
        lines = "".join(
            json.dumps(record, ensure_ascii=False, allow_nan=False, default=str) + "\n" for record in records
        )
        content = lines.encode("utf-8", errors="replace")
        os.lseek(self._descriptor, 0, os.SEEK_END)
        while content:
            content = content[os.write(self._descriptor, content) :]
        os.fsync(self._descriptor)
        self.records += [json.loads(line) for line in lines.split("\n") if line]

    def keep(self, ids_by_batch: Sequence[Sequence[str]]) -> int:
        """Keep the whole batches at the start of the file and cut off the rest; returns their number."""
        whole, kept = 0, 0
        for ids in ids_by_batch:
            part = self.records[kept : kept + len(ids)]
            if [(record.get("batch"), record.get("id")) for record in part] != [(whole, id_) for id_ in ids]:
                break
            whole, kept = whole + 1, kept + len(ids)
        os.ftruncate(self._descriptor, self._ends[kept - 1] if kept else 0)
        self.records = self.records[:kept]
        return whole

    def close(self) -> None:
        """Give the folder free."""
        os.close(self._descriptor)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"refine: another evaluation is writing to {self.folder}.") from None

    def _read(self) -> None:
        self._ends: list[int] = []
        end = 0
        # Bytes: a killed process may leave half a character, and texts may hold other line separators (U+2028).
        for line in (self.folder / ANSWERS_FILE).read_bytes().split(b"\n")[:-1]:  # what no line end follows is half
            end += len(line) + 1
            try:
                record: Any = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                break
            if not isinstance(record, dict):
                break
            self.records.append(cast("dict[str, Any]", record))
            self._ends.append(end)


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What the answers in a folder were sampled with, or None if there are none."""
    return read_json(folder / SETTINGS_FILE)


def _differences(there: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """``name: old there, new now`` for each value that differs, of the parts that both have."""
    found = [f"{path}.{name}: {there[name]!r} there, nothing now" for name in there if path and name not in now]
    for name, value in now.items():
        where = f"{path}.{name}" if path else name
        if name not in there:
            if path:
                found.append(f"{where}: nothing there, {value!r} now")
            continue
        old = there[name]
        if isinstance(value, Mapping) and isinstance(old, Mapping) and value and old:
            found += _differences(cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", value), where)
        elif json.dumps(old, sort_keys=True) != json.dumps(value, sort_keys=True, default=str):
            found.append(f"{where}: {old!r} there, {value!r} now")
    return found
