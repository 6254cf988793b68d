"""Refinement of the batches of one TRL trainer: host objects in, core calls, host objects out."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from refine_wrapper.core.planner import Planner
from refine_wrapper.core.recorder import Recorder
from refine_wrapper.core.types import GroupId, Use, for_one_row
from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.launch.report import note_refined
from refine_wrapper.hosts.objectives import resampling_rounds
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_trl.ahead import Lookahead, Prefetched, prefetching
from refine_wrapper_trl.counting import count_once, metrics_so_far
from refine_wrapper_trl.drawing import Drawing
from refine_wrapper_trl.isolate import replaced
from refine_wrapper_trl.phases import Opened, OwnRows, Sampled, Scored
from refine_wrapper_trl.resample import Resampler
from refine_wrapper_trl.rows import Asked, Rows, gather, has_images, needs_images
from refine_wrapper_trl.scoring import Scoring
from refine_wrapper_trl.start import announce, check_start, prompt_room, resolved_config
from refine_wrapper_trl.waves import HostGenerate, Score, Waves, group_size_name


@dataclass
class HostBatch:
    """The batch that the host works on.

    Attributes:
        rows: Its data set rows, the host's own list.
        score: The host's ``_calculate_rewards``.
        drawn: What was sampled for it, once it was.
        shows: Whether the host's list of prompts holds what rows are trained under at the moment, instead of q.
        resampling: Metrics of dynamic sampling.
    """

    rows: Rows
    score: Score
    drawn: Sampled | Scored | None = None
    shows: bool = False
    resampling: Mapping[str, float] | None = None

    @property
    def scored(self) -> Scored:
        assert isinstance(self.drawn, Scored), "the host scores what it generated"
        return self.drawn


class Batches:
    """The batches of one trainer. All decisions come from the core's :class:`Planner`.

    Args:
        trainer: A TRL trainer with :class:`~refine_wrapper_trl.mixin.RefineMixin`.
        config: The resolved settings; where they are not active, every group is plain.
        resampler: Dynamic sampling, if it is on.
    """

    def __init__(self, trainer: Any, config: RefineConfig, resampler: Resampler | None = None) -> None:
        self._trainer = trainer
        self.config = config
        self.planner = Planner(config, prompt_room(trainer))
        self._recorder = Recorder(config, self.planner.plugins, observe=trainer.accelerator.is_main_process)
        self._scoring = Scoring(trainer, self.planner.room.tokenizer)
        self._waves = Waves(trainer, self.planner, self._scoring)
        self._drawing = Drawing(trainer, self.planner, self._waves)
        self._resampler = resampler
        self._batch: HostBatch | None = None
        self._lookahead: Lookahead | None = None
        self._ahead: tuple[Opened, Prefetched] | None = None

    @classmethod
    def of(cls, trainer: Any, settings: Mapping[str, Any]) -> Batches | None:
        """Check and announce refinement and dynamic sampling for a trainer; None if both are off."""
        config = resolved_config(trainer, settings)
        rounds = resampling_rounds("trl", config)
        if not config.active and not rounds:
            return None
        resampler = Resampler(trainer, config, rounds) if rounds else None
        batches = cls(trainer, config if config.active else config.without_refinement(), resampler)
        check_start(trainer, batches.planner)
        announce(trainer, batches.planner, None if resampler is None else resampler.describe())
        return batches

    @property
    def sampling_context(self) -> bool:
        """Whether the host samples rows at the moment that are never trained."""
        return self._waves.sampling_context

    @property
    def in_batch(self) -> bool:
        """Whether the host is inside a batch whose data set rows are known."""
        return self._batch is not None

    def applies(self) -> bool:
        """Whether the host is training, or evaluating and evaluation is to be refined."""
        return bool(self._trainer.model.training) or (self.config.active and self.config.evaluation == "refine")

    @contextmanager
    def batch(self, inputs: Rows) -> Generator[HostBatch]:
        """Note the data set rows of a batch for its length, and watch how it is scored.

        Rows that dynamic sampling replaces are replaced in this list, which the host goes on with.
        """
        # On the trainer itself: an override in a subclass of the mixin is inside it, in all rounds alike.
        score: Score = self._trainer._calculate_rewards
        self._batch = HostBatch(inputs, score)
        with replaced(self._trainer, "_calculate_rewards", self._score):
            try:
                yield self._batch
            finally:
                self._batch = None

    def generate(self, host_generate: HostGenerate, prompts: list[Any]) -> Any:
        """The host's ``_generate`` for a batch: all its rounds, and perhaps the drafts of the next batch.

        With dynamic sampling, groups without a gradient are then drawn again.
        """
        trainer, batch = self._trainer, self._current
        before = metrics_so_far(trainer)
        images = any(has_images(prompt) for prompt in prompts)
        opened, ahead = self._take_ahead(batch.rows) or (
            self._drawing.open(batch.rows, self._drawing.asked(batch.rows, prompts)),
            None,
        )
        last = partial(self._generate_beside_drafts, host_generate, batch.rows, images)
        own = OwnRows(list(batch.rows), list(prompts))
        drawn = self._drawing.draw(opened, own, host_generate, batch.score, last=last, ahead=ahead)
        resampler = self._resampler if trainer.model.training else None
        if isinstance(drawn, Sampled) and (resampler is not None or self._drawing.decides_prompts()):
            drawn = self._drawing.score(drawn, batch.score)
        if resampler is not None:
            assert isinstance(drawn, Scored), "it was scored above"
            again = partial(self._draw_again, host_generate, batch.score)
            drawn, batch.resampling = resampler.complete(drawn, self._scoring, again)
        if isinstance(drawn, Scored) and (drawn.merged or resampler is not None):
            drawn = count_once(trainer, drawn, before, host_generate)
        batch.drawn = drawn
        # What the host goes on with is its own lists.
        if isinstance(drawn, Scored) and drawn.merged:
            batch.rows[:] = drawn.own.data
            prompts[:] = drawn.own.prompts
        if images:
            # It rebuilds pixel inputs from its prompts after generation.
            prompts[:] = drawn.trained_on if isinstance(drawn, Scored) else drawn.sampled_on
            batch.shows = True
        return drawn.generated.parts

    def look_ahead(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """The host's iterator over an epoch, for the next optimizer step, such that the next batch can be seen."""
        if not self.config.draft_ahead:
            return batches
        if self._lookahead is None or self._lookahead.batches is not batches:
            self._lookahead = Lookahead(batches)
        self._lookahead.start_step()
        return self._lookahead

    def leave_untrained(self, batch: HostBatch, output: dict[str, Any]) -> dict[str, Any]:
        """Take rows that are not trained out of the loss, the way the host masks truncated completions."""
        trainer, scored = self._trainer, self._drawn(batch)
        assert isinstance(scored, Scored), "the host scores before it returns"
        trained_rows = scored.trained_rows()
        if all(trained_rows):
            return output
        first, count = trainer.accelerator.process_index * len(scored.own.prompts), len(scored.own.prompts)
        trained = torch.tensor(trained_rows[first : first + count], device=output["completion_mask"].device)
        output["completion_mask"] = output["completion_mask"] * trained.unsqueeze(1).to(output["completion_mask"].dtype)
        # RLOO summed old_logps over tokens that are now masked: without this its ratio, and so its loss, is arbitrary.
        for name in ("advantages", "old_logps"):
            if name in output:
                output[name] = output[name].clone()
                output[name][~trained] = 0
        if "num_items_in_batch" in output:
            loss_mask = output["completion_mask"] * output.get("tool_mask", 1)
            # At least one: before TRL 1.16 the host divides by it as it is.
            output["num_items_in_batch"] = trainer.accelerator.gather(loss_mask.sum()).sum().clamp(min=1)
        return output

    def _generate_beside_drafts(self, host_generate: HostGenerate, rows: Rows, images: bool, prompts: list[Any]) -> Any:
        """The host's ``_generate``, in one call with the drafts of the next batch where these are wanted."""
        upcoming = None if images or not self.config.draft_ahead else self._upcoming(rows)
        if upcoming is None:
            return host_generate(prompts)
        assert upcoming.wave is not None, "it was asked for"
        trainer = self._trainer
        drafts = [row.prompt for row in self._waves.share(upcoming.wave)]
        prompt_ids = trainer._tokenize_prompts(drafts)[0]
        with prefetching(trainer, group_size_name(trainer), upcoming.wave.repeat, prompt_ids) as found:
            generated = host_generate(prompts)
        self._ahead = (upcoming, found[0]) if found else None
        return generated

    def _draw_again(
        self, host_generate: HostGenerate, score: Score, asked_P: list[Asked], group_ids_P: list[GroupId]
    ) -> Scored:
        """Sample and score groups as if they were a batch, all rounds anew."""
        accelerator, num_slots = self._trainer.accelerator, self._drawing.num_slots
        per_rank = len(asked_P) * num_slots // accelerator.num_processes
        first = accelerator.process_index * per_rank
        mine = [asked_P[row // num_slots] for row in range(first, first + per_rank)]
        own = OwnRows([dict(asked.row) for asked in mine], [for_one_row(asked.prompt) for asked in mine])
        drawn = self._drawing.draw(self._drawing.open([], asked_P, group_ids_P), own, host_generate, score)
        return self._drawing.score(drawn, score) if isinstance(drawn, Sampled) else drawn

    def _upcoming(self, rows: Rows) -> Opened | None:
        """The next generation batch of this epoch, if its drafts can be sampled now. The same answer on every rank."""
        trainer = self._trainer
        distance = trainer.args.steps_per_generation * trainer.num_iterations
        left = (trainer.state.max_steps - trainer.state.global_step) * trainer.args.gradient_accumulation_steps
        following = self._lookahead.after(rows, distance, left=left) if self._lookahead else None
        # Images are no rows of text: a batch with them, or one before such a batch, is sampled as without draft-ahead.
        fits = following is not None and not any(needs_images(row) for row in following)
        if not all(gather([fits], trainer.accelerator.num_processes)):
            return None
        assert following is not None, "all ranks have rows"
        asked_P = self._drawing.asked(following, [row["prompt"] for row in following])
        opened = self._drawing.open(following, asked_P)
        drafts = opened.wave is not None and all(row.planned.ask.use is Use.CONTEXT for row in opened.wave.rows)
        return opened if drafts else None

    def _take_ahead(self, rows: Rows) -> tuple[Opened, Prefetched] | None:
        """What was sampled ahead for a batch, if anything was."""
        if self._ahead is None or self._ahead[0].loaded is not rows:
            return None
        ahead, self._ahead = self._ahead, None
        return ahead

    def _score(
        self, inputs: Rows, prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """The trainer's ``_calculate_rewards`` for the host's batch: what it is asked about is q."""
        batch, drawn = self._current, self._drawn(self._current)
        if batch.shows:
            prompts[:] = drawn.own.prompts
            batch.shows = False
        if isinstance(drawn, Sampled):
            rewards = batch.score(inputs, prompts, completions, completion_ids_list)
            batch.drawn = self._drawing.finish(drawn.with_completions(completion_ids_list), rewards)
        elif self._are_as_scored(drawn, completions, completion_ids_list):
            self._hand_over(drawn)
        else:
            rewards = batch.score(inputs, prompts, completions, completion_ids_list)
            batch.drawn = self._drawing.rescored(drawn, rewards, completion_ids_list)
        self._finish(batch)
        return batch.scored.rewards

    def _are_as_scored(self, scored: Scored, completions: list[Any], completion_ids: list[list[int]]) -> bool:
        """Whether the known rewards are of these very completions, on all ranks.

        An override of _generate outside of refinement may have changed them; the host then scores anew.
        """
        same = completions == scored.generated.completions and completion_ids == scored.generated.completion_ids
        return all(gather([same], self._trainer.accelerator.num_processes))

    def _hand_over(self, scored: Scored) -> None:
        """Tell the host what reward functions logged."""
        for column, values in scored.logged.columns.items():
            self._trainer._pending_extra_logs[column].extend(values)
        for name, values in scored.logged.values.items():
            self._trainer._pending_metrics[name].extend(values)

    def _finish(self, batch: HostBatch) -> None:
        """Metrics, trace and observers of the finished batch."""
        scored, metrics = batch.scored, dict(batch.resampling or {})
        if self.config.active:
            groups_P = [*scored.groups_P, *scored.not_trained]
            self.planner.note(groups_P)
            metrics.update(self._recorder.record(groups_P))
            if any(group.refined for group in groups_P):
                trainer = type(self._trainer).__name__
                note_refined("trl", trainer=trainer, mode=self.config.mode, num_drafts=self.config.num_drafts)
        for name, value in metrics.items():
            self._trainer._metrics["train" if self._trainer.model.training else "eval"][name].append(value)

    @property
    def _current(self) -> HostBatch:
        assert self._batch is not None, "batch() comes first"
        return self._batch

    def _drawn(self, batch: HostBatch) -> Sampled | Scored:
        if batch.drawn is None:
            raise SeamError(
                f"refine: {type(self._trainer).__name__} made a batch without TRL's _generate, so nothing was refined. "
                "Call super()._generate(prompts) in your override, or switch refinement off."
            )
        return batch.drawn
