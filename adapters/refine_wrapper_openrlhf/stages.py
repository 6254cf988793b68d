"""Both stages of the prompts of one rollout engine: host objects in, core calls, host objects out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.rollout import Rollout
from refine_wrapper.core.types import (
    Action,
    DraftOutcome,
    GroupOutcome,
    GroupPlan,
    Prompt,
    PromptRoom,
    Refinement,
    SampledDraft,
)
from refine_wrapper.errors import NoRewardError
from refine_wrapper.hosts.budget import prompt_room
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_openrlhf.priorities import at_priority, take_priorities
from refine_wrapper_openrlhf.request import unmarked

Response = dict[str, Any]
"""What upstream's ``execute`` returns: one sample with tokens, action ranges, reward, logs."""

Row = tuple[Response, Refinement]
"""A response, which may still be changed until its group is finished, and what the core knows of it."""

GroupFinished = Callable[[Refiner, GroupOutcome, Sequence[Row]], None]
"""Called with a finished group and its rows."""

# Tokens that the images of a prompt take beside its text. A context variable, because the core counts the tokens of
# a prompt (q, q') where the images are not at hand, and the G prompts of a rollout are in flight at once.
_image_tokens: ContextVar[int] = ContextVar("image_tokens", default=0)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of ``AgentExecutor.execute``: one member of a group.

    Attributes:
        params: The sampling parameters; one object for all members of a group, another one for every other group.
        host: What newer versions of the host hand over beside (``images``).
    """

    prompt: str
    label: Any
    params: Any
    max_length: int
    tokenizer: Any
    engine: Any
    host: Mapping[str, Any]

    async def run(self, executor: Any, prompt: str, params: Any) -> Response:
        """Let an upstream executor answer a prompt."""
        return await executor.execute(
            prompt=prompt,
            label=self.label,
            sampling_params=params,
            max_length=self.max_length,
            hf_tokenizer=self.tokenizer,
            llm_engine=self.engine,
            **self.host,
        )

    def answer_tokens(self) -> int:
        """The longest answer. Where the host leaves it open (the rest of the context), half of the context."""
        return self.params.max_tokens or max(1, self.max_length // 2)


class _Identity:
    """Key of a group: the object that all its members share. Holds it, so that its id is not given away again."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._shared is other._shared

    def __hash__(self) -> int:
        return id(self._shared)


@dataclass(slots=True)
class _Group:
    question_ids: list[int] | None = None
    rows: list[Row] = field(default_factory=list[Row])


