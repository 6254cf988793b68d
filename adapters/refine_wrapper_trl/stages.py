"""Both stages inside one TRL trainer: host objects in, core calls, host objects out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object

from refine_wrapper.batch import BatchStages, Question
from refine_wrapper.config import RefineConfig
from refine_wrapper.errors import SeamError
from refine_wrapper.launch.report import note_refined
from refine_wrapper.refiner import Refiner
from refine_wrapper.types import Refinement, RowPlan, SampledDraft, for_one_row
from refine_wrapper_trl.ahead import Lookahead, Ridden, Rows, riding_along, served
from refine_wrapper_trl.isolate import replaced, stage1_isolated
from refine_wrapper_trl.start import announce, check_start, prompt_room, resolved_config


@dataclass(frozen=True)
class _LaidOut:
    """Stage 1 of one generation batch before it is sampled.

    Attributes:
        rows: The batch, told apart by identity.
        stages: Its groups and plans, over all ranks.
        share: (prompt, data set row) of each draft row that this rank samples.
    """

    rows: Rows
    stages: BatchStages
    share: list[tuple[Any, dict[str, Any]]]


class TwoStages:
    """The state of refinement in one trainer. All decisions come from the core's :class:`Refiner`.

    Args:
        trainer: A TRL trainer with :class:`~refine_wrapper_trl.mixin.RefineMixin`.
        config: The resolved settings; active.
    """

    def __init__(self, trainer: Any, config: RefineConfig) -> None:
        self._trainer = trainer
        self._refiner = Refiner(config, prompt_room(trainer), observe=trainer.accelerator.is_main_process)
        self._rows: list[dict[str, Any]] | None = None
        self._questions: list[Any] = []
        self._masks: list[Any] = []
        self._rows_planned: list[RowPlan] = []
        self._in_place = False
        self._stages: BatchStages | None = None
        self._batches_of_step = (-1, 0)
        self._lookahead: Lookahead | None = None
        self._ahead: tuple[_LaidOut, Ridden] | None = None
        self.in_stage1 = False

    @classmethod
    def of(cls, trainer: Any, settings: Mapping[str, Any]) -> TwoStages | None:
        """Check and announce refinement for a trainer; None if it is switched off."""
        config = resolved_config(trainer, settings)
        if not config.active:
            return None
        stages = cls(trainer, config)
        check_start(trainer, stages._refiner)
        announce(trainer, stages._refiner)
        return stages

    @property
    def in_batch(self) -> bool:
        """Whether the host is inside a batch whose data set rows are known."""
        return self._rows is not None

    def applies(self) -> bool:
        """Whether the host is training, or evaluating and evaluation is to be refined."""
        return bool(self._trainer.model.training) or self._refiner.config.evaluation == "refine"

    @contextmanager
    def batch(self, inputs: list[dict[str, Any]]) -> Generator[None]:
        """Note the data set rows of a batch for its length, and watch how it is scored."""
        self._rows, self._stages = inputs, None
        # On the trainer itself: an override in a subclass of the mixin is inside it, for drafts and refinements alike.
        with replaced(self._trainer, "_calculate_rewards", partial(self._score, self._trainer._calculate_rewards)):
            try:
                yield
            finally:
                self._rows, self._stages, self._questions = None, None, []

    def generate(self, host_generate: Callable[[list[Any]], Any], prompts: list[Any]) -> Any:
        """The host's ``_generate`` for a batch: on q', after Stage 1, and perhaps with the drafts of the next batch."""
        refined = self._refined_prompts(prompts)
        upcoming = self._upcoming() if self._refiner.config.draft_ahead else None
        if upcoming is None:
            generated = host_generate(refined)
        else:
            prompt_ids = self._trainer._tokenize_prompts([prompt for prompt, _ in upcoming.share])[0]
            config = self._refiner.config
            with riding_along(self._trainer, _group_size_name(self._trainer), config.num_drafts, prompt_ids) as ridden:
                generated = host_generate(refined)
            self._ahead = (upcoming, ridden[0]) if ridden else None
        # Kept for when the batch is scored: which tokens the policy sampled itself.
        self._masks = _masks(generated)
        return generated

    def look_ahead(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """The host's iterator over an epoch, for the next optimizer step, such that the next batch can be seen."""
        if not self._refiner.config.draft_ahead:
            return batches
        if self._lookahead is None or self._lookahead.batches is not batches:
            self._lookahead = Lookahead(batches)
        self._lookahead.start_step()
        return self._lookahead

    def _refined_prompts(self, prompts: list[Any]) -> list[Any]:
        """Stage 1 of a batch: this rank's q' for this rank's q, row by row."""
        trainer = self._trainer
        laid_out, ridden = self._take_ahead() or (self._lay_out(self._rows_of_batch, prompts), None)
        stages = laid_out.stages
        started = time.perf_counter()
        sampled = self._sample_drafts(laid_out.share, ridden) if laid_out.share else []
        stages.plan(sampled, stage1_seconds=time.perf_counter() - started)
        self._stages = stages
        note_refined("trl", trainer=type(trainer).__name__, num_drafts=self._refiner.config.num_drafts)
        group_size = getattr(trainer, _group_size_name(trainer))
        first_row = trainer.accelerator.process_index * len(prompts)
        self._rows_planned = stages.rows(group_size)[first_row : first_row + len(prompts)]
        # Rows that stay plain keep the host's own object.
        refined = [row.prompt if row.refined else own for row, own in zip(self._rows_planned, prompts, strict=True)]
        self._questions = list(prompts)
        # A host with images rebuilds pixel inputs from its own list of prompts after generation: put q' there too.
        self._in_place = any(_has_images(prompt) for prompt in prompts)
        if self._in_place:
            prompts[:] = refined
        return refined

    def _lay_out(self, rows: Rows, prompts: list[Any]) -> _LaidOut:
        """Which groups a batch has, over all ranks, and whose drafts this rank samples."""
        trainer = self._trainer
        rank, num_ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
        group_size = getattr(trainer, _group_size_name(trainer))
        first_row = rank * len(prompts)
        # A group's rows are adjacent and may straddle ranks; the rank that has its first row speaks for it.
        starts = [row for row in range(len(prompts)) if (first_row + row) % group_size == 0]
        # Column "prompt" stays what the data set has; prompts[row] is what the host made of it (images put in).
        groups = _gather([(prompts[row], rows[row]) for row in starts], num_ranks)
        questions_P = [
            Question(group_id, group[0]) for group_id, group in zip(self._group_ids(len(groups)), groups, strict=True)
        ]
        stages = BatchStages(self._refiner, questions_P, num_ranks)
        return _LaidOut(rows, stages, [groups[position] for position in stages.draft_rows.share(rank, num_ranks)])

    def _upcoming(self) -> _LaidOut | None:
        """The next generation batch of this epoch, if its drafts can be sampled now. The same answer on every rank."""
        trainer = self._trainer
        distance = trainer.args.steps_per_generation * trainer.num_iterations
        left = (trainer.state.max_steps - trainer.state.global_step) * trainer.args.gradient_accumulation_steps
        rows = self._lookahead.after(self._rows_of_batch, distance, left=left) if self._lookahead else None
        # Images are no rows of text: a batch with them, or one before such a batch, is sampled as without draft-ahead.
        fits = rows is not None and not self._in_place and not any(_needs_images(row) for row in rows)
        if not all(_gather([fits], trainer.accelerator.num_processes)):
            return None
        assert rows is not None, "all ranks have rows"
        laid_out = self._lay_out(rows, [row["prompt"] for row in rows])
        return laid_out if laid_out.share else None

    def _take_ahead(self) -> tuple[_LaidOut, Ridden] | None:
        """What was sampled ahead for the batch at hand, if anything was."""
        ahead, self._ahead = self._ahead, None
        return ahead if ahead is not None and ahead[0].rows is self._rows else None

    def _score(
        self,
        score: Callable[..., torch.Tensor],
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """The trainer's ``_calculate_rewards``; rewards and logs of refinements see q, and are noted."""
        if not self.in_stage1 and self._in_place:
            prompts[:] = self._questions
            self._in_place = False
        rewards = score(inputs, prompts, completions, completion_ids_list)
        if not self.in_stage1:
            self._note_refinements(rewards, completion_ids_list)
        return rewards

    def _note_refinements(self, rewards: torch.Tensor, completion_ids: list[list[int]]) -> None:
        """Metrics, trace and observers of the finished batch; ``rewards``: all ranks' rows x reward functions."""
        trainer, stages = self._trainer, self._stages_of_batch
        local = [self._decode(ids, mask) for ids, mask in zip(completion_ids, self._masks, strict=True)]
        sampled = _gather(local, trainer.accelerator.num_processes)
        refinements = [
            Refinement(text, None if reward != reward else reward, num_tokens, finished)
            for (text, num_tokens, finished), reward in zip(sampled, self._scalar_rewards(rewards), strict=True)
        ]
        step = int(trainer.state.global_step)
        metrics = stages.finish(refinements, step=step, policy_version=step)
        for name, value in metrics.items():
            trainer._metrics["train" if trainer.model.training else "eval"][name].append(value)

    def leave_untrained(self, output: dict[str, Any]) -> dict[str, Any]:
        """Take rows that the plan does not train out of the loss, the way the host masks truncated completions."""
        trainer = self._trainer
        if all(plan.trained for plan in self._stages_of_batch.plans_P):
            return output
        trained = torch.tensor([row.trained for row in self._rows_planned], device=output["completion_mask"].device)
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
    def _stages_of_batch(self) -> BatchStages:
        if self._stages is None:
            raise SeamError(
                f"refine: {type(self._trainer).__name__} made a batch without TRL's _generate, so no draft "
                "was sampled. Call super()._generate(prompts) in your override, or switch refinement off."
            )
        return self._stages

    def _sample_drafts(self, groups: list[tuple[Any, dict[str, Any]]], ridden: Ridden | None) -> list[SampledDraft]:
        """Sample and score this rank's draft rows by the host's own methods; returns all ranks' rows, in order.

        Where they were sampled ahead, the host is given those samples.
        """
        trainer, num_ranks = self._trainer, self._trainer.accelerator.num_processes
        prompts = [for_one_row(prompt) for prompt, _ in groups]
        inputs = [dict(row) for _, row in groups]
        config = self._refiner.config
        self.in_stage1 = True
        try:
            with stage1_isolated(
                trainer, _group_size_name(trainer), config.num_drafts, len(prompts), config.draft_timeout
            ) as failures:
                with served(trainer, ridden) if ridden else nullcontext():
                    generated = trainer._generate(prompts)
                completion_ids, completions = generated[1], generated[2 if len(generated) == 3 else 3]
                _merge_extra_fields(inputs, generated)
                rewards = trainer._calculate_rewards(inputs, prompts, completions, completion_ids)
        finally:
            self.in_stage1 = False
        version = ridden.policy_version if ridden else int(trainer.state.global_step)
        local = [
            (*self._decode(ids, mask), *failures.get(row, (None, "")))
            for row, (ids, mask) in enumerate(zip(completion_ids, _masks(generated), strict=True))
        ]
        sampled = _gather(local, num_ranks)
        return [
            SampledDraft(text, None if reward != reward else reward, num_tokens, finished, failure, detail, version)
            for (text, num_tokens, finished, failure, detail), reward in zip(
                sampled, self._scalar_rewards(rewards), strict=True
            )
        ]

    def _scalar_rewards(self, rewards: torch.Tensor) -> list[float]:
        """The weighted sum the host optimises (its ``sum_then_normalize``), NaN where every function returned None."""
        weights = self._trainer.reward_weights.to(rewards.device).unsqueeze(0)
        total = (rewards * weights).nansum(dim=1)
        total[torch.isnan(rewards).all(dim=1)] = torch.nan
        return [float(reward) for reward in total.tolist()]

    def _decode(self, token_ids: list[int], mask: list[int] | None = None) -> tuple[str, int, bool]:
        """Text, number of sampled tokens, and whether it ended by itself.

        Tool results (mask 0) are not the policy's.
        """
        tokenizer = self._refiner.room.tokenizer
        own = token_ids if mask is None else [token for token, kept in zip(token_ids, mask, strict=True) if kept]
        ids = [int(token) for token in own]
        return tokenizer.decode(ids, skip_special_tokens=True), len(ids), bool(ids) and ids[-1] in self._ends

    @property
    def _ends(self) -> set[int]:
        tokenizer: Any = self._refiner.room.tokenizer
        several = getattr(self._trainer, "eos_token_ids", None)  # TRL knows several since 1.15; before, the tokenizer's
        return {*(several or ()), tokenizer.eos_token_id, tokenizer.pad_token_id}

    def _group_ids(self, num_groups: int) -> list[str]:
        """Ids that are the same on every rank and differ between batches, also where a step has several."""
        step = int(self._trainer.state.global_step)
        count = self._batches_of_step[1] + 1 if self._batches_of_step[0] == step else 0
        self._batches_of_step = (step, count)
        mode = "train" if self._trainer.model.training else "eval"
        return [f"{mode}-{step}-{count}-{position}" for position in range(num_groups)]


def _group_size_name(trainer: Any) -> str:
    return "num_generations" if trainer.model.training else "num_generations_eval"


def _gather(objects: list[Any], num_ranks: int) -> list[Any]:
    return gather_object(objects) if num_ranks > 1 else objects


def _masks(generated: Any) -> list[Any]:
    """Per row, 1 for the policy's own tokens, 0 for what tools or an environment said; None where all are its own."""
    masks = generated[2] if len(generated) > 3 else None
    return [None] * len(generated[1]) if masks is None else masks


def _needs_images(row: dict[str, Any]) -> bool:
    return bool(row.get("image") or row.get("images")) or _has_images(row["prompt"])


def _has_images(prompt: Any) -> bool:
    return not isinstance(prompt, str) and any(
        isinstance(turn.get("content"), list) and any(part.get("type") == "image" for part in turn["content"])
        for turn in prompt
    )


def _merge_extra_fields(inputs: list[dict[str, Any]], generated: tuple[Any, ...]) -> None:
    """What a user's rollout_func returns beside tokens is reward input, as in the host's own scoring."""
    for extra_fields in generated:
        if isinstance(extra_fields, dict):
            for name, values in extra_fields.items():
                for row, value in zip(
                    inputs, values if isinstance(values, list) else [values] * len(inputs), strict=False
                ):
                    row[name] = value
