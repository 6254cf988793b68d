"""One wave of a batch's rounds, beside the host's own batch: sampled and scored by the host's own methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from refine_wrapper.core.batch import Wave
from refine_wrapper.core.planner import Planner
from refine_wrapper.core.types import Outcome, Sample, Use, for_one_row
from refine_wrapper_trl.guard import NOT_A_NUMBER, Guard
from refine_wrapper_trl.isolate import set_apart
from refine_wrapper_trl.rows import Asked, Generated, Logged, Rows, gather, merge_extra_fields
from refine_wrapper_trl.scoring import Scoring

HostGenerate = Callable[[list[Any]], Any]
"""The host's ``_generate``: prompts of this rank's rows -> a tuple of parts."""

Score = Callable[[Rows, list[Any], list[Any], list[list[int]]], torch.Tensor]
"""The host's ``_calculate_rewards``: rewards of all ranks' rows, by reward function."""


@dataclass(frozen=True)
class SampledWave:
    """A wave that was sampled and scored.

    Attributes:
        wave: Its rows, of all ranks.
        generated: What the host returned for this rank's rows.
        samples: Of all ranks' rows, in order.
        rewards: Of all ranks' rows, by reward function.
        logged: What the reward functions logged.
        metrics: What the host logged.
    """

    wave: Wave
    generated: Generated
    samples: list[Sample]
    rewards: torch.Tensor
    logged: Logged
    metrics: dict[str, list[float]]


class Waves:
    """Samples waves in one trainer.

    Args:
        trainer: The TRL trainer.
        planner: Reads rewards.
        scoring: Reads samples.

    Attributes:
        sampling_context: Whether the host samples rows at the moment that are never trained.
    """

    def __init__(self, trainer: Any, planner: Planner, scoring: Scoring) -> None:
        self._trainer = trainer
        self._planner = planner
        self._scoring = scoring
        self._guard = Guard(planner.config.draft_timeout)
        self.sampling_context = False

    def share(self, wave: Wave) -> Sequence[Any]:
        """This rank's rows of a wave."""
        accelerator = self._trainer.accelerator
        return wave.share(accelerator.process_index, accelerator.num_processes)

    def sample(
        self, wave: Wave, asked_P: Sequence[Asked], generate: HostGenerate, score: Score, policy_version: int
    ) -> SampledWave:
        """Sample and score this rank's rows; returns what all ranks' rows came to.

        Args:
            wave: The rows.
            asked_P: What the groups of the batch are asked.
            generate: The host's ``_generate`` below this package. Rows that are only looked at go through all of the
                trainer's overrides instead; those that are trained do later, with their batch.
            score: The host's ``_calculate_rewards``.
            policy_version: Optimizer step of the weights that sample.
        """
        trainer, share = self._trainer, self.share(wave)
        rows = [dict(asked_P[row.position].row) for row in share]
        questions = [for_one_row(asked_P[row.position].prompt) for row in share]
        failures: dict[int, tuple[Outcome, str]] = {}
        # The last rows of a batch decide nothing: a reward that fails for them is the host's own affair.
        functions = trainer.reward_funcs if wave.final else self._guard.guarded(trainer.reward_funcs, failures)
        changed = {group_size_name(trainer): wave.repeat, "reward_funcs": functions}
        logged = Logged()
        with set_apart(
            trainer,
            len(rows),
            _pending_extra_logs=logged.columns,
            _pending_metrics=logged.values,
            **changed,
        ) as metrics:
            generated = self._generate(wave, generate, [row.prompt for row in share])
            merge_extra_fields(rows, generated)
            rewards = score(rows, questions, generated.completions, generated.completion_ids)
        samples = self.samples(generated, rewards, failures, policy_version)
        return SampledWave(wave, generated, samples, rewards, logged, metrics)

    def samples(
        self,
        generated: Generated,
        rewards: torch.Tensor,
        failures: dict[int, tuple[Outcome, str]],
        policy_version: int,
    ) -> list[Sample]:
        """All ranks' rows as samples, in order, from this rank's rows and all ranks' rewards."""
        accelerator = self._trainer.accelerator
        totals = self._scoring.scalars(rewards)
        first = accelerator.process_index * len(generated.completion_ids)
        failed = {
            row: failure
            for row, failure in failures.items()
            if failure is not NOT_A_NUMBER or totals[first + row] is None
        }
        local = self._scoring.samples(generated, failed, policy_version)
        sampled = gather(local, accelerator.num_processes)
        return [self._planner.scored(sample, reward) for sample, reward in zip(sampled, totals, strict=True)]

    def _generate(self, wave: Wave, generate: HostGenerate, prompts: list[Any]) -> Generated:
        if any(row.planned.ask.use is not Use.CONTEXT for row in wave.rows):
            return Generated(generate(prompts))
        self.sampling_context = True
        try:
            return Generated(self._trainer._generate(prompts))
        finally:
            self.sampling_context = False


def group_size_name(trainer: Any) -> str:
    """The trainer's attribute that holds S in its present mode."""
    return "num_generations" if trainer.model.training else "num_generations_eval"
