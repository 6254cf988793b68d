"""Draws a batch: wave after wave of its groups' rounds, and from them the rows that the host trains."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import trl
from packaging.version import Version

from refine_wrapper.core.batch import BatchRounds, Wave
from refine_wrapper.core.planner import Planner
from refine_wrapper.core.types import Group, GroupId, Progress, Purpose, Question, Sample
from refine_wrapper.hosts.start import trains_on_question
from refine_wrapper_trl.ahead import Prefetched, prefetched
from refine_wrapper_trl.isolate import replaced
from refine_wrapper_trl.phases import Opened, OwnRows, Sampled, Scored, prompt_of_slot
from refine_wrapper_trl.rows import (
    Asked,
    Generated,
    Logged,
    Record,
    Rows,
    assemble,
    gather,
    joined,
    merge_extra_fields,
    record,
)
from refine_wrapper_trl.waves import HostGenerate, SampledWave, Score, Waves, group_size_name

SAMPLER_LOGPROBS_MAY_MISS = Version(trl.__version__) >= Version("1.16")
"""Whether sampler log-probabilities of a row may be None: its ratio is then 1, and metrics leave it out."""

_LOGPROBS = 4
"""Which part of what GRPO's ``_generate`` returns has them, where they may be None."""


class Drawing:
    """Draws the batches of one trainer.

    Args:
        trainer: The TRL trainer.
        planner: Decides.
        waves: Samples.
    """

    def __init__(self, trainer: Any, planner: Planner, waves: Waves) -> None:
        self._trainer = trainer
        self._planner = planner
        self._waves = waves
        self._groups_of_step = (-1, 0)
        self._on_question = trains_on_question(planner.config, planner.plugins)

    @property
    def num_slots(self) -> int:
        """S."""
        return getattr(self._trainer, group_size_name(self._trainer))

    def asked(self, rows: Rows, prompts: list[Any]) -> list[Asked]:
        """The groups of a batch, over all ranks, from this rank's rows."""
        accelerator = self._trainer.accelerator
        first_row = accelerator.process_index * len(prompts)
        # A group's rows are adjacent and may straddle ranks; the rank that has its first row speaks for it.
        starts = [row for row in range(len(prompts)) if (first_row + row) % self.num_slots == 0]
        return gather([Asked(prompts[row], rows[row]) for row in starts], accelerator.num_processes)

    def open(self, loaded: Rows, asked_P: list[Asked], group_ids_P: Sequence[GroupId] | None = None) -> Opened:
        """Plan the first wave of a batch."""
        trainer, state = self._trainer, self._trainer.state
        ids = self._group_ids(len(asked_P)) if group_ids_P is None else group_ids_P
        questions_P = [
            Question(group_id, asked.prompt, {name: value for name, value in asked.row.items() if name != "prompt"})
            for group_id, asked in zip(ids, asked_P, strict=True)
        ]
        progress = Progress(int(state.global_step), int(state.max_steps) if state.max_steps else None)
        ranks = trainer.accelerator.num_processes
        rounds = BatchRounds(self._planner, questions_P, self.num_slots, progress, ranks)
        return Opened(loaded, asked_P, rounds, rounds.next_wave())

    def draw(
        self,
        opened: Opened,
        own: OwnRows,
        generate: HostGenerate,
        score: Score,
        *,
        last: HostGenerate | None = None,
        ahead: Prefetched | None = None,
    ) -> Sampled | Scored:
        """Sample a batch.

        Args:
            opened: The batch.
            own: This rank's rows of it.
            generate: The host's ``_generate``.
            score: The host's ``_calculate_rewards``.
            last: Stands for ``generate`` for a last wave that is the host's own batch.
            ahead: What was sampled before for its first wave.

        Returns:
            A batch that is not scored, where its last wave is the host's own batch.
        """
        rounds, wave, sampled = opened.rounds, opened.wave, list[SampledWave]()
        while wave is not None:
            if self._is_host_batch(wave, opened):
                prompts = [
                    row.prompt if row.planned.ask.show is not None else question
                    for row, question in zip(self._waves.share(wave), own.prompts, strict=True)
                ]
                generated = Generated((last or generate)(prompts))
                return Sampled(opened, own, prompts, generated, tuple(sampled))
            with prefetched(self._trainer, ahead) if ahead else nullcontext():
                version = ahead.policy_version if ahead else self._step
                sampled.append(self._waves.sample(wave, opened.asked_P, generate, score, version))
            ahead = None
            rounds.add(sampled[-1].samples)
            wave = rounds.next_wave()
        return self._merge(opened, own, sampled)

    def score(self, sampled: Sampled, score: Score) -> Scored:
        """Have the host score a batch before it asks for it, and keep what reward functions log until then."""
        trainer, logged, own = self._trainer, Logged(), sampled.own
        merge_extra_fields(own.data, sampled.generated)
        with (
            replaced(trainer, "_pending_extra_logs", logged.columns),
            replaced(trainer, "_pending_metrics", logged.values),
        ):
            generated = sampled.generated
            rewards = score(own.data, list(own.prompts), generated.completions, generated.completion_ids)
        return self.finish(sampled, rewards, logged)

    def finish(self, sampled: Sampled, rewards: torch.Tensor, logged: Logged | None = None) -> Scored:
        """The batch with its rewards."""
        rounds = sampled.opened.rounds
        samples = self._waves.samples(sampled.generated, rewards, {}, self._step)
        rounds.add(samples)
        rounds.next_wave()  # tells each group that it has ended
        return self._under_question(
            Scored(
                asked_P=list(sampled.opened.asked_P),
                groups_P=rounds.groups_P(step=self._step),
                own=sampled.own,
                trained_on=sampled.sampled_on,
                generated=sampled.generated,
                rewards=rewards,
                logged=logged or Logged(),
            ),
            sampled.earlier,
        )

    def decides_prompts(self) -> bool:
        """Whether rewards decide which prompt rows are trained under: they must be known when ``_generate`` returns."""
        return self._on_question

    def rescored(self, scored: Scored, rewards: torch.Tensor, completion_ids: list[list[int]]) -> Scored:
        """The batch with other rewards: an override of ``_generate`` outside of this package changed completions."""
        parts = list(scored.generated.parts)
        parts[1] = completion_ids
        fresh = self._waves.samples(Generated(tuple(parts)), rewards, {}, self._step)
        groups = [
            _with_rows(group, fresh[number * self.num_slots : (number + 1) * self.num_slots])
            for number, group in enumerate(scored.groups_P)
        ]
        return replace(scored, rewards=rewards, groups_P=groups, logged=Logged())

    @property
    def _step(self) -> int:
        return int(self._trainer.state.global_step)

    def _is_host_batch(self, wave: Wave, opened: Opened) -> bool:
        """Whether a wave is the host's own batch: all rows of all groups, and nothing after it."""
        return wave.final and len(wave.rows) == len(opened.asked_P) * self.num_slots

    def _merge(self, opened: Opened, own: OwnRows, waves: list[SampledWave]) -> Scored:
        """The batch from waves that filled its slots."""
        accelerator, groups = self._trainer.accelerator, opened.rounds.groups_P(step=self._step)
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for number, sampled in enumerate(waves):
            places: dict[int, int] = {}
            for at, row in enumerate(sampled.wave.rows):
                if not row.padding:
                    place = places.setdefault(row.position, 0)
                    places[row.position] += 1
                    found[row.position, row.planned.first_index + place] = number, at
        sources = [found[position, slot.sample] for position, g in enumerate(groups) for slot in g.slots_S]
        first = accelerator.process_index * len(own.prompts)
        records = self._exchange(waves, sources, range(first, first + len(own.prompts)))
        trained = [waves[number] for number in sorted({number for number, _ in sources})]
        values = joined([sampled.logged.values for sampled in trained])
        generated, logged = assemble(trained[0].generated, records, values)
        return self._under_question(
            Scored(
                asked_P=list(opened.asked_P),
                groups_P=groups,
                own=own,
                trained_on=[
                    prompt_of_slot(groups[row // self.num_slots], row % self.num_slots, question)
                    for row, question in enumerate(own.prompts, start=first)
                ],
                generated=generated,
                rewards=torch.stack([waves[number].rewards[at] for number, at in sources]),
                logged=logged,
                merged=True,
                metrics=_together(trained),
            ),
            waves,
        )

    def _exchange(self, waves: list[SampledWave], sources: list[tuple[int, int]], rows: range) -> list[Record]:
        """The records of some rows of this rank, wherever they were sampled."""
        accelerator = self._trainer.accelerator
        ranks, rank = accelerator.num_processes, accelerator.process_index
        per_rank = len(sources) // ranks
        own: dict[tuple[int, int], Record] = {}
        elsewhere: dict[tuple[int, int], Record] = {}
        for row, (number, at) in enumerate(sources):
            wave = waves[number]
            share = len(wave.wave.rows) // ranks
            if at // share == rank:
                found = record(wave.generated, wave.logged, at % share)
                (own if row // per_rank == rank else elsewhere)[number, at] = found
        for sent in gather([elsewhere], ranks):
            own.update(sent)
        return [own[sources[row]] for row in rows]

    def _under_question(self, scored: Scored, waves: Sequence[SampledWave]) -> Scored:
        """Put q's prompt where a row that was sampled on q' is trained as an answer to q."""
        slots = scored.slots()
        first = self._trainer.accelerator.process_index * len(scored.own.prompts)
        rows = [row for row in range(len(scored.own.prompts)) if slots[first + row].on_question]
        if not rows:
            return scored
        known = _question_ids(waves)
        parts, trained_on = list(scored.generated.parts), list(scored.trained_on)
        parts[0] = list(parts[0])
        log_probs = SAMPLER_LOGPROBS_MAY_MISS and len(parts) > _LOGPROBS and parts[_LOGPROBS] is not None
        if log_probs:
            parts[_LOGPROBS] = list(parts[_LOGPROBS])
        for row in rows:
            position, trained_on[row] = (first + row) // self.num_slots, scored.own.prompts[row]
            parts[0][row] = list(known.get(position) or self._trainer._tokenize_prompts([trained_on[row]])[0][0])
            if log_probs:  # the sampler's are those on q'
                parts[_LOGPROBS][row] = [None] * len(parts[1][row])
        return replace(scored, generated=Generated(tuple(parts)), trained_on=trained_on)

    def _group_ids(self, num_groups: int) -> list[GroupId]:
        """Ids that are the same on every rank and differ between batches, also where a step has several."""
        purpose: Purpose = "train" if self._trainer.model.training else "eval"
        known_step, place = self._groups_of_step
        place = place if known_step == self._step else 0
        self._groups_of_step = (self._step, place + num_groups)
        return [GroupId(purpose, self._step, place + number) for number in range(num_groups)]


def _question_ids(waves: Sequence[SampledWave]) -> dict[int, tuple[int, ...]]:
    """Token ids of q by group, from rows that were sampled on it."""
    return {
        row.position: sample.prompt_ids
        for sampled in waves
        for row, sample in zip(sampled.wave.rows, sampled.samples, strict=True)
        if row.planned.ask.show is None and sample.prompt_ids is not None
    }


def _together(waves: Sequence[SampledWave]) -> dict[str, float]:
    """What the host logged in several calls, as means over their rows."""
    rows: dict[str, float] = {}
    total: dict[str, float] = {}
    for sampled in waves:
        weight = len(sampled.wave.rows)
        for name, values in sampled.metrics.items():
            if values:
                rows[name] = rows.get(name, 0.0) + weight
                total[name] = total.get(name, 0.0) + weight * sum(values) / len(values)
    return {name: value / rows[name] for name, value in total.items()}


def _with_rows(group: Group, fresh: Sequence[Sample]) -> Group:
    """A group with other samples in its slots, which keep what the planner said of the old ones."""
    samples = list(group.samples)
    for slot, new in zip(group.slots_S, fresh, strict=True):
        old = samples[slot.sample]
        samples[slot.sample] = replace(
            new,
            index=old.index,
            round=old.round,
            shown=old.shown,
            held=old.held,
            visible=old.visible if new.text == old.text else new.text,
            prompt_ids=None,
        )
    return replace(group, samples=tuple(samples))
