"""The rounds of a group inside veRL's agent loop workers: host objects in, core calls, host objects out.

The seam: ``_run_agent_loop`` asks for the round of a row and runs the parent's loop on its prompt;
``_agent_loop_postprocess`` scores what came out as an answer to q, keeps context out of the batch, and hands on what
fills a slot, under the prompt that it is trained under. No host method is copied. Any inner loop works: it is the
parent's ``_run_agent_loop`` that runs it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import verl.trainer.ppo.v1.agent_loop_tq as host_v1
from verl.experimental.agent_loop import AgentLoopWorker

from refine_wrapper.core.failures import describe
from refine_wrapper.core.planner import Planner
from refine_wrapper.core.rollout import Rollout
from refine_wrapper.core.types import (
    Group,
    GroupId,
    Outcome,
    PlannedRound,
    Progress,
    Question,
    Sample,
    Slot,
    for_one_row,
)
from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.launch.report import note_refined
from refine_wrapper_verl.outputs import listed, prompts_on_question, put_prompts, sample_of
from refine_wrapper_verl.running import GroupHere, Kept, LoopRun, current_run
from refine_wrapper_verl.settings import plain_prompt_length, read_settings, total_steps
from refine_wrapper_verl.tokens import PromptEncoder, prompt_room

GROUP_COLUMN = "refine_group_id"
"""A column the manager adds to the prompts it hands out, and workers take off again."""


class RefineWorkerMixin:
    """Goes before an agent loop worker class of veRL."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host: Any = self
        settings = read_settings(host.config)
        self._refine_encoder = PromptEncoder(host.config, host.model_config)
        planner = Planner(settings, prompt_room(host.config, host.model_config, self._refine_encoder))
        # In a thread: tokenising q' must not hold up the event loop that feeds the engine.
        self._refine_rollout = Rollout(planner, self._refine_note, thread=True)
        self._refine_groups: dict[str, GroupHere] = {}
        self._refine_finished: list[Group] = []
        self._refine_of_steps = total_steps(host.config)
        self._refine_on_question = _with_prompt_length(self, plain_prompt_length(host.config))

    def take_finished_groups(self) -> list[Group]:
        """The groups that finished since the last call; the manager asks for them when the trainer logs."""
        taken, self._refine_finished = self._refine_finished, []
        return taken

    def note_finished_groups(self, groups_P: list[Group]) -> None:
        """What finished in all workers, for modes that learn from it."""
        self._refine_rollout.planner.note(groups_P)

    def _refine_note(self, key: Any, group: Group) -> None:
        if group.refined:
            note_refined("verl", worker=type(self).__name__, mode=group.mode)
        self._refine_finished.append(group.slim())

    def _refine_applies(self, validate: bool) -> bool:
        return not validate or self._refine_rollout.planner.config.evaluation == "refine"

    @contextmanager
    def _refine_group(self, uid: str, group_id: GroupId, num_slots: int) -> Generator[GroupHere]:
        """Hold a group for the length of a ``with`` block; nothing of it is left afterwards, however it ended."""
        group = self._refine_groups[uid] = GroupHere(group_id, num_slots)
        try:
            yield group
        finally:
            self._refine_groups.pop(uid, None)
            self._refine_rollout.discard(uid)

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool = True,
        **kwargs: Any,
    ) -> Any:
        group_id = kwargs.pop(GROUP_COLUMN, None)

        async def run(loop_run: LoopRun | None, prompt: Any, **changed: Any) -> Any:
            on_question = loop_run is None or loop_run.planned.ask.show is None
            host: Any = super(RefineWorkerMixin, self._refine_on_question if on_question else self)
            with ExitStack() as context:
                if loop_run is not None:
                    context.enter_context(loop_run.current())
                # veRL hands one dict of parameters to all sessions, and servers take entries out of it.
                return await host._run_agent_loop(
                    dict(sampling_params),
                    trajectory,
                    agent_name=agent_name,
                    trace=trace,
                    **{**kwargs, "raw_prompt": prompt, **changed},
                )

        question = kwargs["raw_prompt"]
        uid = str(kwargs.get("uid"))
        group = self._refine_groups.get(uid)
        if group is None:
            if group_id is not None and self._refine_applies(trajectory["validate"]):
                raise SeamError(
                    f"refine: {type(self).__name__} runs an agent loop for a prompt (uid {uid!r}) that came neither "
                    "through generate_sequences nor through _run_prompt. Run `refine-wrapper doctor`; supported is "
                    "veRL 0.9."
                )
            return await run(None, question)

        async def sample_context(planned: PlannedRound, index: int) -> Sample:
            changed = {"session_id": group.num_slots + index} if "session_id" in kwargs else {}
            loop_run = LoopRun(group, for_one_row(question), planned, index=index)
            return await run(loop_run, planned.row_prompt(), **changed)

        columns = {name: value for name, value in kwargs.items() if name not in ("raw_prompt", "uid", "session_id")}
        with self._refine_rollout.join(uid, group.num_slots, kwargs.get("session_id")) as member:
            try:
                planned = await member.turn(
                    Question(group.id, question, columns),
                    sample_context,
                    Progress(int(trajectory["step"]), self._refine_of_steps),
                )
            except Exception as error:
                group.error = error
                raise
            return await run(LoopRun(group, for_one_row(question), planned, member), planned.row_prompt())

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> Any:
        host: Any = super()
        worker: Any = self
        loop_run = current_run()
        if loop_run is None:
            return await host._agent_loop_postprocess(output, validate, **kwargs)
        # Rewards and what is stored see q: the host merges these fields into what reward functions get.
        kwargs["raw_prompt"] = loop_run.question
        outputs = listed(output)
        sample = sample_of(outputs, worker.tokenizer, worker.rollout_config.response_length)
        on_question = self._on_question(loop_run, outputs)
        error: Exception | None = None
        try:
            sample = await self._scored(sample, outputs, on_question, kwargs)
        except Exception as raised:
            error = raised
            sample = replace(sample, outcome=Outcome.REWARD_EXCEPTION, detail=describe(error))
        if loop_run.member is None:
            if error is None and self._may_take:
                loop_run.group.kept[loop_run.index] = Kept(output, on_question)
            return sample
        try:
            slot = await loop_run.member.report(sample)
        except Exception as raised:
            loop_run.group.error = raised
            raise
        taken = loop_run.group.kept.get(slot.sample)
        if taken is not None:
            output, on_question = taken.output, taken.on_question
        elif error is not None:
            raise error  # the host's own matter: this row, and with it perhaps its group, has failed
        _fill(slot, listed(output), on_question)
        return await host._agent_loop_postprocess(output, validate, **kwargs)

    async def _compute_score(self, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        """The host's own scoring, once: where there is no reward, the host asks again for what was scored above."""
        host: Any = super()
        if current_run() is None:
            await host._compute_score(outputs, kwargs)

    async def _scored(
        self, sample: Sample, outputs: list[Any], on_question: list[list[int]], kwargs: dict[str, Any]
    ) -> Sample:
        """Scored by the host as an answer to q: no reward can read what q' showed."""
        if not outputs:
            return sample
        host: Any = super()
        sampled_on = [list(output.prompt_ids) for output in outputs]
        put_prompts(outputs, on_question)
        try:
            await host._compute_score(outputs, kwargs)
        finally:
            put_prompts(outputs, sampled_on)
        return self._refine_rollout.planner.scored(sample, outputs[-1].reward_score)

    def _on_question(self, loop_run: LoopRun, outputs: list[Any]) -> list[list[int]]:
        """The prompt ids of a loop's outputs, as answers to q."""
        group = loop_run.group
        if not outputs:
            return []
        if loop_run.planned.ask.show is None:
            if group.question_ids is None:
                group.question_ids = list(outputs[0].prompt_ids)
            return [list(output.prompt_ids) for output in outputs]
        if group.question_ids is None:
            group.question_ids = self._refine_encoder.encode(loop_run.question)
        return prompts_on_question(outputs, group.question_ids)

    @property
    def _may_take(self) -> bool:
        planner = self._refine_rollout.planner
        return planner.mode.may_take(planner.rules)


def _fill(slot: Slot, outputs: list[Any], on_question: list[list[int]]) -> None:
    """Make a loop's outputs what fills a slot."""
    if slot.on_question:
        put_prompts(outputs, on_question)
    if not slot.trained:
        for output in outputs:
            # As veRL treats what tools said: part of the sequence, not of the loss.
            output.response_mask = [0] * len(output.response_mask)


def _with_prompt_length(worker: Any, prompt_length: int) -> Any:
    """The worker as the plain run has it for prompts on q: its loops cut q where the plain host does."""
    if int(worker.config.actor_rollout_ref.rollout.prompt_length) == prompt_length:
        return worker
    view = copy.copy(worker)
    view.config = copy.deepcopy(worker.config)
    view.config.actor_rollout_ref.rollout.prompt_length = prompt_length
    return view


class RefineAgentLoopWorker(RefineWorkerMixin, AgentLoopWorker):
    """The worker of the legacy V0 trainer: a batch of rows in, a batch out. All rows of a group are in one batch."""

    async def generate_sequences(self, batch: Any) -> Any:
        host: Any = super()
        if not self._refine_applies(batch.meta_info.get("validate", False)):
            return await host.generate_sequences(batch)
        columns: Mapping[str, Any] = batch.non_tensor_batch
        uids = [str(uid) for uid in columns["uid"]]
        ids: dict[str, GroupId] = dict(zip(uids, columns[GROUP_COLUMN], strict=True))
        with ExitStack() as groups:
            for uid, count in Counter(uids).items():
                groups.enter_context(self._refine_group(uid, ids[uid], count))
            return await host.generate_sequences(batch)

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> Any:
        loop_run = current_run()
        if loop_run is not None:
            output.extra_fields["raw_prompt"] = loop_run.question  # as the host does before it scores
        return await super()._agent_loop_postprocess(output, validate, **kwargs)


class RefineAgentLoopWorkerTQ(RefineWorkerMixin, host_v1.AgentLoopWorkerTQ.__ray_actor_class__):
    """The worker of the V1 trainers: each prompt is a task that puts its samples into TransferQueue."""

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        host: Any = super()
        validate = trajectory["validate"]
        # Of a prompt that asks for greedy sampling all samples would be the same.
        if not self._refine_applies(validate) or not prompt.get("__do_sample__", True):
            prompt.pop(GROUP_COLUMN, None)
            await host._run_prompt(prompt, sampling_params, trajectory, trace)
            return
        uid, group_id = prompt["uid"], prompt.pop(GROUP_COLUMN)
        settings: Any = self.config.actor_rollout_ref.rollout
        plain = settings.val_kwargs.n if validate else settings.n
        with self._refine_group(uid, group_id, int(prompt.get("__rollout_n__", plain))) as group:
            await host._run_prompt(prompt, sampling_params, trajectory, trace)
        if group.error is not None:
            # A failed prompt is evicted and another sampled, for ever. A status that the trainer's replay buffer does
            # not know ends the run, with these words.
            tag = {"is_prompt": True, "global_steps": trajectory["step"], "status": str(group.error)}
            await host_v1.tq.async_kv_put(key=uid, partition_id="val" if validate else "train", tag=tag)
