"""Both stages inside veRL's agent loop workers: host objects in, core calls, host objects out.

The seam: ``_run_agent_loop`` runs Stage 1 once per group and hands q' on; ``_agent_loop_postprocess`` scores a draft
and keeps it out of the batch, and gives a refinement its original question back; ``_compute_score`` is the training
reward path. No host method is copied. Any inner loop works: it is the parent's ``_run_agent_loop`` that runs it, for
drafts and refinements alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from verl.experimental.agent_loop import AgentLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.rollout import Rollout
from refine_wrapper.core.types import Action, DraftOutcome, GroupOutcome, SampledDraft
from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.launch.report import note_refined
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper_verl.finished import FinishedGroups
from refine_wrapper_verl.running import Group, Running, Sample, running
from refine_wrapper_verl.settings import read_settings
from refine_wrapper_verl.tokens import prompt_room

GROUP_COLUMN = "refine_group_id"
"""A column the manager adds to the prompts it hands out, and workers take off again."""


class RefineWorkerMixin:
    """Goes before an agent loop worker class of veRL."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host: Any = self
        settings = read_settings(host.config)
        self._refine_finished = FinishedGroups()
        plugins = Plugins(settings.plugin_modules)
        plugins.register(self._refine_finished, "refine_wrapper_verl.finished")
        self._refiner = Refiner(settings, prompt_room(host.config, host.model_config), plugins)
        self._rollout = Rollout(self._refiner)
        self._refine_groups: dict[str, Group] = {}

    def take_finished_groups(self) -> list[GroupOutcome]:
        """The groups that finished since the last call; the manager asks for them when the trainer logs."""
        return self._refine_finished.take()

    def _refine_applies(self, validate: bool) -> bool:
        return not validate or self._refiner.config.evaluation == "refine"

    @contextmanager
    def _refine_group(self, uid: str, group_id: str, num_members: int) -> Generator[None]:
        """Hold a group for the length of a ``with`` block; nothing of it is left afterwards, however it ended."""
        self._refine_groups[uid] = Group(str(group_id), num_members)
        try:
            yield
        finally:
            self._refine_groups.pop(uid, None)
            self._rollout.discard(uid)

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool = True,
        **kwargs: Any,
    ) -> Any:
        host: Any = super()
        kwargs.pop(GROUP_COLUMN, None)
        if not self._refine_applies(trajectory["validate"]):
            return await host._run_agent_loop(sampling_params, trajectory, agent_name=agent_name, trace=trace, **kwargs)
        group = self._refine_groups.get(kwargs["uid"])
        if group is None:
            raise SeamError(
                f"refine: {type(self).__name__} runs an agent loop for a prompt (uid {kwargs['uid']!r}) that came "
                "neither through generate_sequences nor through _run_prompt. Run `refine-wrapper doctor`; supported is "
                "veRL 0.9."
            )

        async def run(loop: Running, params: dict[str, Any], **changed: Any) -> Any:
            with loop.current():
                return await host._run_agent_loop(
                    params, trajectory, agent_name=agent_name, trace=trace, **{**kwargs, **changed}
                )

        async def sample_draft(index: int) -> SampledDraft:
            # veRL hands one dict of parameters to all sessions, and servers take entries out of it.
            changed = {"session_id": group.num_members + index} if "session_id" in kwargs else {}
            return await self._sample_draft(Running(group), lambda loop: run(loop, dict(sampling_params), **changed))

        question = kwargs["raw_prompt"]
        with self._rollout.join(kwargs["uid"], group.num_members) as member:
            # Stage 1 is a task that inherits this context: counting tokens finds the group through it.
            loop = Running(group)
            with loop.current():
                loop.plan = await member.plan(group.group_id, question, sample_draft)
            if loop.plan.drafts_N:
                note_refined("verl", worker=type(self).__name__, num_drafts=len(loop.plan.drafts_N))
            refined = loop.plan.action is Action.REFINE
            result = await run(loop, sampling_params, raw_prompt=loop.plan.prompt if refined else question)
            if loop.outputs:
                sample = self._sample(loop)
                member.report(sample.refinement(), step=trajectory["step"], policy_version=sample.policy_version)
            return result

    async def _sample_draft(self, loop: Running, run: Any) -> SampledDraft:
        """One draft by the host's own loop, scored by its reward path. What fails before it is sampled raises."""
        try:
            await run(loop)
        except Exception as error:
            if not loop.outputs:
                raise
            # A Ray error repeats the remote traceback; its first line and its last say what happened.
            lines = str(error).strip().splitlines() or [""]
            return self._sample(loop).draft(DraftOutcome.REWARD_EXCEPTION, f"{type(error).__name__}: {lines[-1]}")
        return self._sample(loop).draft() if loop.outputs else SampledDraft()

    def _sample(self, loop: Running) -> Sample:
        host: Any = self
        return Sample.of(loop, host.tokenizer, host.rollout_config.response_length)

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> Any:
        host: Any = super()
        loop = running()
        if loop is None:
            return await host._agent_loop_postprocess(output, validate, **kwargs)
        outputs = output if isinstance(output, list) else [output]
        loop.note(outputs)
        if loop.plan is None:
            # A draft: scored, never stored. TransferQueue would train on whatever is put into it.
            if outputs:
                self._note_question(loop.group, outputs[0].prompt_ids, kwargs["raw_prompt"])
                await self._compute_score(outputs, kwargs)
            return None
        # Rewards and what is stored see q: the host merges these fields into what reward functions get.
        kwargs["raw_prompt"] = loop.plan.question
        if not loop.plan.trained:
            for untrained in outputs:
                # As veRL treats what tools said: part of the sequence, not of the loss.
                untrained.response_mask = [0] * len(untrained.response_mask)
        return await host._agent_loop_postprocess(output, validate, **kwargs)

    async def _compute_score(self, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        """The host's own scoring, of a refinement as an answer to q: no reward can read the draft in q'."""
        host: Any = super()
        loop = running()
        question_ids = None if loop is None else loop.group.question_ids
        if loop is None or loop.plan is None or loop.plan.action is not Action.REFINE or question_ids is None:
            await host._compute_score(outputs, kwargs)
            return
        prompt_ids = [output.prompt_ids for output in outputs]
        try:
            for output in outputs:
                # Later outputs of a loop that returns several may continue from other prompts; those are its own.
                if output.prompt_ids == prompt_ids[0]:
                    output.prompt_ids = question_ids
            await host._compute_score(outputs, kwargs)
        finally:
            for output, own in zip(outputs, prompt_ids, strict=True):
                output.prompt_ids = own

    def _note_question(self, group: Group, prompt_ids: list[int], question: Any) -> None:
        if group.question_ids is None:
            group.question_ids = list(prompt_ids)
            group.overhead = 0
            group.overhead = max(0, len(prompt_ids) - self._refiner.room.count_tokens(question))


class RefineAgentLoopWorker(RefineWorkerMixin, AgentLoopWorker):
    """The worker of the legacy V0 trainer: a batch of rows in, a batch out. All rows of a group are in one batch."""

    async def generate_sequences(self, batch: Any) -> Any:
        host: Any = super()
        if not self._refine_applies(batch.meta_info.get("validate", False)):
            return await host.generate_sequences(batch)
        uids = [str(uid) for uid in batch.non_tensor_batch["uid"]]
        names = batch.non_tensor_batch.get(GROUP_COLUMN, uids)
        group_ids = dict(zip(uids, names, strict=True))
        with ExitStack() as groups:
            for uid, count in Counter(uids).items():
                groups.enter_context(self._refine_group(uid, group_ids[uid], count))
            return await host.generate_sequences(batch)


class RefineAgentLoopWorkerTQ(RefineWorkerMixin, AgentLoopWorkerTQ.__ray_actor_class__):
    """The worker of the V1 trainers: each prompt is a task that puts its samples into TransferQueue."""

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        host: Any = super()
        group_id = prompt.pop(GROUP_COLUMN, prompt["uid"])
        if not self._refine_applies(trajectory["validate"]):
            await host._run_prompt(prompt, sampling_params, trajectory, trace)
            return
        settings: Any = self.config.actor_rollout_ref.rollout
        plain = settings.val_kwargs.n if trajectory["validate"] else settings.n
        with self._refine_group(prompt["uid"], group_id, int(prompt.get("__rollout_n__", plain))):
            await host._run_prompt(prompt, sampling_params, trajectory, trace)
