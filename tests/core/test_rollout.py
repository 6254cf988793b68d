"""The rounds of one prompt under concurrency: planned once, shared, shielded, and forgotten in the end."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from core_standins import asked, carried_out, planner_with, sampled

from refine_wrapper.core.planner import Planner
from refine_wrapper.core.rollout import Rollout
from refine_wrapper.core.types import Cause, Group, Outcome, PlannedRound, Round, Sample, Slot, Use
from refine_wrapper.errors import NoDraftError, PluginError

S = 4
Pay = Callable[[int], Any]
"""Reward of the sample of an index."""


class Host:
    """A stand-in for an asynchronous host: S members of each group, delays drawn from a seed."""

    def __init__(self, planner: Planner, seed: int = 0, **options: Any) -> None:
        self.finished: list[Group] = []
        self.rollout = Rollout(planner, lambda _, group: self.finished.append(group), **options)
        self.planner = planner
        self.rng = random.Random(seed)
        self.context: Counter[tuple[int, int]] = Counter()

    async def pause(self) -> None:
        await asyncio.sleep(self.rng.random() / 500)

    def sample(self, planned: PlannedRound, index: int, pay: Pay) -> Sample:
        return self.planner.scored(Sample(f"sample {index}", num_tokens=1), pay(index))

    async def group(self, pay: Pay, place: int = 0, members: int = S, fails: tuple[int, ...] = ()) -> list[Any]:
        """What each member came to: its planned round and its slot, or what it raised."""

        async def context(planned: PlannedRound, index: int) -> Sample:
            self.context[place, index] += 1
            await self.pause()
            return self.sample(planned, index, pay)

        async def member(number: int) -> tuple[PlannedRound, Slot]:
            with self.rollout.join(place, S, number) as me:
                await self.pause()
                planned = await me.turn(asked("q", place), context)
                await self.pause()
                if number in fails:
                    raise OSError("the host lost it")
                first = sum(
                    r.ask.size for r in self.so_far(place).rounds[: planned.number] if r.ask.use.value == "fill"
                )
                slot = await me.report(self.sample(planned, planned.first_index + number - first, pay))
                await self.pause()
                return planned, slot

        return await asyncio.gather(*(member(number) for number in range(members)), return_exceptions=True)

    def so_far(self, place: int) -> Any:
        return self.rollout._groups[place].so_far  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", ["paper", "joint", "on_failure", "rescue", "rounds"])
@pytest.mark.parametrize("thread", [False, True])
def test_whatever_the_interleaving_a_group_is_the_one_that_is_planned_in_order(
    seed: int, mode: str, thread: bool
) -> None:
    planner = planner_with(mode=mode, num_drafts=2)
    host = Host(planner, seed, thread=thread)

    def pay(place: int) -> Pay:
        return lambda index: float((index * 7 + place) % 5 == 0)

    async def main() -> None:
        groups = await asyncio.gather(*(host.group(pay(place), place) for place in range(5)))
        for results in groups:
            assert not [result for result in results if isinstance(result, BaseException)]
        assert len(asyncio.all_tasks()) == 1
        for place, results in enumerate(groups):
            group = next(group for group in host.finished if group.id.place == place)
            assert [slot for _, slot in results] == list(group.slots_S)
            expected = planner.open(asked("q", place), S)
            while True:
                expected, planned = planner.next(expected)
                if planned is None:
                    break
                indices = range(planned.first_index, planned.first_index + planned.ask.size)
                expected = planner.add(expected, [host.sample(planned, index, pay(place)) for index in indices])
            alone = planner.close(expected)
            assert (group.samples, group.slots_S, group.cause) == (alone.samples, alone.slots_S, alone.cause)

    asyncio.run(main())
    assert set(host.context.values()) <= {1}
    assert host.rollout.groups_in_flight == 0
    assert len(host.finished) == 5


def test_planning_in_a_thread_leaves_the_loop_alone() -> None:
    planner = planner_with(num_drafts=1)
    threads: set[str] = set()
    build = planner.prompts.build

    def noting(*arguments: Any, **named: Any) -> Any:
        threads.add(threading.current_thread().name)
        return build(*arguments, **named)

    planner.prompts.build = noting  # type: ignore[method-assign]
    asyncio.run(Host(planner, thread=True).group(lambda _: 0.0))
    assert len(threads) == 1
    assert threads.pop().startswith("refine-planner")


def test_a_cancelled_member_does_not_take_the_rounds_from_its_siblings() -> None:
    host = Host(planner_with(num_drafts=2))

    async def main() -> None:
        go = asyncio.Event()

        async def context(planned: PlannedRound, index: int) -> Sample:
            await go.wait()
            return Sample("d", reward=1.0)

        async def member() -> PlannedRound:
            with host.rollout.join("g", 3) as me:
                planned = await me.turn(asked(), context)
                await me.report(Sample("r", reward=1.0))
                return planned

        tasks = [asyncio.create_task(member()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [getattr(planned, "ask", planned) for planned in results[1:]] == [Round(3, Use.FILL, 0, final=True)] * 2

    asyncio.run(main())
    assert host.rollout.groups_in_flight == 0
    [group] = host.finished
    assert [row.outcome for row in group.rows_S] in ([Outcome.OK] * 2, [Outcome.EXCEPTION, Outcome.OK, Outcome.OK])
    assert not group.trainable


def test_rounds_end_when_nobody_wants_them() -> None:
    host = Host(planner_with(num_drafts=2))
    ended: list[int] = []

    async def main() -> None:
        async def context(planned: PlannedRound, index: int) -> Sample:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(index)
            raise AssertionError

        async def member() -> None:
            with host.rollout.join("g", S) as me:
                await me.turn(asked(), context)

        tasks = [asyncio.create_task(member()) for _ in range(S)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert sorted(ended) == [0, 1]
    assert host.rollout.groups_in_flight == 0
    assert host.finished == []


def test_every_failure_is_typed_and_costs_one_sample() -> None:
    planner = planner_with(num_drafts=6, draft_timeout=0.05)
    host = Host(planner)

    async def context(planned: PlannedRound, index: int) -> Sample:
        if index == 0:
            raise OSError("engine gone")
        if index == 1:
            await asyncio.sleep(60)
        text = "ok" if index != 5 else " "
        return planner.scored(Sample(text), [None, None, None, float("nan"), [1.0, 2.0], 1.0][index])

    async def main() -> None:
        with host.rollout.join("g", 1) as me:
            planned = await me.turn(asked(), context)
            assert planned.prompt == "q"
            await me.report(Sample("r", reward=1.0))

    asyncio.run(main())
    [group] = host.finished
    assert [draft.outcome for draft in group.drafts] == [
        Outcome.EXCEPTION,
        Outcome.TIMEOUT,
        Outcome.NO_REWARD,
        Outcome.NON_FINITE,
        Outcome.WRONG_LENGTH,
        Outcome.EMPTY,
    ]
    assert group.cause is Cause.NO_USABLE_DRAFT
    assert "engine gone" in group.samples[0].detail


@pytest.mark.parametrize("mode", ["paper", "joint", "on_failure", "rescue"])
def test_a_member_that_fails_costs_its_own_sample(mode: str) -> None:
    host = Host(planner_with(mode=mode, num_drafts=2))
    results = asyncio.run(host.group(lambda _: 0.0, fails=(0,)))
    assert [type(result).__name__ for result in results] == ["OSError", "tuple", "tuple", "tuple"]
    [group] = host.finished
    assert group.rows_S[0].outcome is Outcome.EXCEPTION
    assert not group.trainable
    assert host.rollout.groups_in_flight == 0


def test_on_no_draft_error_reaches_every_member_that_waits() -> None:
    host = Host(planner_with(num_drafts=1, on_no_draft="error"))
    results = asyncio.run(host.group(lambda _: None))
    assert all(isinstance(result, NoDraftError) for result in results)
    assert host.rollout.groups_in_flight == 0


def test_a_mode_that_answers_nonsense_at_the_end_reaches_members_that_hold_their_rows() -> None:
    planner = planner_with(mode="rescue", num_drafts=1)
    host = Host(planner)
    planner._check = lambda group, answer: (_ for _ in ()).throw(PluginError("no")) if group.samples else None  # type: ignore[method-assign, assignment]
    results = asyncio.run(host.group(lambda _: 0.0))
    assert all(isinstance(result, PluginError) for result in results)


def test_members_are_numbered_as_they_arrive_where_the_host_does_not_number_them() -> None:
    host = Host(planner_with(mode="joint", num_drafts=2))

    async def member() -> tuple[int, int]:
        with host.rollout.join("g", S) as me:
            planned = await me.turn(asked(), lambda planned, index: asyncio.sleep(0, Sample()))
            await me.report(Sample("r", reward=0.5))
            return me.number, planned.number

    async def main() -> list[tuple[int, int]]:
        return await asyncio.gather(*(member() for _ in range(S)))

    assert asyncio.run(main()) == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_both_kinds_of_host_plan_the_same() -> None:
    rewards = [0.0, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    planner = planner_with(num_drafts=3)
    host = Host(planner)
    asyncio.run(host.group(lambda index: rewards[index]))
    in_order = carried_out(planner, asked(), S, rewards[:3], rewards[3:])
    assert host.finished[0].slots_S == in_order.slots_S
    assert host.finished[0].rounds[1].prompt == in_order.rounds[1].prompt
    assert sampled(planner, rewards)[1].reward == 1.0
