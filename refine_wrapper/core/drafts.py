"""From what a host sampled to a typed Draft: every way in which a draft can fail gets a name here."""

from __future__ import annotations

import math
from typing import Any

from refine_wrapper.core.prompts.thinking import strip_thinking
from refine_wrapper.core.types import Draft, DraftOutcome, Refinement, SampledDraft
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig


def type_draft(sampled: SampledDraft, index: int, config: RefineConfig, plugins: Plugins) -> Draft:
    """Classify one sampled draft. Never raises: one bad draft or reward must not end a run."""
    text = strip_thinking(sampled.text) if config.strip_thinking else sampled.text
    outcome, reward, detail = _score(sampled, plugins)
    if outcome is DraftOutcome.OK and not text.strip():
        outcome = DraftOutcome.EMPTY
    return Draft(
        index=index,
        text=text,
        reward=reward,
        num_tokens=sampled.num_tokens,
        finished=sampled.finished,
        outcome=outcome,
        detail=detail,
        policy_version=sampled.policy_version,
    )


def type_refinement(sampled: SampledDraft, plugins: Plugins) -> Refinement:
    """The same for a Stage-2 sample, on hosts where its reward may fail. Never raises."""
    outcome, reward, detail = _score(sampled, plugins)
    failure = "" if outcome is DraftOutcome.OK else outcome.value + (f": {detail}" if detail else "")
    return Refinement(sampled.text, reward, sampled.num_tokens, sampled.finished, failure)


def _score(sampled: SampledDraft, plugins: Plugins) -> tuple[DraftOutcome, float | None, str]:
    if sampled.failure is not None:
        return sampled.failure, None, sampled.detail
    if sampled.reward is None:
        return DraftOutcome.NO_REWARD, None, sampled.detail
    try:
        answer: Any = plugins.hook.normalize_reward(reward=sampled.reward)
        reward = None if answer is None else float(answer)
    except Exception as error:  # a plugin's or a reward's own trouble, whatever it is, costs this draft only
        return DraftOutcome.REWARD_EXCEPTION, None, f"{type(error).__name__}: {error}"
    if reward is None:
        return DraftOutcome.WRONG_LENGTH, None, f"not one number: {sampled.reward!r:.200}"
    if not math.isfinite(reward):
        return DraftOutcome.NON_FINITE, None, str(reward)
    return DraftOutcome.OK, reward, ""
