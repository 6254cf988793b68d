"""Rows of the host's batches: what its ``_generate`` returns for them, taken apart and put together again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object

from refine_wrapper.core.batch import BatchStages
from refine_wrapper.core.types import GroupOutcome, GroupPlan

Group = tuple[Any, dict[str, Any]]
"""Prompt and data set row of a group: column "prompt" is what the data set has, the prompt what the host made of it."""


@dataclass
class Drawn:
    """One draw of a batch, or of groups that may take the place of some of its: sampled, perhaps scored.

    Attributes:
        groups_P: Prompt and row of every group, over all ranks.
        stages: Both stages of these groups.
        plans_P: Their plans.
        rows: Data set rows, of this rank's rows; so are the next ones.
        prompts: q.
        refined: q', and q where a row stays plain.
        generated: What the host's ``_generate`` returned.
        rewards: Of all ranks' rows, by reward function; None before they are scored.
        active_P: Which groups have a gradient.
        outcomes_P: The finished groups; empty where nothing is refined, so that nobody observes them.
        changed: Whether groups of another draw took the place of some.
        spare: Finished groups that are not trained.
        extra: What reward functions logged by ``log_extra``, by column, one value for each of this rank's rows.
        values: What they logged by ``log_metric``.
    """

    groups_P: list[Group]
    stages: BatchStages
    plans_P: list[GroupPlan]
    rows: list[dict[str, Any]]
    prompts: list[Any]
    refined: list[Any]
    generated: Any = ()
    rewards: torch.Tensor | None = None
    active_P: list[bool] = field(default_factory=list[bool])
    outcomes_P: list[GroupOutcome] = field(default_factory=list[GroupOutcome])
    changed: bool = False
    spare: list[GroupOutcome] = field(default_factory=list[GroupOutcome])
    extra: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def rewards_of_rows(self) -> torch.Tensor:
        assert self.rewards is not None, "not scored yet"
        return self.rewards

    @property
    def completion_ids(self) -> list[list[int]]:
        return self.generated[1]

    @property
    def completions(self) -> list[Any]:
        return self.generated[2 if len(self.generated) == 3 else 3]


def record(drawn: Drawn, row: int) -> tuple[list[Any], dict[str, Any]]:
    """What was generated and logged for one of this rank's rows, to be sent to another rank."""
    generated = [_of_row(part, row) for part in drawn.generated]
    return generated, {column: values[row] for column, values in drawn.extra.items() if len(values) == len(drawn.rows)}


def put_records(drawn: Drawn, records: Mapping[int, tuple[list[Any], dict[str, Any]]]) -> None:
    """Put what was generated and logged for other rows in the place of some of this rank's rows."""
    count = len(drawn.rows)
    drawn.generated = tuple(
        _with_rows(part, count, {row: generated[i] for row, (generated, _) in records.items()})
        for i, part in enumerate(drawn.generated)
    )
    for column, values in drawn.extra.items():
        if len(values) == count:
            logged = {row: extra.get(column) for row, (_, extra) in records.items()}
            drawn.extra[column] = _with_rows(values, count, logged)


def gather(objects: list[Any], num_ranks: int) -> list[Any]:
    """All ranks' objects, by rank."""
    return gather_object(objects) if num_ranks > 1 else objects


def masks_of(generated: Any) -> list[Any]:
    """Per row, 1 for the policy's own tokens, 0 for what tools or an environment said; None where all are its own."""
    masks = generated[2] if len(generated) > 3 else None
    return [None] * len(generated[1]) if masks is None else masks


def merge_extra_fields(inputs: Sequence[dict[str, Any]], generated: Sequence[Any]) -> None:
    """What a user's rollout_func returns beside tokens is reward input, as in the host's own scoring."""
    for extra_fields in generated:
        if isinstance(extra_fields, dict):
            for name, values in extra_fields.items():
                for row, value in zip(
                    inputs, values if isinstance(values, list) else [values] * len(inputs), strict=False
                ):
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


def _with_rows(part: Any, count: int, values: Mapping[int, Any]) -> Any:
    if isinstance(part, dict):
        names = dict.fromkeys([*part, *(name for value in values.values() for name in value or ())])
        return {
            name: _with_rows(part.get(name), count, {row: (value or {}).get(name) for row, value in values.items()})
            for name in names
        }
    if isinstance(part, list) and part:
        return [values.get(row, own) for row, own in enumerate(part)]
    if (part is None or isinstance(part, list)) and any(value is not None for value in values.values()):
        return [values.get(row) for row in range(count)]  # images, say, of which this rank had none
    return part
