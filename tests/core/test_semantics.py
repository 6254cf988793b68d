"""LOCKED semantics of the algorithm: what two-stage refinement means here.

Do not change a test in this file to make it pass. A change of meaning needs an explicit decision, an entry in the
changelog and, where users compare runs, a new name for the new behaviour. Rules are stated in docs/method.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from core_standins import chatml, finished, refiner_with, rendered, scored

from refine_wrapper.core.batch import BatchStages, Question
from refine_wrapper.core.rollout import Rollout
from refine_wrapper.core.types import Action, FallbackCause, Refinement, RowPlan, SampledDraft
from refine_wrapper.settings.config import RefineConfig

QUESTION = "What is 6 x 7?"


def test_the_paper_is_the_default() -> None:
    config = RefineConfig()
    assert (config.num_drafts, config.selector, config.plan, config.refine_share) == (4, "best", "paper", 1.0)
    assert (config.evaluation, config.on_no_draft, config.draft_tokens) == ("single_shot", "plain", None)
    assert config.active


@pytest.mark.parametrize("num_drafts", [1, 2, 4, 7])
def test_stage_1_samples_exactly_n_drafts_for_each_group(num_drafts: int) -> None:
    refiner = refiner_with(num_drafts=num_drafts)
    batch = BatchStages(refiner, [Question("a", QUESTION), Question("b", QUESTION)])
    assert list(batch.draft_rows.groups) == [0] * num_drafts + [1] * num_drafts

    asked: list[int] = []

    async def sample(index: int) -> SampledDraft:
        asked.append(index)
        return SampledDraft("x", 1.0)

    asyncio.run(Rollout(refiner).run_stage1("a", QUESTION, sample))
    assert sorted(asked) == list(range(num_drafts))


@pytest.mark.parametrize(
    ("rewards", "chosen", "tied"),
    [
        ((0.0, 1.0, 0.5, 0.2), 1, 1),
        ((0.5, 0.25, 1.0, 1.0), 2, 2),
        ((0.0, 0.0, 0.0, 0.0), 0, 4),
        ((1.0, 1.0, 1.0, 1.0), 0, 4),
        ((-3.0, -2.0, -2.0, -5.0), 1, 2),
        ((None, 0.0, float("nan"), 0.0), 1, 2),
    ],
)
def test_the_best_draft_is_chosen_and_ties_go_to_the_lowest_index(rewards: Any, chosen: int, tied: int) -> None:
    plan = refiner_with().plan("g", QUESTION, scored(*rewards))
    assert plan.selection is not None
    assert (plan.selection.draft.index, plan.selection.num_tied) == (chosen, tied)
    assert plan.draft_text == f"draft {chosen}"


@pytest.mark.parametrize("template", ["append", "turns"])
@pytest.mark.parametrize("conversational", [False, True])
def test_the_refined_prompt_has_the_question_the_draft_and_then_the_instruction(
    template: str, conversational: bool
) -> None:
    tokenizer = chatml()
    question: Any = [{"role": "user", "content": QUESTION}] if conversational else QUESTION
    plan = refiner_with(tokenizer=tokenizer, template=template).plan("g", question, scored(0.0, 1.0))
    text = rendered(tokenizer, plan.prompt)
    where = [text.index(QUESTION), text.index("draft 1"), text.index("solve the problem again")]
    assert where == sorted(where)
    assert "draft 0" not in text
    assert text.count(QUESTION) == 1


def test_the_exact_prompts_of_the_built_in_templates() -> None:
    improve = (
        "Check this attempt critically. Then solve the problem again from the start, correct any mistake, and give a "
        "complete, better answer in the form the problem asks for."
    )
    appended = f"Q\n\nHere is an attempt at this problem. It may be wrong.\n\ndraft 0\n\n{improve}"
    conversation = [{"role": "user", "content": "Q"}]
    append, turns = refiner_with(template="append"), refiner_with(template="turns")
    assert append.plan("g", "Q", scored(1.0)).prompt == appended + "\n\n"
    assert append.plan("g", conversation, scored(1.0)).prompt == [{"role": "user", "content": appended}]
    assert turns.plan("g", "Q", scored(1.0)).prompt == f"Qdraft 0\n\n{improve}\n\n"
    assert turns.plan("g", conversation, scored(1.0)).prompt == [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "draft 0"},
        {"role": "user", "content": improve},
    ]


def test_only_refinements_are_trained_and_their_prompt_is_the_refined_one() -> None:
    batch = BatchStages(refiner_with(num_drafts=2), [Question("a", "A?"), Question("b", "B?")])
    plans = batch.plan(scored(0.0, 1.0, 1.0, 0.0))
    rows = batch.rows(3)
    assert rows == [RowPlan("a", plans[0].prompt, True, True)] * 3 + [RowPlan("b", plans[1].prompt, True, True)] * 3
    assert plans[0].prompt != "A?"
    assert plans[0].question == "A?"


def test_a_refinement_carries_no_reward_of_any_draft() -> None:
    # The host pays each refinement by itself; what the core adds to it is nothing, whatever the drafts were paid.
    outcomes = []
    for draft_reward in (0.0, 1.0, 100.0):
        refiner = refiner_with(num_drafts=2)
        plan = refiner.plan("g", QUESTION, scored(draft_reward, -1.0))
        outcome = finished(plan, [0.0, 0.5])
        assert refiner.finish([outcome])["refine/refinement_reward"] == 0.25
        outcomes.append(outcome.refinements_G)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert "draft" not in " ".join(field.name for field in dataclasses.fields(Refinement))
    assert "reward" not in " ".join(field.name for field in dataclasses.fields(RowPlan))


@pytest.mark.parametrize("settings", [{"enabled": False}, {"num_drafts": 0}])
def test_off_means_no_drafts_and_the_question_itself(settings: dict[str, Any]) -> None:
    refiner = refiner_with(**settings)
    question = [{"role": "user", "content": QUESTION}]
    batch = BatchStages(refiner, [Question("g", question)], num_ranks=2)
    assert batch.draft_rows.groups == ()
    (plan,) = batch.plan([])
    assert plan.prompt is question
    assert (plan.action, plan.drafts_N) == (Action.PLAIN, ())


@pytest.mark.parametrize(("policy", "action"), [("plain", Action.PLAIN), ("skip", Action.SKIP)])
def test_without_a_usable_draft_the_group_falls_back_to_the_question_untouched(policy: str, action: Action) -> None:
    question = [{"role": "user", "content": QUESTION}]
    plan = refiner_with(on_no_draft=policy).plan("g", question, scored(None, float("inf"), "one", [1, 2]))
    assert plan.prompt is question
    assert (plan.action, plan.trained) == (action, action is Action.PLAIN)
    assert (plan.cause, plan.selection, plan.draft_text) == (FallbackCause.NO_USABLE_DRAFT, None, "")


def test_one_usable_draft_is_enough() -> None:
    plan = refiner_with().plan("g", QUESTION, scored(None, float("nan"), -7.0, None))
    assert plan.action is Action.REFINE
    assert plan.draft_text == "draft 2"


def test_a_question_that_does_not_fit_is_left_to_the_host() -> None:
    for policy in ("plain", "skip", "error"):
        plan = refiner_with(limit=10, on_no_draft=policy).plan_before_drafts("g", "A question of more than ten tokens")
        assert plan is not None
        assert (plan.action, plan.cause) == (Action.PLAIN, FallbackCause.QUESTION_TOO_LONG)


def test_the_draft_is_what_gets_shorter_never_the_question() -> None:
    question = "A question? " * 20
    text = "x" * 500 + " so the answer is 42"
    plan = refiner_with(limit=700).plan("g", question, [SampledDraft(text, 1.0)])
    assert plan.draft_shortened
    assert plan.draft_text.endswith("so the answer is 42")
    assert str(plan.prompt).startswith(question)
    assert len(str(plan.prompt)) == 700


def test_thinking_is_left_out_of_the_draft_but_not_out_of_its_reward_or_length() -> None:
    sampled = [SampledDraft("<think>secret</think>Answer: 42", 1.0, num_tokens=31), SampledDraft("<think>", 2.0)]
    plan = refiner_with().plan("g", QUESTION, sampled)
    assert plan.draft_text == "Answer: 42"
    assert plan.drafts_N[0].num_tokens == 31
    assert plan.drafts_N[1].outcome.value == "empty"


def test_groups_are_told_apart_by_id_and_never_by_text() -> None:
    refiner = refiner_with(selector="random", num_drafts=4)
    chosen = {refiner.plan(f"g{i}", QUESTION, scored(0, 0, 0, 0)).draft_text for i in range(40)}
    assert chosen == {"draft 0", "draft 1", "draft 2", "draft 3"}


def test_uplift_is_refinements_minus_all_drafts() -> None:
    refiner = refiner_with()
    plan = refiner.plan("g", QUESTION, scored(0.0, 1.0, 0.5, None))
    metrics = refiner.finish([finished(plan, [1.0, 0.0, None])])
    assert metrics["refine/uplift"] == pytest.approx(0.5 - 0.5)
    assert metrics["refine/draft_reward_best"] == 1.0
    assert metrics["refine/completions"] == 4 + 3
