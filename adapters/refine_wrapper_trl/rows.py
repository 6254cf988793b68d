"""Rows of the host's batches: what its ``_generate`` returns for them, taken apart and put together again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object

Rows = list[dict[str, Any]]
"""Data set rows, one for each row of a batch."""


@dataclass(frozen=True)
class Asked:
    """What a group of a batch is asked.

    Attributes:
        prompt: q, as the host made it of the data set row.
        row: The data set row.
    """

    prompt: Any
    row: dict[str, Any]


@dataclass(frozen=True)
class Generated:
    """What the host's ``_generate`` returned for some of this rank's rows.

    Attributes:
        parts: The tuple; only its length varies with trainer and version. RLOO's has three parts.
    """

    parts: tuple[Any, ...]

    @property
    def prompt_ids(self) -> list[list[int]]:
        return self.parts[0]

    @property
    def completion_ids(self) -> list[list[int]]:
        return self.parts[1]

    @property
    def masks(self) -> list[Any]:
        """Per row, 1 for the policy's own tokens, 0 for what tools or an environment said; None: all are its own."""
        masks = self.parts[2] if len(self.parts) > 3 else None
        return [None] * len(self.completion_ids) if masks is None else masks

    @property
    def completions(self) -> list[Any]:
        return self.parts[2 if len(self.parts) == 3 else 3]


@dataclass(frozen=True)
class Logged:
    """What reward functions logged beside rewards.

    Attributes:
        columns: By ``log_extra``: column -> a value for each of this rank's rows.
        values: By ``log_metric``: name -> values.
    """

    columns: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


Record = tuple[list[Any], dict[str, Any]]
"""What was generated and logged for one row, to be sent to another rank."""


def record(generated: Generated, logged: Logged, row: int) -> Record:
    """The record of one of this rank's rows."""
    count = len(generated.completion_ids)
    columns = {column: values[row] for column, values in logged.columns.items() if len(values) == count}
    return [_of_row(part, row) for part in generated.parts], columns


def assemble(
    template: Generated, records: Sequence[Record], values: dict[str, list[float]]
) -> tuple[Generated, Logged]:
    """What the host's ``_generate`` would have returned for these rows, and what was logged for them.

    Args:
        template: From the same host: what does not belong to single rows is taken from it.
        records: One for each row.
        values: What was logged by ``log_metric``.
    """
    parts = tuple(_of_rows(part, [parts[i] for parts, _ in records]) for i, part in enumerate(template.parts))
    logged = Logged(values=values)
    for column in dict.fromkeys(column for _, columns in records for column in columns):
        logged.columns[column] = [columns.get(column) for _, columns in records]
    return Generated(parts), logged


def joined(values: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """What several calls logged by ``log_metric``."""
    together: dict[str, list[float]] = defaultdict(list)
    for one in values:
        for name, numbers in one.items():
            together[name].extend(numbers)
    return together


def gather(objects: list[Any], num_ranks: int) -> list[Any]:
    """All ranks' objects, by rank."""
    return gather_object(objects) if num_ranks > 1 else objects


def merge_extra_fields(inputs: Rows, generated: Generated) -> None:
    """What a user's rollout_func returns beside tokens is reward input, as in the host's own scoring."""
    for extra_fields in generated.parts:
        if isinstance(extra_fields, dict):
            for name, values in extra_fields.items():
                of_rows = values if isinstance(values, list) else [values] * len(inputs)
                for row, value in zip(inputs, of_rows, strict=False):
                    row[name] = value


def needs_images(row: dict[str, Any]) -> bool:
    """Whether a data set row has images."""
    return bool(row.get("image") or row.get("images")) or has_images(row["prompt"])


def has_images(prompt: Any) -> bool:
    """Whether a prompt has images in it."""
    return not isinstance(prompt, str) and any(
        isinstance(turn.get("content"), list) and any(part.get("type") == "image" for part in turn["content"])
        for turn in prompt
    )


def _of_row(part: Any, row: int) -> Any:
    """One row's share of a part, which is a list by row, a mapping of such, None, empty, or of the whole batch."""
    if isinstance(part, dict):
        return {name: values[row] for name, values in part.items() if isinstance(values, list) and row < len(values)}
    return part[row] if isinstance(part, list) and part else None


def _of_rows(template: Any, values: Sequence[Any]) -> Any:
    """A part for some rows, from each row's share of it."""
    if isinstance(template, dict):
        names = dict.fromkeys(name for value in values for name in value or ())
        whole = {name: part for name, part in template.items() if not isinstance(part, list)}
        return {**whole, **{name: [(value or {}).get(name) for value in values] for name in names}}
    if template is not None and not isinstance(template, list):
        return template  # of the whole batch
    if any(value is not None for value in values):
        return list(values)
    return [] if isinstance(template, list) else None
