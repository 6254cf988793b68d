"""OpenRLHF's samples generator, which runs in the trainer: tells engines what to refine, collects what they did."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import GroupOutcome
from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.launch.report import note_refined
from refine_wrapper.settings.sources import LAUNCH_VARIABLE
from refine_wrapper_openrlhf.launched_agent import OUTCOME
from refine_wrapper_openrlhf.request import Request, RunSettings
from refine_wrapper_openrlhf.stages import make_room, no_reward_error


class RefineSamplesGenerator(SamplesGenerator):
    """Takes the place of upstream's class in the modules of its trainers, when the command line asks for it.

    Groups that cannot be trained (``on_no_draft=skip``, a reward that failed on a refinement) are left out, and the
    next prompts of the data set take their place, as in upstream's dynamic filtering.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = RunSettings.of(json.loads(self.args.refine.settings))
        self._config = self._settings.refine_config()
        # Takes note of groups; prompts are built in the engines, where the lengths are known.
        self._refiner = Refiner(self._config, make_room(self.tokenizer, 1, 1))
        self._evaluating = False
        self._num_groups = 0
        self._num_batches = 0
        self._outcomes: dict[str, GroupOutcome] = {}
        self._metrics: dict[str, float] = {}
        self.vllm_engines = [_MarkingEngine(engine, self._mark) for engine in self.vllm_engines]
        if self._settings.launch is not None:
            # Ray's workers have the environment of the cluster, not of the command that connects to it.
            os.environ.setdefault(LAUNCH_VARIABLE, self._settings.launch)

    @torch.no_grad()
    def generate_eval_samples(self, **generate_kwargs: Any) -> Any:
        self._evaluating = True
        try:
            return super().generate_eval_samples(**generate_kwargs)
        finally:
            self._evaluating = False
            self._refiner.finish(self._take_outcomes())

    @torch.no_grad()
    def generate_samples(self, **generate_kwargs: Any) -> Any:
        generated = super().generate_samples(**generate_kwargs)
        outcomes = self._take_outcomes()
        if outcomes:
            self._metrics = self._refiner.finish(outcomes)
            note_refined("openrlhf", num_drafts=self._config.num_drafts)
        samples = generated[0]
        self._num_batches += bool(samples)
        # All samples of a batch must have the same keys, also where part of it was waiting in upstream's buffer. The
        # host logs the mean over samples, which of equal numbers is the number.
        for sample in samples:
            own = {name: value for name, value in sample.info.items() if name not in self._metrics}
            sample.info = {**own, **{name: torch.tensor([value]) for name, value in self._metrics.items()}}
        return generated

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> Any:
        samples, consumed, exhausted = super()._generate_vllm(
            dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs
        )
        if self._evaluating:
            return samples, consumed, exhausted
        kept, failed, missing = self._trainable(samples)
        while True:
            # One bad reward costs its group, wherever in the data it is. A whole rollout of them, or all of a data set,
            # is a reward that is broken.
            if not kept and (len(failed) >= num_prompts or (failed and exhausted and not self._num_batches)):
                raise no_reward_error(failed)
            if not missing or exhausted:
                return kept, consumed, exhausted
            more, num_more, exhausted = super()._generate_vllm(
                dataloader_iter, missing, dynamic_filtering, **generate_kwargs
            )
            more_kept, more_failed, missing = self._trainable(more)
            kept, failed, consumed = kept + more_kept, failed + more_failed, consumed + num_more

    def _process_response_into_experience(self, response: dict[str, Any], **generate_kwargs: Any) -> Any:
        experience = super()._process_response_into_experience(response, **generate_kwargs)
        outcome = response.get(OUTCOME)
        if outcome is not None:
            self._outcomes[outcome.plan.group_id] = outcome
            experience.refine_group = outcome.plan.group_id
        elif not self._evaluating:
            raise SeamError(
                "refine: an engine answered without refining: it runs another agent than refine_wrapper_openrlhf's. Is "
                "refine-wrapper installed, in the same version, on every machine of the cluster?"
            )
        return experience

    def _trainable(self, samples: list[Any]) -> tuple[list[Any], list[GroupOutcome], int]:
        """Samples of groups that can be trained, the groups whose reward failed, and how many groups are left out."""
        outcomes = {sample.refine_group: self._outcomes[sample.refine_group] for sample in samples}
        left_out = [outcome for outcome in outcomes.values() if not outcome.trainable]
        failed = [outcome for outcome in left_out if outcome.plan.trained]
        return [s for s in samples if outcomes[s.refine_group].trainable], failed, len(left_out)

    def _take_outcomes(self) -> Sequence[GroupOutcome]:
        # By number of the group, not by order of arrival.
        outcomes = sorted(self._outcomes.items(), key=lambda item: int(item[0].rpartition("-")[2]))
        self._outcomes = {}
        return [outcome for _, outcome in outcomes]

    def _mark(self, sampling_params: Any) -> Any:
        refine = not self._evaluating or self._config.evaluation == "refine"
        group_id = f"{'eval' if self._evaluating else 'train'}-{self._num_groups}"
        self._num_groups += 1
        return Request(self._settings, refine, group_id, self._num_batches).mark(sampling_params)


class _MarkingEngine:
    """A Ray handle of a rollout actor, whose ``generate_responses`` marks each request."""

    def __init__(self, engine: Any, mark: Callable[[Any], Any]) -> None:
        self._engine = engine
        self.generate_responses = _MarkingMethod(engine.generate_responses, mark)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class _MarkingMethod:
    def __init__(self, method: Any, mark: Callable[[Any], Any]) -> None:
        self._method, self._mark = method, mark

    def remote(self, *, sampling_params: Any, **arguments: Any) -> Any:
        return self._method.remote(sampling_params=self._mark(sampling_params), **arguments)
