"""The decision path: fallbacks, shares, and what a plugin may decide."""

from __future__ import annotations

import pytest
from core_standins import chatml, refiner_with, scored

from refine_wrapper import hookimpl
from refine_wrapper.core.types import Action, DraftOutcome, FallbackCause, SampledDraft
from refine_wrapper.errors import ConfigError, NoDraftError


@pytest.mark.parametrize(("policy", "action"), [("plain", Action.PLAIN), ("skip", Action.SKIP)])
def test_no_usable_draft(policy: str, action: Action) -> None:
    plan = refiner_with(on_no_draft=policy).plan("g", "q", scored(None, float("inf")))
    assert (plan.action, plan.cause, plan.prompt) == (action, FallbackCause.NO_USABLE_DRAFT, "q")
    assert plan.trained is (policy == "plain")


def test_no_usable_draft_can_be_an_error_that_says_why() -> None:
    with pytest.raises(NoDraftError, match=r"'g' cannot be refined.*draft 0: no_reward; draft 1: non_finite \(nan\)"):
        refiner_with(on_no_draft="error").plan("g", "q", scored(None, float("nan")))


def test_no_room_for_any_draft() -> None:
    plan = refiner_with(limit=20).plan("g", "q" * 10, scored(1.0))
    assert (plan.action, plan.cause) == (Action.PLAIN, FallbackCause.NO_ROOM)
    assert plan.drafts_N[0].outcome is DraftOutcome.OVER_BUDGET


def test_an_over_long_question_is_the_hosts() -> None:
    for policy in ("plain", "skip", "error"):
        plan = refiner_with(limit=5, on_no_draft=policy).plan_before_drafts("g", "q" * 10)
        assert plan is not None
        assert (plan.action, plan.cause) == (Action.PLAIN, FallbackCause.QUESTION_TOO_LONG)


def test_a_prompt_without_a_place_for_a_draft() -> None:
    plan = refiner_with(tokenizer=chatml()).plan("g", [{"role": "system", "content": "x"}], scored(1.0))
    assert (plan.action, plan.cause) == (Action.PLAIN, FallbackCause.UNSUPPORTED_PROMPT)


def test_refine_share() -> None:
    refiner = refiner_with(refine_share=0.3)
    plans = [refiner.plan_before_drafts(f"g{n}", "q") for n in range(2000)]
    left = [plan for plan in plans if plan is not None]
    assert all(plan.cause is FallbackCause.NOT_CHOSEN and plan.action is Action.PLAIN for plan in left)
    assert 0.65 < len(left) / len(plans) < 0.75
    again = [refiner_with(refine_share=0.3).plan_before_drafts(f"g{n}", "q") for n in range(2000)]
    assert again == plans
    assert all(refiner_with(refine_share=0.0).plan_before_drafts(f"g{n}", "q") for n in range(20))


def test_thinking_is_not_shown_and_a_draft_of_thinking_alone_is_empty() -> None:
    sampled = [SampledDraft("<think>long</think>42", 0.5), SampledDraft("<think>never", 1.0)]
    plan = refiner_with().plan("g", "q", sampled)
    assert plan.draft_text == "42"
    assert plan.drafts_N[1].outcome is DraftOutcome.EMPTY


def test_a_plugin_decides_first_and_its_nonsense_is_named() -> None:
    class Last:
        @hookimpl
        def select_draft(self, drafts):  # type: ignore[no-untyped-def]
            return drafts[-1].index

    class Nowhere:
        @hookimpl
        def select_draft(self):  # type: ignore[no-untyped-def]
            return 9

    plan = refiner_with(Last()).plan("g", "q", scored(1.0, 0.0))
    assert plan.selection is not None
    assert plan.selection.draft.index == 1
    with pytest.raises(ConfigError, match="chose draft 9, which is not among the usable ones"):
        refiner_with(Nowhere()).plan("g", "q", scored(1.0))


def test_options_a_selector_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not take the options \['patern'\]. It has: pattern"):
        refiner_with(selector="worst_formatted", selector_options={"patern": "x"})
