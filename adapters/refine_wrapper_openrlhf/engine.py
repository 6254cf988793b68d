"""The groups of one rollout engine: host objects in, core calls, host objects out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakValueDictionary

from openrlhf.utils.agent import SingleTurnAgentExecutor

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
    Use,
)
from refine_wrapper.errors import NoRewardError
from refine_wrapper.hosts.start import HostFacts, check_start
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_openrlhf.call import Call, Response, make_room
from refine_wrapper_openrlhf.priorities import at_priority, take_priorities
from refine_wrapper_openrlhf.request import unmarked

GroupFinished = Callable[[Group, Sequence[Response]], None]
"""Called with a finished group and the responses in its slots, which may still be changed."""


@dataclass
class _Rows:
    """What was sampled of a group. Lives as long as its members run.

    Attributes:
        question: What the group is asked.
        question_ids: Token ids of q, once something was sampled on it.
        of_members: The response of each member, by its slot.
        in_reserve: Responses that may take a member's slot, by their sample's index.
    """

    question: Question
    question_ids: list[int] = field(default_factory=list[int])
    of_members: dict[int, Response] = field(default_factory=dict[int, Response])
    in_reserve: dict[int, Response] = field(default_factory=dict[int, Response])

    def in_slot(self, number: int, slot: Slot) -> Response:
        """The response that fills a slot."""
        return self.in_reserve.get(slot.sample, self.of_members[number])


class EngineRollout:
    """Samples groups in one engine actor, each as the mode says. All decisions come from the core's :class:`Planner`.

    Args:
        config: The resolved settings; active.
        reward_urls: A ``.py`` file with ``reward_func``, or addresses of reward servers.
        on_finished: Called when all slots of a group are filled.
    """

    def __init__(self, config: RefineConfig, reward_urls: Sequence[str], on_finished: GroupFinished) -> None:
        self._config = config
        self._on_finished = on_finished
        # Upstream's executor twice: one that scores what it samples, and one that only samples.
        self._scoring = SingleTurnAgentExecutor(list(reward_urls))
        self._sampling = SingleTurnAgentExecutor()
        self._rollouts: dict[tuple[int, int], Rollout] = {}
        self._rows: WeakValueDictionary[Hashable, _Rows] = WeakValueDictionary()

    async def single_shot(self, call: Call) -> Response:
        """One answer to q, as the plain host gives it."""
        return await call.run(self._scoring, call.prompt, unmarked(call.params))

    async def member(self, call: Call, key: Hashable, group: GroupId, num_slots: int, progress: Progress) -> Response:
        """The response in one slot of a group: upstream's, for the original prompt, with the tokens it is trained on.

        Args:
            call: The host's, for this member.
            key: What all members of the group have in common, and no other.
            group: Identity of the group, if this is its first member.
            num_slots: S, how many members the host calls.
            progress: How far the run is.

        Raises:
            ConfigError: If the mode cannot work with this group size, or with a correction by the sampler's log-probs.
        """
        rollout = self._rollout(call)
        planner = rollout.planner
        rows = self._rows.get(key)
        if rows is None:
            self._check(planner, call, num_slots)
            take_priorities(call.engine)
            rows = _Rows(Question(group, call.prompt, {"label": call.label}, call.image_tokens()))
            self._rows[key] = rows
        with rollout.join(key, num_slots) as member:
            planned = await member.turn(rows.question, partial(self._sample_context, planner, call, rows), progress)
            with at_priority(planned.priority):
                response = await call.run(self._sampling, planned.row_prompt(), unmarked(call.params))
            rows.of_members[member.number] = response
            try:
                scoring = self._scored(planner, call, rows, planned, response)
                sample = await asyncio.wait_for(scoring, self._config.draft_timeout)
            except (asyncio.TimeoutError, TimeoutError):
                detail = "scoring took longer than draft_timeout"
                sample = self._sample(call, response, outcome=Outcome.TIMEOUT, detail=detail)
            slot = await member.report(sample)
        response = rows.in_slot(member.number, slot)
        if slot.on_question:
            _put_under_question(response, rows.question_ids)
        return response

    async def _sample_context(
        self, planner: Planner, call: Call, rows: _Rows, planned: PlannedRound, index: int
    ) -> Sample:
        """One sample of a round that fills no slots, by the training sampling parameters and the training reward."""
        params = unmarked(call.params)
        if planned.ask.use is Use.CONTEXT:
            params.logprobs = None  # never trained
            params.max_tokens = call.answer_tokens()
        with at_priority(planned.priority):
            response = await call.run(self._sampling, planned.row_prompt(), params)
        if planned.ask.use is Use.TAKE:
            rows.in_reserve[index] = response
        return await self._scored(planner, call, rows, planned, response)

    async def _scored(
        self, planner: Planner, call: Call, rows: _Rows, planned: PlannedRound, response: Response
    ) -> Sample:
        """Ask the user's reward, on upstream's own way, for an answer to q: it never sees what the prompt showed.

        What the reward raises is a value here.
        """
        tokens = list(response["observation_tokens"])
        start, end = response["action_ranges"][-1]
        if planned.ask.show is None:
            rows.question_ids = tokens[:start]
        query = call.tokenizer.decode(rows.question_ids + tokens[start:end], skip_special_tokens=False)
        executor = self._scoring
        fetch = executor._fetch_rewards_via_func if executor.reward_func else executor._fetch_rewards_via_http
        try:
            answers = await fetch([query], [call.prompt], [call.label])
        except Exception as error:
            return self._sample(call, response, outcome=Outcome.REWARD_EXCEPTION, detail=describe(error))
        rewards = answers[0] if answers else None
        if not isinstance(rewards, Mapping):
            detail = f"the reward returned {type(rewards).__name__}, not a dict with 'rewards'"
            return self._sample(call, response, outcome=Outcome.NO_REWARD, detail=detail)
        sample = planner.scored(self._sample(call, response), rewards.get("rewards"))
        if sample.rewarded:
            # Only then: the trainer leaves out groups with a row that is not, and until then nothing in it may have a
            # shape that tensors do not take.
            scores = rewards.get("scores")
            response.update(
                reward=rewards.get("rewards"),
                scores=rewards.get("rewards") if scores is None else scores,
                extra_logs=rewards.get("extra_logs") or {},
            )
        return sample

    def _sample(self, call: Call, response: Response, outcome: Outcome = Outcome.OK, detail: str = "") -> Sample:
        tokens = response["observation_tokens"]
        start, end = response["action_ranges"][-1]
        return Sample(
            text=call.tokenizer.decode(tokens[start:end], skip_special_tokens=True),
            token_ids=tuple(tokens[start:end]),
            num_tokens=end - start,
            finished=not response.get("truncated", False),  # 0.9.5 and older do not say
            outcome=outcome,
            detail=detail,
            prompt_ids=tuple(tokens[:start]),
        )

    def _rollout(self, call: Call) -> Rollout:
        """The core's part, made by the first call: only calls bring the tokenizer and the lengths."""
        limits = (call.max_length, call.answer_tokens())
        if limits not in self._rollouts:
            planner = Planner(self._config, make_room(call.tokenizer, *limits))
            self._rollouts[limits] = Rollout(planner, partial(self._finish, planner), thread=True)
        return self._rollouts[limits]

    def _check(self, planner: Planner, call: Call, num_slots: int) -> None:
        """What the launcher checks at start; an agent file learns it from its calls."""
        corrected = "OpenRLHF's importance-sampling correction"
        corrections = (
            {corrected: "--algo.advantage.is_correction_level off"} if call.params.logprobs is not None else {}
        )
        setting = "--rollout.n_samples_per_prompt"
        facts = HostFacts("openrlhf", "OpenRLHF", num_slots, num_slots, setting, corrections=corrections)
        check_start(facts, planner.config, planner.plugins)

    def _finish(self, planner: Planner, key: Hashable, group: Group) -> None:
        rows = self._rows[key]
        planner.note([group])
        if len(group.slots_S) == group.num_slots:  # or else a member failed, and the host ends the request
            self._on_finished(group, [rows.in_slot(number, slot) for number, slot in enumerate(group.slots_S)])


def no_reward_error(groups: Sequence[Group]) -> NoRewardError:
    """Says why groups were left out, once per kind of failure."""
    why = dict.fromkeys(
        f"{sample.outcome.value}{f': {sample.detail}' if sample.detail else ''}"
        for group in groups
        for sample in group.samples
        if not sample.usable
    )
    why = why or dict.fromkeys(f"{group.cause.value}: {group.reason}" for group in groups if group.cause)
    return NoRewardError(
        f"refine: none of {len(groups)} prompt(s) in a row could be trained: {'; '.join(list(why)[:3])}. "
        "Check --reward.remote_url (a .py file with reward_func(queries, prompts, labels), or the address of a running "
        "server): it must give one finite number per query."
    )


def _put_under_question(response: Response, question_ids: Sequence[int]) -> None:
    """Make a row that was sampled on q' an answer to q."""
    start, end = response["action_ranges"][-1]
    length = len(question_ids)
    logprobs = response["rollout_log_probs"]
    response.update(
        observation_tokens=[*question_ids, *response["observation_tokens"][start:end]],
        action_ranges=[(length, length + end - start)],
        rollout_log_probs=None if logprobs is None else [0.0] * length + logprobs[start:end],
    )