class TwoStages:
    """Refinement in one engine actor. All decisions come from the core's :class:`Refiner`.

    Args:
        config: The resolved settings; active.
        reward_urls: A ``.py`` file with ``reward_func``, or addresses of reward servers.
        on_finished: Called when the last member of a group has its refinement.
        observe: Whether this process writes the trace and calls observers.
    """

    def __init__(
        self, config: RefineConfig, reward_urls: Sequence[str], on_finished: GroupFinished, *, observe: bool
    ) -> None:
        self._config = config
        self._observe = observe
        self._on_finished = on_finished
        # Upstream's executor twice: one that scores what it samples, and one that only samples.
        self._scoring = SingleTurnAgentExecutor(list(reward_urls))
        self._sampling = SingleTurnAgentExecutor()
        self._refiners: dict[tuple[int, int], tuple[Refiner, Rollout]] = {}
        self._groups: dict[Hashable, _Group] = {}

    async def single_shot(self, call: Call) -> Response:
        """One answer to q, as the plain host gives it."""
        return await call.run(self._scoring, call.prompt, unmarked(call.params))

    async def refined(self, call: Call, group_id: str, step: int | None) -> Response:
        """One member's refinement; the first member of a group to arrive runs Stage 1 for all.

        The response is upstream's, for the original prompt, with q' and the refinement as its tokens.
        """
        refiner, rollout = self._rollout(call)
        take_priorities(call.engine)
        key = _Identity(call.params)
        group = self._groups.setdefault(key, _Group())
        _image_tokens.set(self._count_image_tokens(call))
        # Upstream starts the members of a group together (one asyncio.gather), and each waits for Stage 1: so all have
        # arrived before the first one leaves, whatever G is.
        with rollout.join(key, num_members=1) as member:
            plan = await member.plan(group_id, call.prompt, partial(self._sample_draft, call, group))
            with at_priority(plan.priority):
                response, sampled = await self._sample_refinement(call, group, plan)
            refinement = refiner.refinement(sampled)
            member.report(refinement, step=step)
            group.rows.append((response, refinement))
        return response

    async def _sample_draft(self, call: Call, group: _Group, index: int) -> SampledDraft:
        """One draft on q with the training sampling parameters, scored by the training reward."""
        params = unmarked(call.params)
        params.logprobs = None  # drafts are never trained
        params.max_tokens = call.answer_tokens()
        response = await call.run(self._sampling, call.prompt, params)
        token_ids, start = response["observation_tokens"], response["action_ranges"][-1][0]
        group.question_ids = list(token_ids[:start])
        _, sampled = await self._score(call, response, token_ids)
        return sampled

    async def _sample_refinement(self, call: Call, group: _Group, plan: GroupPlan) -> tuple[Response, SampledDraft]:
        """One sample on the planned prompt, scored as an answer to q: the reward never sees the draft."""
        assert isinstance(plan.prompt, str), "OpenRLHF renders prompts as text"
        response = await call.run(self._sampling, plan.prompt, unmarked(call.params))
        response["prompt"] = call.prompt
        token_ids = response["observation_tokens"]
        if plan.action is Action.REFINE:
            start, end = response["action_ranges"][-1]
            assert group.question_ids is not None, "a refined group has a draft that was sampled"
            token_ids = group.question_ids + list(token_ids[start:end])
        scoring = self._score(call, response, token_ids)
        try:
            rewards, sampled = await asyncio.wait_for(scoring, self._config.draft_timeout)
        except (asyncio.TimeoutError, TimeoutError):
            rewards, sampled = (
                None,
                self._sampled(
                    call, response, failure=DraftOutcome.TIMEOUT, detail="scoring took longer than draft_timeout"
                ),
            )
        if rewards is not None:
            scores = rewards.get("scores")
            response.update(
                reward=rewards.get("rewards"),
                scores=rewards.get("rewards") if scores is None else scores,
                extra_logs=rewards.get("extra_logs") or {},
            )
        return response, sampled

    async def _score(
        self, call: Call, response: Response, query_ids: Sequence[int]
    ) -> tuple[Mapping[str, Any] | None, SampledDraft]:
        """Ask the user's reward, on upstream's own way, for an answer to q. What it raises is a value here."""
        query = call.tokenizer.decode(query_ids, skip_special_tokens=False)
        executor = self._scoring
        fetch = executor._fetch_rewards_via_func if executor.reward_func else executor._fetch_rewards_via_http
        try:
            answers = await fetch([query], [call.prompt], [call.label])
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            return None, self._sampled(call, response, failure=DraftOutcome.REWARD_EXCEPTION, detail=detail)
        rewards = answers[0] if answers else None
        if not isinstance(rewards, Mapping):
            detail = f"the reward returned {type(rewards).__name__}, not a dict with 'rewards'"
            return None, self._sampled(call, response, failure=DraftOutcome.NO_REWARD, detail=detail)
        return rewards, self._sampled(call, response, reward=rewards.get("rewards"))

    def _sampled(self, call: Call, response: Response, **scored: Any) -> SampledDraft:
        start, end = response["action_ranges"][-1]
        return SampledDraft(
            text=call.tokenizer.decode(response["observation_tokens"][start:end], skip_special_tokens=True),
            num_tokens=end - start,
            finished=not response.get("truncated", False),  # 0.9.5 and older do not say
            **scored,
        )

    def _rollout(self, call: Call) -> tuple[Refiner, Rollout]:
        """The core's part, made by the first call: only calls bring the tokenizer and the lengths."""
        limits = (call.max_length, call.answer_tokens())
        if limits not in self._refiners:
            refiner = Refiner(self._config, make_room(call.tokenizer, *limits), observe=self._observe)
            self._refiners[limits] = refiner, Rollout(refiner, on_finished=partial(self._finish, refiner))
        return self._refiners[limits]

    def _finish(self, refiner: Refiner, key: Hashable, outcome: GroupOutcome) -> None:
        self._on_finished(refiner, outcome, self._groups.pop(key).rows)

    def _count_image_tokens(self, call: Call) -> int:
        images = call.host.get("images")
        if not images or not hasattr(call.tokenizer, "image_processor"):
            return 0
        from openrlhf.utils.vlm_utils import process_prompt_with_images

        with_images = process_prompt_with_images(call.tokenizer, call.prompt, images)[0]
        return len(with_images) - count_tokens(text_tokenizer(call.tokenizer), call.prompt)


def no_reward_error(outcomes: Sequence[GroupOutcome]) -> NoRewardError:
    """Says what the reward did instead, once per kind of failure."""
    failures = dict.fromkeys(r.failure for outcome in outcomes for r in outcome.refinements_G if r.failure)
    return NoRewardError(
        f"refine: the reward failed on every refinement of {len(outcomes)} prompt(s): {'; '.join(list(failures)[:3])}. "
        "Check --reward.remote_url (a .py file with reward_func(queries, prompts, labels), or the address of a running "
        "server): it must give one finite number per query."
    )


def make_room(tokenizer: Any, max_length: int, answer_tokens: int) -> PromptRoom:
    """How upstream's executor tokenises prompts, and the longest one that leaves room for a full answer."""
    tokenizer = text_tokenizer(tokenizer)
    return PromptRoom(
        tokenizer=tokenizer,
        count_tokens=lambda prompt: count_tokens(tokenizer, prompt) + _image_tokens.get(),
        max_prompt_tokens=prompt_room(max_length, answer_tokens),
    )


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, where the host hands over a processor of text and images."""
    return tokenizer.tokenizer if hasattr(tokenizer, "image_processor") else tokenizer


def count_tokens(tokenizer: Any, prompt: Prompt) -> int:
    """Tokens of a text prompt, as upstream's executor tokenises it."""
    return len(tokenizer(text=prompt, add_special_tokens=False)["input_ids"])
