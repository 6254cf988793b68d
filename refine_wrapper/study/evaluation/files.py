"""Rows of a problem file: JSON Lines, JSON, CSV, Parquet."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

from refine_wrapper.errors import ConfigError

Row = dict[str, Any]


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """The first rows of a file.

    Raises:
        ConfigError: If its kind is unknown or it cannot be read; naming the line where there is one.
    """
    read = SUFFIXES.get(path.suffix.lower())
    if read is None:
        raise ConfigError(f"refine: {path}: a problem file ends in {', '.join(SUFFIXES)}, not {path.suffix!r}.")
    try:
        return read(path, limit)
    except OSError as error:
        raise ConfigError(f"refine: {path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"refine: {path} is not UTF-8: {error}.") from None


def _json_lines(path: Path, limit: int | None) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(rows) >= limit:
                break
            if line.strip():
                rows.append(_row(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}"))
    return rows


def _json(path: Path, limit: int | None) -> list[Row]:
    content = _parsed(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(content, list):
        raise ConfigError(f"refine: {path} must hold a list of problems, not {type(content).__name__}.")
    listed = cast("list[Any]", content)[:limit]
    return [_row(value, f"{path}, problem {number}") for number, value in enumerate(listed, 1)]


def _csv(path: Path, limit: int | None) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows: list[Row] = []
        for number, row in enumerate(islice(csv.DictReader(file), limit), 1):
            if None in row or None in row.values():
                raise ConfigError(f"refine: {path}, row {number} has not as many fields as the first line.")
            rows.append(dict(row))
        return rows


def _parquet(path: Path, limit: int | None) -> list[Row]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ConfigError(f"refine: {path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        table: Any = parquet.read_table(path)
    except OSError:
        raise
    except Exception as error:  # pyarrow's own, which is not imported here
        raise ConfigError(f"refine: {path} is no Parquet file: {error}") from None
    return (table if limit is None else table.slice(0, limit)).to_pylist()


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"refine: {where} is not valid JSON: {error}.") from None


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, Mapping):
        raise ConfigError(f"refine: {where} must be an object with fields, not {type(value).__name__}.")
    return dict(cast("Mapping[str, Any]", value))


SUFFIXES: Final[Mapping[str, Callable[[Path, int | None], list[Row]]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""Ending of a file -> what reads it."""
