"""Each mode's rule, round by round, and what all have in common: every slot filled once, the same on every rank."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from core_standins import asked, built_in, carried_out, planner_with, sampled
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.modes.interface import Tally
from refine_wrapper.core.types import Cause, Group, Progress, Slot, TrainUnder, Use
from refine_wrapper.errors import ConfigError

NAMES = ("paper", "joint", "on_failure", "rescue", "adaptive", "alternate", "rounds")
WRONG, RIGHT = 0.0, 1.0


def run(mode: str, num_slots: int, *rounds: Any, step: int = 0, num_drafts: int = 2, **settings: Any) -> Group:
    planner = planner_with(mode=mode, num_drafts=num_drafts, **settings)
    return carried_out(planner, asked(step=step), num_slots, *rounds, progress=Progress(step, 10))


def uses(group: Group) -> list[tuple[Use, int, int | None]]:
    return [(planned.ask.use, planned.ask.size, planned.ask.show) for planned in group.rounds]


def test_these_are_all_modes() -> None:
    assert sorted(built_in().all("mode")) == sorted(NAMES)


def test_paper() -> None:
    group = run("paper", 3, (0.2, 0.7), (WRONG, RIGHT, WRONG))
    assert uses(group) == [(Use.CONTEXT, 2, None), (Use.FILL, 3, 1)]
    assert group.slots_S == (Slot(2), Slot(3), Slot(4))
    assert [sample.reward for sample in group.drafts] == [0.2, 0.7]


def test_joint() -> None:
    group = run("joint", 5, (0.2, 0.7), (WRONG, RIGHT, WRONG))
    assert uses(group) == [(Use.FILL, 2, None), (Use.FILL, 3, 1)]
    assert group.slots_S == tuple(Slot(index) for index in range(5))
    assert len(group.samples) == 5, "no completion beside those of the plain run"
    assert [sample.shown for sample in group.samples] == [None, None, 1, 1, 1]


def test_joint_without_anything_to_show_is_a_plain_group() -> None:
    group = run("joint", 4, (None, float("nan")), (WRONG, RIGHT))
    assert uses(group) == [(Use.FILL, 2, None), (Use.FILL, 2, None)]
    assert (group.cause, group.trainable) == (Cause.NO_USABLE_DRAFT, False)


def test_on_failure_refines_all_wrong_groups_and_trains_right_ones_under_the_question() -> None:
    group = run("on_failure", 4, (WRONG, 0.5), (RIGHT, WRONG))
    assert uses(group) == [(Use.FILL, 2, None), (Use.FILL, 2, 1)]
    assert group.slots_S == (Slot(0), Slot(1), Slot(2, on_question=True), Slot(3))
    assert (group.refined, group.cause, group.reason) == (True, None, "all samples are wrong")


def test_on_failure_leaves_other_groups_plain() -> None:
    group = run("on_failure", 4, (WRONG, RIGHT), (RIGHT, WRONG))
    assert uses(group) == [(Use.FILL, 2, None), (Use.FILL, 2, None)]
    assert not any(slot.on_question for slot in group.slots_S)
    assert (group.refined, group.cause, group.reason) == (False, Cause.MODE, "a sample is right already")


def test_on_failure_goes_by_the_highest_reward_there_is() -> None:
    assert run("on_failure", 3, (WRONG, RIGHT), (2.0,), max_reward=2.0).refined


def test_rescue_is_the_plain_group_unless_all_are_wrong() -> None:
    group = run("rescue", 3, (WRONG, RIGHT, WRONG))
    assert uses(group) == [(Use.FILL, 3, None)]
    assert group.slots_S == (Slot(0), Slot(1), Slot(2))


def test_rescue_gives_right_samples_the_slots_of_wrong_ones_and_leaves_one_wrong() -> None:
    group = run("rescue", 3, (WRONG, WRONG, WRONG), (RIGHT, RIGHT, WRONG, RIGHT), num_drafts=4)
    assert uses(group) == [(Use.FILL, 3, None), (Use.TAKE, 4, 0)]
    assert group.slots_S == (Slot(0), Slot(3, on_question=True), Slot(4, on_question=True))
    assert group.refined
    nothing = run("rescue", 3, (WRONG, WRONG, WRONG), (WRONG, WRONG))
    assert nothing.slots_S == (Slot(0), Slot(1), Slot(2))


def test_the_control_of_rescue_samples_on_the_question() -> None:
    group = run("rescue", 3, (WRONG, WRONG, WRONG), (WRONG, RIGHT), mode_options={"fresh": True})
    assert uses(group) == [(Use.FILL, 3, None), (Use.TAKE, 2, None)]
    assert group.slots_S == (Slot(0), Slot(4), Slot(2))
    assert not group.refined


def test_alternate() -> None:
    even, odd = run("alternate", 4, (WRONG,) * 4, step=2), run("alternate", 4, (WRONG,) * 2, (RIGHT,) * 2, step=3)
    assert (even.cause, even.refined) == (Cause.NOT_CHOSEN, False)
    assert uses(odd) == [(Use.FILL, 2, None), (Use.FILL, 2, 0)]
    inner = run("alternate", 2, (WRONG,) * 3, (RIGHT,) * 2, step=1, num_drafts=3, mode_options={"inner": "paper"})
    assert uses(inner)[0] == (Use.CONTEXT, 3, None)


def test_rounds_shows_the_best_so_far_each_time() -> None:
    group = run("rounds", 2, (0.1, 0.3), (0.2, 0.4), (WRONG, WRONG))
    assert uses(group) == [(Use.CONTEXT, 2, None), (Use.CONTEXT, 2, 1), (Use.FILL, 2, 3)]
    assert group.slots_S == (Slot(4), Slot(5))


def test_rounds_is_over_early_where_the_best_is_right() -> None:
    group = run("rounds", 2, (0.1, RIGHT), (WRONG, WRONG), mode_options={"rounds": 5})
    assert uses(group) == [(Use.CONTEXT, 2, None), (Use.FILL, 2, 1)]


def test_rounds_inside_one_group() -> None:
    options = {"inner": "joint", "rounds": 2}
    group = run("rounds", 7, (0.1, 0.3), (0.2, 0.4), (WRONG, WRONG, RIGHT), mode_options=options)
    assert uses(group) == [(Use.FILL, 2, None), (Use.FILL, 2, 1), (Use.FILL, 3, 3)]
    assert len(group.slots_S) == len(group.samples) == 7


def test_adaptive_does_what_solved_more_groups_lately() -> None:
    planner = planner_with(mode="adaptive", num_drafts=1, mode_options={"explore": 0.0})

    def arm(**lately: Tally) -> str:
        opened = planner.open(asked(), 3)
        opened, _ = planner.next(opened)
        opened = planner.add(opened, sampled(planner, (WRONG,)))
        told = type(opened)(**{**{n: getattr(opened, n) for n in opened.__dataclass_fields__}, "lately": lately})
        _, planned = planner.next(told)
        assert planned is not None
        return planned.ask.arm

    assert arm(fresh=Tally(100, 50), refined=Tally(100, 5)) == "fresh"
    assert arm(fresh=Tally(100, 5), refined=Tally(100, 50)) == "refined"
    assert arm(fresh=Tally(100, 50)) == "refined", "what was not tried comes first"
    assert arm() in ("fresh", "refined")


@pytest.mark.parametrize("mode", ["joint", "on_failure", "adaptive"])
@pytest.mark.parametrize("num_drafts", [4, 7])
def test_a_first_round_must_leave_slots(mode: str, num_drafts: int) -> None:
    planner = planner_with(mode=mode, num_drafts=num_drafts)
    with pytest.raises(
        ConfigError,
        match=rf"num_drafts must be from 1 to 3. Set --refine.num_drafts 2, or raise .* to {num_drafts * 2}",
    ):
        planner.mode.check(4, planner.rules)
    planner.mode.check(8, planner.rules)


def test_what_a_group_costs_beside_its_slots() -> None:
    def context(mode: str, **options: Any) -> int:
        planner = planner_with(mode=mode, num_drafts=3, mode_options=options)
        return planner.mode.num_context(8, planner.rules)

    assert [context(mode) for mode in ("paper", "joint", "on_failure", "rescue", "adaptive", "alternate")] == [
        3, 0, 0, 3, 0, 0
    ]  # fmt: skip
    assert context("rounds", rounds=2) == 6
    assert context("alternate", inner="paper") == 3


def test_what_hosts_must_know_at_start() -> None:
    def of(mode: str, **settings: Any) -> tuple[bool, bool, TrainUnder]:
        planner = planner_with(mode=mode, **settings)
        mode_, rules = planner.mode, planner.rules
        return mode_.may_take(rules), mode_.context_first(rules), mode_.trains_under(rules)

    assert of("paper") == (False, True, TrainUnder.SAMPLED)
    assert of("joint") == (False, False, TrainUnder.SAMPLED)
    assert of("on_failure") == (False, False, TrainUnder.QUESTION_IF_RIGHT)
    assert of("rescue") == (True, False, TrainUnder.QUESTION)
    assert of("alternate") == (False, False, TrainUnder.SAMPLED)
    assert of("alternate", mode_options={"inner": "rescue"})[0]


@given(
    st.sampled_from(NAMES),
    st.integers(2, 9),
    st.integers(1, 8),
    st.integers(0, 3),
    st.sampled_from([None, "sampled", "question", "question_if_right"]),
    st.data(),
)
def test_whatever_is_paid_every_slot_is_filled_once_and_context_is_never_trained(
    mode: str, num_slots: int, num_drafts: int, step: int, train_under: Any, data: st.DataObject
) -> None:
    planner = planner_with(mode=mode, num_drafts=num_drafts, train_under=train_under)
    try:
        planner.mode.check(num_slots, planner.rules)
    except ConfigError:
        return
    rewards = st.sampled_from([None, -1.0, 0.0, 0.5, 1.0, float("nan")])
    group = planner.open(asked(step=step), num_slots, Progress(step, 4))
    twin = pickle.loads(pickle.dumps((group.question, group.num_slots)))
    assert twin == (group.question, group.num_slots)
    while True:
        again = planner.next(group)
        group, planned = planner.next(group)
        assert again == (group, planned), "another rank would come to something else"
        if planned is None:
            break
        paid = data.draw(st.lists(rewards, min_size=planned.ask.size, max_size=planned.ask.size))
        group = planner.add(group, sampled(planner, paid, planned))
    closed = planner.close(group)
    assert len(closed.slots_S) == num_slots
    in_slots = [slot.sample for slot in closed.slots_S]
    assert len(set(in_slots)) == num_slots
    assert len(closed.samples) <= num_slots + planner.mode.num_context(num_slots, planner.rules)
    for slot in closed.slots_S:
        sample = closed.samples[slot.sample]
        assert closed.rounds[sample.round].ask.use is not Use.CONTEXT
        assert not slot.on_question or sample.shown is not None
        if closed.rounds[sample.round].ask.use is Use.TAKE:
            assert sample.reward == 1.0
    for planned in closed.rounds:
        assert (planned.prompt == "q") == (planned.ask.show is None)
    assert closed.refined == any(planned.ask.show is not None for planned in closed.rounds)
    assert (closed.cause is None) == closed.refined or mode == "rescue"
