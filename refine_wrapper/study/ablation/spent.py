"""What a cell spent: completions and generated tokens, step by step.

A refined cell's trace counts them exactly. A plain cell has no trace: its completions are prompts x G, its tokens those
times the mean length that the host logs; the prompts per step are those of the plan, or of a refined cell of the same
command, whose number ``match_budget`` keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from refine_wrapper.core.trace import FILE_NAME, read_trace
from refine_wrapper.errors import RefineError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.study.ablation.cell import Cell
from refine_wrapper.study.ablation.events import Value, named, read_scalars
from refine_wrapper.study.ablation.plan import launch_of

_LENGTH: Final = "completion_length"


class SpentError(RefineError, RuntimeError):
    """What was spent cannot be told."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one step.

    Attributes:
        prompts: Groups, without those that dynamic sampling drew besides.
        completions: Samples of all rounds of all groups.
        tokens: Generated for them.
    """

    prompts: float
    completions: float
    tokens: float


def refined_spent(trace: Path) -> dict[int, Spent]:
    """Step -> what it spent, from a trace; empty if there is none."""
    totals: dict[int, list[int]] = {}
    if not (trace / FILE_NAME).exists():
        return {}
    # A run that died and was resumed samples some groups once more: what came later counts.
    for group in {group["group_id"]: group for group in read_trace(trace)}.values():
        purpose, _, _, attempt = group["id"]
        if purpose != "train":
            continue
        total = totals.setdefault(int(group["step"] or 0), [0, 0, 0])
        total[0] += attempt == 0
        total[1] += len(group["samples"])
        total[2] += sum(sample["num_tokens"] for sample in group["samples"])
    return {step: Spent(*total) for step, total in totals.items()}


def prompts_per_step(spent: dict[int, Spent], steps: int) -> float | None:
    """Mean over all optimizer steps, also where one batch of groups serves several of them."""
    return sum(one.prompts for one in spent.values()) / steps if spent and steps else None


def prompts_of(cell: Cell, folder: Path) -> float | None:
    """Prompts per optimizer step of a refined cell, by its trace and its log; None where one of them is missing."""
    logged = named(read_scalars(folder / "tensorboard"), launch_of(cell.host, Plugins(cell.plugin_modules)))
    steps = len({value.step for values in logged.values() for value in values})
    return prompts_per_step(refined_spent(folder / "trace"), steps)


def plain_spent(logged: Mapping[str, list[Value]], prompts: float, completions: int) -> dict[int, Spent]:
    """Step -> what it spent, from what the host logged.

    Args:
        logged: The host's metrics; completions that dynamic sampling drew besides are among them.
        prompts: Per step.
        completions: Per prompt.
    """
    extra = {value.step: value.value for value in logged.get("refine/resampled_completions", [])}
    counts = {value.step: prompts * completions + extra.get(value.step, 0.0) for value in logged.get(_LENGTH, [])}
    return {v.step: Spent(prompts, counts[v.step], counts[v.step] * v.value) for v in logged.get(_LENGTH, [])}


def first_step(logged: Mapping[str, list[Value]]) -> int:
    """The first step that a host logged."""
    return min((values[0].step for values in logged.values() if values), default=0)


def matched_steps(cell: Cell, plain: Path, pilot: Path) -> int:
    """Steps in which a refined cell generates as many tokens as its plain cell did.

    Args:
        cell: The refined cell.
        plain: Folder of the finished plain cell.
        pilot: Folder of the refined cell's pilot.

    Raises:
        SpentError: If the plain cell or the pilot did not leave what that takes.
    """
    launch = launch_of(cell.host, Plugins(cell.plugin_modules))
    logged = named(read_scalars(plain / "tensorboard"), launch)
    spent = refined_spent(pilot / "trace")
    prompts = cell.prompts or prompts_per_step(spent, cell.pilot_steps)
    if _LENGTH not in logged or prompts is None:
        missing = (
            f"{plain / 'tensorboard'} has no completion lengths" if _LENGTH not in logged else "the pilot left no trace"
        )
        raise SpentError(f"refine: match: tokens cannot count the tokens of {cell.name}: {missing}.")
    budget = sum(one.tokens for one in plain_spent(logged, prompts, cell.completions).values())
    per_step = sum(one.tokens for one in spent.values()) / cell.pilot_steps
    return max(1, round(budget / per_step))
