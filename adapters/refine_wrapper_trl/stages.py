"""Both stages inside one TRL trainer: host objects in, core calls, host objects out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.resampling import has_gradient
from refine_wrapper.core.types import GroupOutcome, Refinement, for_one_row
from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.objectives import resampling_rounds
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_trl.ahead import Lookahead, Ridden, Rows, riding_along
from refine_wrapper_trl.drafting import Drafting, LaidOut, group_size_name
from refine_wrapper_trl.isolate import replaced
from refine_wrapper_trl.resample import Resampler, count_once, metrics_so_far
from refine_wrapper_trl.rows import Drawn, Group, gather, has_images, masks_of, merge_extra_fields, needs_images
from refine_wrapper_trl.scoring import Scoring
from refine_wrapper_trl.start import announce, check_start, prompt_room, resolved_config

HostGenerate = Callable[[list[Any]], Any]
Score = Callable[[list[dict[str, Any]], list[Any], list[Any], list[list[int]]], torch.Tensor]


class TwoStages:
    """The state of refinement in one trainer. All decisions come from the core's :class:`Refiner`.

    Args:
        trainer: A TRL trainer with :class:`~refine_wrapper_trl.mixin.RefineMixin`.
        config: The resolved settings; where they are not active, every group is plain.
        resampler: Dynamic sampling, if it is on.
    """

    def __init__(self, trainer: Any, config: RefineConfig, resampler: Resampler | None = None) -> None:
        self._trainer = trainer
        self._refiner = Refiner(config, prompt_room(trainer), observe=trainer.accelerator.is_main_process)
        self._scoring = Scoring(trainer, self._refiner.room.tokenizer)
        self._drafting = Drafting(trainer, self._refiner, self._scoring)
        self._resampler = resampler
        self._resampling: dict[str, float] = {}
        self._rows: list[dict[str, Any]] | None = None
        self._host_score: Score | None = None
        self._drawn: Drawn | None = None
        self._in_place = False
        self._lookahead: Lookahead | None = None
        self._ahead: tuple[LaidOut, Ridden] | None = None

    @classmethod
    def of(cls, trainer: Any, settings: Mapping[str, Any]) -> TwoStages | None:
        """Check and announce refinement and dynamic sampling for a trainer; None if both are off."""
        config = resolved_config(trainer, settings)
        rounds = resampling_rounds("trl", config)
        if not config.active and not rounds:
            return None
        resampler = Resampler(trainer, config, rounds) if rounds else None
        stages = cls(trainer, config if config.active else config.without_refinement(), resampler)
        check_start(trainer, stages._refiner)
        announce(trainer, stages._refiner, None if resampler is None else resampler.describe())
        return stages

    @property
    def in_stage1(self) -> bool:
        """Whether the host works on drafts at the moment."""
        return self._drafting.running

    @property
    def in_batch(self) -> bool:
        """Whether the host is inside a batch whose data set rows are known."""
        return self._rows is not None

    def applies(self) -> bool:
        """Whether the host is training, or evaluating and evaluation is to be refined."""
        config = self._refiner.config
        return bool(self._trainer.model.training) or (config.active and config.evaluation == "refine")

    @contextmanager
    def batch(self, inputs: list[dict[str, Any]]) -> Generator[None]:
        """Note the data set rows of a batch for its length, and watch how it is scored.

        Rows that dynamic sampling replaces are replaced in this list, which the host goes on with.
        """
        self._rows, self._drawn, self._resampling = inputs, None, {}
        # On the trainer itself: an override in a subclass of the mixin is inside it, for drafts and refinements alike.
        score: Score = self._trainer._calculate_rewards
        self._host_score = score
        with replaced(self._trainer, "_calculate_rewards", partial(self._score, score)):
            try:
                yield
            finally:
                self._rows, self._drawn, self._host_score = None, None, None

    def generate(self, host_generate: HostGenerate, prompts: list[Any]) -> Any:
        """The host's ``_generate`` for a batch: on q', after Stage 1, and perhaps with the drafts of the next batch.

        With dynamic sampling, groups without a gradient are then drawn again.
        """
        trainer, rows = self._trainer, self._rows_of_batch
        before = metrics_so_far(trainer)
        self._in_place = any(has_images(prompt) for prompt in prompts)
        laid_out, ridden = self._take_ahead() or (
            self._drafting.lay_out(rows, self._drafting.groups_of(rows, prompts)),
            None,
        )
        drawn = self._drafting.plan(laid_out, list(rows), list(prompts), ridden)
        drawn.generated = self._generate_beside_drafts(host_generate, drawn.refined)
        if self._resampler is not None and trainer.model.training:
            self._score_now(drawn)
            self._resampling = self._resampler.complete(drawn, partial(self._draw_again, host_generate))
            count_once(trainer, drawn, before, host_generate)
        self._drawn = drawn
        # What the host goes on with is its own lists. One with images rebuilds pixel inputs from its prompts after
        # generation: put q' there too.
        if drawn.changed:
            rows[:] = drawn.rows
            prompts[:] = drawn.prompts
        if self._in_place:
            prompts[:] = drawn.refined
        return drawn.generated

    def look_ahead(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """The host's iterator over an epoch, for the next optimizer step, such that the next batch can be seen."""
        if not self._refiner.config.draft_ahead:
            return batches
        if self._lookahead is None or self._lookahead.batches is not batches:
            self._lookahead = Lookahead(batches)
        self._lookahead.start_step()
        return self._lookahead

    def _generate_beside_drafts(self, host_generate: HostGenerate, refined: list[Any]) -> Any:
        """The host's ``_generate`` on q', in one call with the drafts of the next batch where these are wanted."""
        config = self._refiner.config
        upcoming = self._upcoming() if config.draft_ahead else None
        if upcoming is None:
            return host_generate(refined)
        prompt_ids = self._trainer._tokenize_prompts([prompt for prompt, _ in upcoming.share])[0]
        with riding_along(self._trainer, group_size_name(self._trainer), config.num_drafts, prompt_ids) as ridden:
            generated = host_generate(refined)
        self._ahead = (upcoming, ridden[0]) if ridden else None
        return generated

    def _draw_again(self, host_generate: HostGenerate, groups_P: list[Group], group_ids_P: list[str]) -> Drawn:
        """Sample and score groups as if they were a batch, both stages anew."""
        trainer = self._trainer
        per_rank = len(groups_P) * trainer.num_generations // trainer.accelerator.num_processes
        first_row = trainer.accelerator.process_index * per_rank
        own = [groups_P[row // trainer.num_generations] for row in range(first_row, first_row + per_rank)]
        laid_out = self._drafting.lay_out([], groups_P, group_ids_P)
        drawn = self._drafting.plan(
            laid_out, [dict(row) for _, row in own], [for_one_row(prompt) for prompt, _ in own], None
        )
        drawn.generated = host_generate(drawn.refined)
        self._score_now(drawn)
        return drawn

    def _upcoming(self) -> LaidOut | None:
        """The next generation batch of this epoch, if its drafts can be sampled now. The same answer on every rank."""
        trainer = self._trainer
        distance = trainer.args.steps_per_generation * trainer.num_iterations
        left = (trainer.state.max_steps - trainer.state.global_step) * trainer.args.gradient_accumulation_steps
        rows = self._lookahead.after(self._rows_of_batch, distance, left=left) if self._lookahead else None
        # Images are no rows of text: a batch with them, or one before such a batch, is sampled as without draft-ahead.
        fits = rows is not None and not self._in_place and not any(needs_images(row) for row in rows)
        if not all(gather([fits], trainer.accelerator.num_processes)):
            return None
        assert rows is not None, "all ranks have rows"
        laid_out = self._drafting.lay_out(rows, self._drafting.groups_of(rows, [row["prompt"] for row in rows]))
        return laid_out if laid_out.share else None

    def _take_ahead(self) -> tuple[LaidOut, Ridden] | None:
        """What was sampled ahead for the batch at hand, if anything was."""
        ahead, self._ahead = self._ahead, None
        return ahead if ahead is not None and ahead[0].rows is self._rows else None

    def _score(
        self,
        score: Score,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """The trainer's ``_calculate_rewards``; rewards and logs of refinements see q, and are noted."""
        if self._drafting.running:
            return score(inputs, prompts, completions, completion_ids_list)
        drawn = self._drawn_of_batch
        if self._in_place:
            prompts[:] = drawn.prompts
            self._in_place = False
        if not self._is_scored(drawn, completions, completion_ids_list):
            drawn.rewards = score(inputs, prompts, completions, completion_ids_list)
            drawn.outcomes_P = self._outcomes(drawn, completion_ids_list)
        self._finish(drawn)
        return drawn.rewards_of_rows

    def _is_scored(self, drawn: Drawn, completions: list[Any], completion_ids: list[list[int]]) -> bool:
        """Whether the rewards of a batch are known, of these very completions; hands over then what they logged."""
        trainer = self._trainer
        if drawn.rewards is None:
            return False
        # An override of _generate outside of refinement may have changed them, on any rank: then the host scores anew.
        same = completions == drawn.completions and completion_ids == drawn.completion_ids
        if not all(gather([same], trainer.accelerator.num_processes)):
            return False
        for column, values in drawn.extra.items():
            trainer._pending_extra_logs[column].extend(values)
        for name, values in drawn.values.items():
            trainer._pending_metrics[name].extend(values)
        return True

    def _score_now(self, drawn: Drawn) -> None:
        """Score what was drawn before the host asks for it, and keep what reward functions log until then."""
        trainer = self._trainer
        assert self._host_score is not None, "batch() comes first"
        merge_extra_fields(drawn.rows, drawn.generated)
        with replaced(trainer, "_pending_extra_logs", drawn.extra), replaced(trainer, "_pending_metrics", drawn.values):
            drawn.rewards = self._host_score(drawn.rows, list(drawn.prompts), drawn.completions, drawn.completion_ids)
        drawn.active_P = has_gradient(drawn.plans_P, self._scoring.signals(drawn.rewards))
        drawn.outcomes_P = self._outcomes(drawn, drawn.completion_ids)

    def _outcomes(self, drawn: Drawn, completion_ids: list[list[int]]) -> list[GroupOutcome]:
        """The finished groups, over all ranks; none where nothing is refined."""
        trainer = self._trainer
        if not self._refiner.config.active:
            return []
        masks = masks_of(drawn.generated)
        local = [self._scoring.decode(ids, mask) for ids, mask in zip(completion_ids, masks, strict=True)]
        sampled = gather(local, trainer.accelerator.num_processes)
        refinements = [
            Refinement(text, None if reward != reward else reward, num_tokens, finished)
            for (text, num_tokens, finished), reward in zip(
                sampled, self._scoring.scalars(drawn.rewards_of_rows), strict=True
            )
        ]
        step = int(trainer.state.global_step)
        return drawn.stages.outcomes(refinements, step=step, policy_version=step)

    def _finish(self, drawn: Drawn) -> None:
        """Metrics, trace and observers of the finished batch."""
        metrics = dict(self._resampling)
        if self._refiner.config.active:
            metrics.update(self._refiner.finish([*drawn.outcomes_P, *drawn.spare]))
        for name, value in metrics.items():
            self._trainer._metrics["train" if self._trainer.model.training else "eval"][name].append(value)

    def leave_untrained(self, output: dict[str, Any]) -> dict[str, Any]:
        """Take rows that the plan does not train out of the loss, the way the host masks truncated completions."""
        trainer, drawn = self._trainer, self._drawn_of_batch
        if all(plan.trained for plan in drawn.plans_P):
            return output
        first_row = trainer.accelerator.process_index * len(drawn.rows)
        group_size = getattr(trainer, group_size_name(trainer))
        trained = torch.tensor(
            [drawn.plans_P[(first_row + row) // group_size].trained for row in range(len(drawn.rows))],
            device=output["completion_mask"].device,
        )
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

    @property
    def _rows_of_batch(self) -> list[dict[str, Any]]:
        assert self._rows is not None, "batch() comes first"
        return self._rows

    @property
    def _drawn_of_batch(self) -> Drawn:
        if self._drawn is None:
            raise SeamError(
                f"refine: {type(self._trainer).__name__} made a batch without TRL's _generate, so no draft "
                "was sampled. Call super()._generate(prompts) in your override, or switch refinement off."
            )
        return self._drawn
