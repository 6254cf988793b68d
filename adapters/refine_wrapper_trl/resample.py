"""Dynamic sampling in TRL's trainers: groups without a gradient are generated and scored again, and merged by rows.

It stands where Stage 1 does, between the host and its ``_generate``: what the host then pads, masks, compares with the
reference policy, normalises, logs and trains is one batch of the usual size, in which some rows were sampled later.
Which groups, how often and on which prompts, the core decides (:mod:`refine_wrapper.core.resampling`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset

from refine_wrapper.core.resampling import Candidate, Resampling, placed
from refine_wrapper.core.types import for_one_row
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_trl.isolate import replaced, set_apart
from refine_wrapper_trl.rows import Drawn, Group, gather, needs_images, put_records, record

DrawGroups = Callable[[list[Group], list[str]], Drawn]
"""Samples and scores groups, (prompt and row, id) of each, as if they were a batch."""


class Resampler:
    """Dynamic sampling of one trainer.

    Args:
        trainer: The TRL trainer.
        config: The resolved settings.
        rounds: Most rounds a batch.
    """

    def __init__(self, trainer: Any, config: RefineConfig, rounds: int) -> None:
        self._trainer = trainer
        self._config = config
        self._rounds = rounds
        self._pool = _pool(trainer) if config.dynamic_sampling_prompts == "new" else None

    def describe(self) -> str:
        """One sentence for the screen."""
        on = "other prompts of the data set" if self._pool is not None else "their own prompts"
        if self._pool is None and self._config.dynamic_sampling_prompts == "new":
            on += " (the data set is a stream)"
        times = "once" if self._rounds == 1 else f"{self._rounds} times"
        return f"dynamic sampling: groups without a gradient are drawn again on {on}, at most {times} a batch"

    def complete(self, drawn: Drawn, draw: DrawGroups) -> dict[str, float]:
        """Draw groups of a scored batch again, and merge into it those that have a gradient; returns the metrics."""
        trainer = self._trainer
        num_ranks, group_size = trainer.accelerator.num_processes, trainer.num_generations
        # Images are put into prompts by the host, before it generates: rows with them keep their prompts.
        pool = None if any(needs_images(row) for _, row in drawn.groups_P) else self._pool
        resampling = Resampling(
            [plan.group_id for plan in drawn.plans_P],
            drawn.active_P,
            limit=self._rounds,
            seed=self._config.seed,
            num_prompts=None if pool is None else len(pool),
            group_size=group_size,
            num_ranks=num_ranks,
        )
        completions = 0
        while candidates := resampling.candidates():
            groups = [self._group(candidate, drawn, pool) for candidate in candidates]
            with set_apart(trainer, len(candidates) * group_size // num_ranks):
                other = draw(groups, [candidate.group_id for candidate in candidates])
            completions += sum(group_size + len(plan.drafts_N) for plan in other.plans_P)
            self._merge(drawn, other, resampling.replace(other.active_P))
        return resampling.metrics(completions=completions)

    def _group(self, candidate: Candidate, drawn: Drawn, pool: Any) -> Group:
        if candidate.prompt_index is None:
            return drawn.groups_P[candidate.position]
        row = dict(pool[candidate.prompt_index])
        return row["prompt"], row

    def _merge(self, drawn: Drawn, other: Drawn, taken: dict[int, int]) -> None:
        """Put groups of one draw in the place of groups of the batch: what all ranks know, and this rank's rows."""
        accelerator, group_size = self._trainer.accelerator, self._trainer.num_generations
        for name, values in other.values.items():
            drawn.values[name].extend(values)
        used = set(taken.values())
        other_first = accelerator.process_index * len(other.rows)
        records = gather(
            [
                record(other, row) if (other_first + row) // group_size in used else None
                for row in range(len(other.rows))
            ],
            accelerator.num_processes,
        )
        drawn.spare += [replace(o, replaced=True) for c, o in enumerate(other.outcomes_P) if c not in used]
        rewards, others_rewards = drawn.rewards_of_rows.clone(), other.rewards_of_rows
        for position, number in taken.items():
            if drawn.outcomes_P:
                drawn.spare.append(replace(drawn.outcomes_P[position], replaced=True))
                drawn.outcomes_P[position] = other.outcomes_P[number]
            drawn.groups_P[position] = other.groups_P[number]
            drawn.plans_P[position] = other.plans_P[number]
            drawn.active_P[position] = True
            own, new = (slice(p * group_size, (p + 1) * group_size) for p in (position, number))
            rewards[own] = others_rewards[new]
        drawn.rewards = rewards
        first = accelerator.process_index * len(drawn.rows)
        moved = dict(placed(group_size, taken, first, len(drawn.rows)))
        for row, source in moved.items():
            prompt, of_data_set = other.groups_P[source // group_size]
            planned = other.plans_P[source // group_size].row()
            drawn.rows[row], drawn.prompts[row] = dict(of_data_set), for_one_row(prompt)
            drawn.refined[row] = planned.prompt if planned.refined else drawn.prompts[row]
        put_records(drawn, {row: records[source] for row, source in moved.items()})
        drawn.changed = drawn.changed or bool(taken)


Metrics = dict[str, list[float]]


def metrics_so_far(trainer: Any) -> Metrics:
    """A copy of what the host has in store to be logged."""
    return {name: list(values) for name, values in trainer._metrics["train"].items()}


def count_once(trainer: Any, drawn: Drawn, before: Metrics, host_generate: Callable[[list[Any]], Any]) -> None:
    """Have the host's metrics of generation speak of the batch as merged, and num_tokens of all that was generated.

    Args:
        trainer: The TRL trainer.
        drawn: The batch as merged.
        before: :func:`metrics_so_far` before the batch was generated.
        host_generate: The host's ``_generate``. It logs lengths of what it returns and offers no other way to log them,
            so it is run once more, on what was sampled already.
    """
    metrics, tokens = trainer._metrics["train"], trainer.state.num_input_tokens_seen
    if drawn.changed:
        first = {name: values[len(before.get(name, ())) :] for name, values in metrics.items()}
        metrics.clear()
        metrics.update(before)
        with _serving(trainer, drawn):
            again = host_generate(drawn.refined)
        # By row it is what was sampled. What speaks of the whole batch (TRL 1.0: its number of tokens) is counted anew.
        drawn.generated = tuple(
            new if isinstance(new, torch.Tensor) else own for own, new in zip(drawn.generated, again, strict=True)
        )
        for name, values in first.items():
            if name not in before and name not in metrics:
                metrics[name].extend(values)  # calls of tools: those of the first draw
        trainer.state.num_input_tokens_seen = tokens
    metrics["num_tokens"] = [tokens]


@contextmanager
def _serving(trainer: Any, drawn: Drawn) -> Generator[None]:
    """Answer the host's next ``_generate`` with what was sampled: no model, no tool and no rollout_func is called."""
    generated = drawn.generated
    if len(generated) == 3:  # RLOO, which has no rollout_func
        with replaced(trainer, "_generate_single_turn", lambda *_, **__: generated[1]):
            yield
        return
    masks = {} if generated[2] is None else {"env_mask": generated[2]}
    sampled = {"prompt_ids": generated[0], "completion_ids": generated[1], "logprobs": None, **masks}
    with replaced(trainer, "rollout_func", lambda *_: sampled), replaced(trainer, "tools", None):
        yield


def _pool(trainer: Any) -> Any:
    """The rows that new prompts are drawn from, with the columns that the host's loader leaves; None for a stream."""
    rows = trainer.train_dataset
    if not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")):
        return None
    return trainer._remove_unused_columns(rows, description="training") if isinstance(rows, Dataset) else rows
