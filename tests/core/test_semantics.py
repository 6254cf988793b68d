"""LOCKED semantics of the algorithm: what refinement means here.

Do not change a test in this file to make it pass. A change of meaning needs an explicit decision, an entry in the
changelog and, where users compare runs, a new name for the new behaviour. Rules are stated in docs/method.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from core_standins import asked, carried_out, chatml, paper_group, planner_with, recorder_with, rendered

from refine_wrapper.core.types import Cause, PlannedRound, Sample, Slot, Use
from refine_wrapper.settings.config import RefineConfig

QUESTION = "What is 6 x 7?"


def test_the_paper_is_the_default() -> None:
    config = RefineConfig()
    assert (config.num_drafts, config.selector, config.mode, config.refine_share) == (4, "best", "paper", 1.0)
    assert (config.evaluation, config.on_no_draft, config.draft_tokens) == ("single_shot", "plain", None)
    assert (config.train_under, config.mode_options) == (None, {})
    assert config.active


def test_the_old_name_of_the_mode_keeps_working() -> None:
    assert RefineConfig(plan="paper") == RefineConfig(mode="paper") == RefineConfig()


@pytest.mark.parametrize("num_drafts", [1, 2, 4, 7])
def test_the_paper_samples_exactly_n_drafts_on_the_question_and_trains_none_of_them(num_drafts: int) -> None:
    group = paper_group(planner_with(num_drafts=num_drafts), (0.0,) * num_drafts, (1.0, 0.0, 0.0))
    first, last = group.rounds
    assert (first.ask.use, first.ask.size, first.prompt) == (Use.CONTEXT, num_drafts, "q")
    assert (last.ask.use, last.ask.size) == (Use.FILL, 3)
    assert [slot.sample for slot in group.slots_S] == [num_drafts, num_drafts + 1, num_drafts + 2]
    assert not any(slot.on_question for slot in group.slots_S)


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
def test_the_best_draft_is_shown_and_ties_go_to_the_lowest_index(rewards: Any, chosen: int, tied: int) -> None:
    group = paper_group(planner_with(), rewards, (1.0, 0.0))
    assert (group.rounds[1].ask.show, group.num_tied) == (chosen, tied)
    assert group.rounds[1].shown_text == f"sample {chosen}"


@pytest.mark.parametrize("template", ["append", "turns"])
@pytest.mark.parametrize("conversational", [False, True])
def test_the_refined_prompt_has_the_question_the_draft_and_then_the_instruction(
    template: str, conversational: bool
) -> None:
    tokenizer = chatml()
    question: Any = [{"role": "user", "content": QUESTION}] if conversational else QUESTION
    planner = planner_with(tokenizer=tokenizer, template=template, num_drafts=2)
    text = rendered(tokenizer, paper_group(planner, (0.0, 1.0), (1.0, 0.0), prompt=question).rounds[1].prompt)
    where = [text.index(QUESTION), text.index("sample 1"), text.index("solve the problem again")]
    assert where == sorted(where)
    assert "sample 0" not in text
    assert text.count(QUESTION) == 1


def test_the_exact_prompts_of_the_built_in_templates() -> None:
    improve = (
        "Check this attempt critically. Then solve the problem again from the start, correct any mistake, and give a "
        "complete, better answer in the form the problem asks for."
    )
    appended = f"Q\n\nHere is an attempt at this problem. It may be wrong.\n\nsample 0\n\n{improve}"
    conversation = [{"role": "user", "content": "Q"}]

    def prompt(template: str, question: Any) -> Any:
        tokenizer = None if isinstance(question, str) else chatml()
        planner = planner_with(template=template, num_drafts=1, tokenizer=tokenizer)
        return paper_group(planner, (1.0,), (1.0, 0.0), prompt=question).rounds[1].prompt

    assert prompt("append", "Q") == appended + "\n\n"
    assert prompt("append", conversation) == [{"role": "user", "content": appended}]
    assert prompt("turns", "Q") == f"Qsample 0\n\n{improve}\n\n"
    assert prompt("turns", conversation) == [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "sample 0"},
        {"role": "user", "content": improve},
    ]


def test_a_sample_carries_no_reward_of_what_was_shown() -> None:
    # The host pays each sample by itself; what the core adds to it is nothing, whatever the shown one was paid.
    refinements = []
    for draft_reward in (0.0, 1.0, 100.0):
        group = paper_group(planner_with(num_drafts=2), (draft_reward, -1.0), (0.0, 0.5))
        assert recorder_with().record([group])["refine/refinement_reward"] == 0.25
        refinements.append(group.refinements)
    assert refinements[0] == refinements[1] == refinements[2]
    assert [field.name for field in dataclasses.fields(Sample) if "reward" in field.name] == ["reward"]
    assert "reward" not in " ".join(field.name for field in dataclasses.fields(PlannedRound))


@pytest.mark.parametrize("settings", [{"enabled": False}, {"num_drafts": 0}])
@pytest.mark.parametrize("mode", ["paper", "joint", "rescue"])
def test_off_means_one_round_on_the_question_itself(settings: dict[str, Any], mode: str) -> None:
    question = [{"role": "user", "content": QUESTION}]
    group = carried_out(planner_with(mode=mode, **settings), asked(question), 4, (0.0,) * 4)
    assert group.rounds[0].prompt is question
    assert (group.drafts, group.refined) == ((), False)


@pytest.mark.parametrize("policy", ["plain", "skip"])
def test_without_a_usable_draft_the_group_falls_back_to_the_question_untouched(policy: str) -> None:
    question = [{"role": "user", "content": QUESTION}]
    bad = (None, float("inf"), "one", [1, 2])
    group = paper_group(planner_with(on_no_draft=policy), bad, (1.0, 0.0), prompt=question)
    assert group.rounds[1].prompt is question
    assert group.trained is (policy == "plain")
    assert (group.cause, group.rounds[1].shown_text) == (Cause.NO_USABLE_DRAFT, "")


def test_one_usable_draft_is_enough() -> None:
    group = paper_group(planner_with(), (None, float("nan"), -7.0, None), (1.0, 0.0))
    assert group.refined
    assert group.rounds[1].shown_text == "sample 2"


def test_the_draft_is_what_gets_shorter_never_the_question() -> None:
    question = "A question? " * 20
    draft = Sample("x" * 500 + " so the answer is 42", reward=1.0)
    group = paper_group(planner_with(limit=700, num_drafts=1), (draft,), (1.0, 0.0), prompt=question)
    planned = group.rounds[1]
    assert planned.shortened
    assert planned.shown_text.endswith("so the answer is 42")
    assert str(planned.prompt).startswith(question)
    assert len(str(planned.prompt)) == 700


def test_thinking_is_left_out_of_what_is_shown_but_not_out_of_its_reward_or_length() -> None:
    drafts = (
        Sample("<think>secret</think>Answer: 42", reward=1.0, num_tokens=31),
        Sample("<think>", reward=2.0),
    )
    group = paper_group(planner_with(num_drafts=2), drafts, (1.0, 0.0))
    assert group.rounds[1].shown_text == "Answer: 42"
    assert (group.samples[0].num_tokens, group.samples[0].reward) == (31, 1.0)
    assert group.samples[1].outcome.value == "empty"


def test_groups_are_told_apart_by_id_and_never_by_text() -> None:
    planner = planner_with(selector="random")
    shown = {paper_group(planner, (0, 0, 0, 0), (1.0,), place).rounds[1].shown_text for place in range(40)}
    assert shown == {"sample 0", "sample 1", "sample 2", "sample 3"}


def test_uplift_is_refinements_minus_all_drafts() -> None:
    group = paper_group(planner_with(), (0.0, 1.0, 0.5, None), (1.0, 0.0, None))
    metrics = recorder_with().record([group])
    assert metrics["refine/uplift"] == pytest.approx(0.5 - 0.5)
    assert metrics["refine/draft_reward_best"] == 1.0
    assert metrics["refine/completions"] == 4 + 3


def test_in_joint_and_on_failure_a_group_is_the_hosts_own() -> None:
    """As many completions as the plain run, each of them in a slot, and only right refinements change their prompt."""
    for mode, on_question in (("joint", False), ("on_failure", True)):
        group = carried_out(planner_with(mode=mode, num_drafts=2), asked(), 4, (0.0, 0.0), (1.0, 0.0))
        assert [slot.sample for slot in group.slots_S] == [0, 1, 2, 3]
        assert group.slots_S[2:] == (Slot(2, on_question=on_question), Slot(3))
