"""The decision path: fallbacks, shares, what cannot be shown, what a plugin may answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from core_standins import asked, carried_out, chatml, paper_group, planner_with, sampled

from refine_wrapper import hookimpl
from refine_wrapper.core.modes.interface import GroupSoFar, Mode
from refine_wrapper.core.types import Cause, End, Outcome, Progress, Round, Sample, Slot, TrainUnder, Use
from refine_wrapper.errors import ConfigError, NoDraftError, PluginError

PLAIN = (0.0, 1.0)


@pytest.mark.parametrize("policy", ["plain", "skip"])
def test_no_usable_draft(policy: str) -> None:
    group = paper_group(planner_with(on_no_draft=policy, num_drafts=2), (None, float("inf")), PLAIN)
    assert (group.cause, group.refined, group.trained) == (Cause.NO_USABLE_DRAFT, False, policy == "plain")
    assert group.rounds[-1].prompt == "q"
    assert [slot.trained for slot in group.slots_S] == [policy == "plain"] * 2


def test_no_usable_draft_can_be_an_error_that_says_why() -> None:
    planner = planner_with(on_no_draft="error", num_drafts=2)
    with pytest.raises(
        NoDraftError, match=r"train-0-0 cannot be refined.*sample 0: no_reward; sample 1: non_finite \(nan\)"
    ):
        paper_group(planner, (None, float("nan")), PLAIN)


def test_no_room_for_any_draft() -> None:
    group = paper_group(planner_with(limit=20, num_drafts=1), (1.0,), PLAIN, prompt="q" * 10)
    assert (group.cause, group.refined) == (Cause.NO_ROOM, False)


@pytest.mark.parametrize("policy", ["plain", "skip", "error"])
@pytest.mark.parametrize("mode", ["paper", "joint", "on_failure", "rescue"])
def test_an_over_long_question_is_the_hosts(policy: str, mode: str) -> None:
    planner = planner_with(limit=5, on_no_draft=policy, mode=mode, num_drafts=1)
    group = carried_out(planner, asked("q" * 10), 2, PLAIN)
    assert (group.cause, group.trained, group.drafts) == (Cause.QUESTION_TOO_LONG, True, ())


def test_what_the_host_adds_counts_for_the_question() -> None:
    planner = planner_with(limit=15, num_drafts=1)
    assert carried_out(planner, asked("q" * 10, extra_tokens=6), 2, PLAIN).cause is Cause.QUESTION_TOO_LONG


def test_a_prompt_without_a_place_for_a_draft() -> None:
    planner = planner_with(tokenizer=chatml(), num_drafts=1)
    group = paper_group(planner, (1.0,), PLAIN, prompt=[{"role": "system", "content": "x"}])
    assert (group.cause, group.refined) == (Cause.UNSUPPORTED_PROMPT, False)


@pytest.mark.parametrize("mode", ["paper", "on_failure"])
def test_refine_share(mode: str) -> None:
    def first_rounds(share: float) -> list[bool]:
        planner = planner_with(refine_share=share, mode=mode, num_drafts=2)
        opened = [planner.open(asked(place=place), 4) for place in range(2000)]
        return [planner.next(group)[0].rounds[0].ask.cause is Cause.NOT_CHOSEN for group in opened]

    left = first_rounds(0.3)
    assert 0.65 < sum(left) / len(left) < 0.75
    assert first_rounds(0.3) == left
    assert all(first_rounds(0.0))
    assert not any(first_rounds(1.0))


def test_thinking_is_not_shown_and_a_draft_of_thinking_alone_is_empty() -> None:
    drafts = [Sample("<think>long</think>42", reward=0.5), Sample("<think>never", reward=1.0)]
    group = paper_group(planner_with(num_drafts=2), drafts, PLAIN)
    assert group.rounds[1].shown_text == "42"
    assert group.samples[0].text == "<think>long</think>42"
    assert group.samples[1].outcome is Outcome.EMPTY


def test_refined_is_said_only_where_the_tokens_hold_what_was_shown() -> None:
    planner = planner_with(num_drafts=1)
    elsewhere = [Sample("x", reward=reward, prompt_ids=tuple(b"another prompt")) for reward in PLAIN]
    group = paper_group(planner, (0.0,), elsewhere)
    assert [sample.held for sample in group.samples[1:]] == [False, False]
    assert (group.refined, group.cause) == (False, Cause.NOT_HELD)
    held = paper_group(planner, (0.0,), PLAIN)
    assert [sample.held for sample in held.samples] == [None, True, True]
    assert (held.refined, held.cause) == (True, None)
    unknown = planner.open(asked(), 1)
    unknown, _ = planner.next(unknown)
    unknown = planner.add(unknown, sampled(planner, (0.0,)))
    unknown, _ = planner.next(unknown)
    unknown = planner.add(unknown, [Sample("x", reward=1.0)])
    assert planner.close(unknown).refined, "where the host does not say its tokens, its word counts"


@pytest.mark.parametrize(
    ("reward", "outcome", "detail"),
    [
        (None, Outcome.NO_REWARD, ""),
        (float("nan"), Outcome.NON_FINITE, "nan"),
        ([1.0, 2.0], Outcome.WRONG_LENGTH, "not one number: [1.0, 2.0]"),
    ],
)
def test_a_bad_reward_is_typed(reward: Any, outcome: Outcome, detail: str) -> None:
    scored = planner_with().scored(Sample("a"), reward)
    assert (scored.outcome, scored.reward, scored.detail) == (outcome, None, detail)
    failed = Sample(outcome=Outcome.TIMEOUT)
    assert planner_with().scored(failed, 1.0) is failed


def test_where_rows_are_trained_can_be_set_for_any_mode() -> None:
    group = carried_out(
        planner_with(mode="joint", num_drafts=1, train_under="question_if_right"), asked(), 3, (0.0,), (1.0, 0.0)
    )
    assert group.slots_S == (Slot(0), Slot(1, on_question=True), Slot(2))
    group = carried_out(planner_with(num_drafts=1, train_under="question"), asked(), 2, (0.0,), (1.0, 0.0))
    assert group.slots_S == (Slot(1, on_question=True), Slot(2, on_question=True))


# What a third party's mode may answer


def _with(answer: Any) -> Any:
    @dataclass(frozen=True)
    class Mine(Mode):
        def next(self, group: GroupSoFar) -> Round | End:
            return answer(group) if callable(answer) else answer

    class Plugin:
        @hookimpl
        def register_modes(self) -> Any:
            return {"mine": Mine}

    return planner_with(Plugin(), mode="mine")


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("refine", "'refine'. Allowed are a Round or an End."),
        (Round(0, Use.CONTEXT), "Round(size=0). Allowed is 1 or more."),
        (Round(5, Use.FILL), "Round(size=5, Use.FILL) with 4 slots left."),
        (Round(4, Use.FILL, show=0), "Round(show=0). Allowed are [], the samples that can be shown."),
        (Round(2, Use.FILL, final=True), "a final Round that does not fill all 4 slots left."),
        (End(), "End with 4 of 4 slots empty. Fill them first, for example with group.plain(...)."),
        (End({0: 7}), "End(takes={0: 7}). Allowed are slots [] -> samples outside of them."),
    ],
)
def test_a_wrong_answer_names_the_plugin_the_mode_and_what_is_allowed(answer: Any, wrong: str) -> None:
    planner = _with(answer)
    with pytest.raises(PluginError) as raised:
        planner.next(planner.open(asked(), 4))
    assert str(raised.value) == f"refine: mode 'mine' of plugin 'inline_0' answered for group train-0-0: {wrong}"


def test_a_sample_that_cannot_be_shown_goes_back_to_the_mode() -> None:
    told: list[Any] = []

    def answer(group: GroupSoFar) -> Round | End:
        if not group.rounds:
            return Round(2, Use.CONTEXT)
        told.append(dict(group.refused))
        if not group.candidates:
            return group.plain("nothing fits")
        return Round(group.slots_left, Use.FILL, show=group.candidates[0].index, final=True)

    planner = _with(answer)
    planner.prompts.build = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    group = carried_out(planner, asked(), 2, (1.0, 0.0), PLAIN)
    assert told == [{}, {0: Cause.NO_ROOM}, {0: Cause.NO_ROOM, 1: Cause.NO_ROOM}]
    assert group.reason == "nothing fits"


def test_options_are_checked_by_name_and_type() -> None:
    with pytest.raises(
        ConfigError, match=r"mode 'rounds' has no option 'round' \(mode_options\). It has: .*'rounds'\?"
    ):
        planner_with(mode="rounds", mode_options={"round": 3})
    with pytest.raises(ConfigError, match=r"mode 'rounds', mode_options rounds = 'three': input should be a valid int"):
        planner_with(mode="rounds", mode_options={"rounds": "three"})
    with pytest.raises(PluginError, match=r"unknown mode 'on_failur'. Did you mean 'on_failure'\?"):
        planner_with(mode="on_failur")


def test_a_selector_that_chooses_nothing_of_the_group_is_named() -> None:
    @dataclass(frozen=True)
    class Nowhere:
        def select(self, drafts: Any, context: Any) -> Sample:
            return Sample(index=9)

    class Plugin:
        @hookimpl
        def register_selectors(self) -> Any:
            return {"nowhere": Nowhere}

    planner = planner_with(Plugin(), selector="nowhere", num_drafts=1)
    with pytest.raises(PluginError, match=r"selector 'nowhere' chose sample 9 of group train-0-0. Allowed are \[0\]"):
        paper_group(planner, (1.0,), PLAIN)


def test_a_mode_learns_from_earlier_steps_alone() -> None:
    planner = planner_with(mode="adaptive", num_drafts=1)
    for step in range(3):
        planner.note([carried_out(planner, asked(step=step), 2, (0.0,), (1.0,))])
        now = planner.open(asked(place=1, step=step), 2).lately
        assert sum(tally.tried for tally in now.values()) == step
    later = planner.open(asked(step=9), 2).lately
    assert sum(tally.solved for tally in later.values()) == 3


def test_rounds_that_others_wait_for_come_first_in_an_engines_queue() -> None:
    def priority(*num_tokens: int) -> int:
        planner = planner_with(num_drafts=len(num_tokens))
        group, first = planner.next(planner.open(asked(), 2, Progress()))
        assert first is not None
        assert first.priority == 0
        drafts = [Sample("x", num_tokens=number, reward=0.0) for number in num_tokens]
        _, last = planner.next(planner.add(group, drafts))
        assert last is not None
        return last.priority

    assert 0 < priority(300, 100) < priority(150, 150) < priority(10)
    assert priority(200, 0) == priority(200)  # one that was not sampled says nothing of lengths
    assert priority(2**21) > 0


def test_names_of_where_rows_are_trained() -> None:
    assert [under.value for under in TrainUnder] == ["sampled", "question", "question_if_right"]
