"""OpenRLHF's samples generator, which runs in the trainer: tells engines what to refine, collects what they did."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from refine_wrapper.core.recorder import Recorder
from refine_wrapper.core.types import Group, GroupId, Purpose
from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.launch.report import note_refined
from refine_wrapper.settings.sources import LAUNCH_VARIABLE
from refine_wrapper_openrlhf.engine import no_reward_error
from refine_wrapper_openrlhf.launched_agent import GROUP
from refine_wrapper_openrlhf.request import Request, RunSettings


class RefineSamplesGenerator(SamplesGenerator):
    """Takes the place of upstream's class in the modules of its trainers, when the command line asks for it.

    Groups that cannot be trained (``on_no_draft=skip``, a reward that failed on a row) are left out, and the next
    prompts of the data set take their place, as in upstream's dynamic filtering.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = RunSettings.of(json.loads(self.args.refine.settings))
        self._config = self._settings.refine_config()
        self._recorder = Recorder(self._config)
        self._purpose: Purpose = "train"
        self._step = resumed_step(self.args)
        self._num_steps = self._step + num_steps(self.args, len(self.prompts_dataloader))
        self._place = 0
        self._trained_any = False
        self._groups: dict[GroupId, Group] = {}
        self.vllm_engines = [_MarkingEngine(engine, self._mark) for engine in self.vllm_engines]
        if self._settings.launch is not None:
            # Ray's workers have the environment of the cluster, not of the command that connects to it.
            os.environ.setdefault(LAUNCH_VARIABLE, self._settings.launch)

    @torch.no_grad()
    def generate_eval_samples(self, **generate_kwargs: Any) -> Any:
        self._purpose, self._place, place = "eval", 0, self._place
        try:
            return super().generate_eval_samples(**generate_kwargs)
        finally:
            self._purpose, self._place = "train", place
            self._recorder.record(self._take("eval"))

    @torch.no_grad()
    def generate_samples(self, **generate_kwargs: Any) -> Any:
        samples, *others = super().generate_samples(**generate_kwargs)
        trained = {sample.refine_group for sample in samples}
        # What dynamic filtering evicted was sampled, but is not trained.
        groups = [
            group if group.id in trained or not _trainable(group) else replace(group, replaced=True)
            for group in self._take("train")
        ]
        metrics = self._recorder.record(groups) if groups else {}
        if any(group.refined for group in groups):
            note_refined("openrlhf", mode=self._config.mode, num_drafts=self._config.num_drafts)
        if samples:
            self._step, self._place, self._trained_any = self._step + 1, 0, True
        # All samples of a batch must have the same keys. The host logs the mean over samples, which of equal numbers is
        # the number.
        for sample in samples:
            sample.info = {**sample.info, **{name: torch.tensor([value]) for name, value in metrics.items()}}
        return samples, *others

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> Any:
        samples, consumed, exhausted = super()._generate_vllm(
            dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs
        )
        if self._purpose == "eval":
            return samples, consumed, exhausted
        kept, left_out = self._split(samples)
        missing = len(left_out)
        while True:
            # One bad reward costs its group, wherever in the data it is. A whole rollout of them, or all of a data set,
            # is a reward that is broken.
            if not kept and (len(left_out) >= num_prompts or (left_out and exhausted and not self._trained_any)):
                raise no_reward_error(left_out)
            if not missing or exhausted:
                return kept, consumed, exhausted
            more, num_more, exhausted = super()._generate_vllm(
                dataloader_iter, missing, dynamic_filtering, **generate_kwargs
            )
            more_kept, more_left_out = self._split(more)
            missing = len(more_left_out)
            kept, left_out, consumed = kept + more_kept, left_out + more_left_out, consumed + num_more

    def _process_response_into_experience(self, response: dict[str, Any], **generate_kwargs: Any) -> Any:
        experience = super()._process_response_into_experience(response, **generate_kwargs)
        group: Group | None = response.get(GROUP)
        if group is not None:
            self._groups[group.id] = group
            experience.refine_group = group.id
        elif self._purpose == "train":
            raise SeamError(
                "refine: an engine answered without refining: it runs another agent than refine_wrapper_openrlhf's. Is "
                "refine-wrapper installed, in the same version, on every machine of the cluster?"
            )
        return experience

    def _split(self, samples: list[Any]) -> tuple[list[Any], list[Group]]:
        """Samples of groups that can be trained, and the groups that are left out."""
        groups = {sample.refine_group: self._groups[sample.refine_group] for sample in samples}
        left_out = [group for group in groups.values() if not _trainable(group)]
        return [sample for sample in samples if _trainable(groups[sample.refine_group])], left_out

    def _take(self, purpose: Purpose) -> Sequence[Group]:
        """Groups of the batch that is handed to the trainer, and those that none will hold; in the order of their ids.

        Over-sampled groups wait in upstream's buffer: each is counted with the batch that has its samples.
        """
        waiting = {sample.refine_group for sample in getattr(self, "_sample_buffer", None) or []}
        taken = sorted(group for group in self._groups if group.purpose == purpose and group not in waiting)
        return [self._groups.pop(group) for group in taken]

    def _mark(self, sampling_params: Any, num_slots: int) -> Any:
        refine = self._purpose == "train" or self._config.evaluation == "refine"
        group = GroupId(self._purpose, self._step, self._place)
        self._place += 1
        return Request(self._settings, refine, group, num_slots, self._num_steps).mark(sampling_params)


def resumed_step(args: Any) -> int:
    """The trainer's step in the checkpoint that it will go on from; 0 in a new run.

    The generator is not told, and reads it where DeepSpeed does: the newest checkpoint is named after its step.
    """
    latest = Path(args.ckpt.path, "_actor", "latest")
    if not args.ckpt.load_enable or not latest.is_file():
        return 0
    step = re.search(r"global_step(\d+)", latest.read_text())
    return int(step[1]) if step else 0


def num_steps(args: Any, num_prompts: int) -> int:
    """How many rollout batches the data set makes, where no prompt is replaced by another."""
    return -(-num_prompts // args.rollout.batch_size) * args.train.num_episodes


def _trainable(group: Group) -> bool:
    """Whether every row of a group can be trained: OpenRLHF trains a group as a whole."""
    return group.trainable and all(slot.trained for slot in group.slots_S)


class _MarkingEngine:
    """A Ray handle of a rollout actor, whose ``generate_responses`` marks each request."""

    def __init__(self, engine: Any, mark: Callable[[Any, int], Any]) -> None:
        self._engine = engine
        self.generate_responses = _MarkingMethod(engine.generate_responses, mark)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class _MarkingMethod:
    def __init__(self, method: Any, mark: Callable[[Any, int], Any]) -> None:
        self._method, self._mark = method, mark

    def remote(self, *, sampling_params: Any, num_samples: int, **arguments: Any) -> Any:
        marked = self._mark(sampling_params, num_samples)
        return self._method.remote(sampling_params=marked, num_samples=num_samples, **arguments)
