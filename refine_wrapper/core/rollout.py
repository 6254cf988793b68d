"""The rounds of one group on asynchronous hosts: the one place where their order lives.

Each of the S members of a group asks for its turn and gets it when the round that fills its slot is planned. One task
per group plans, samples what is context itself, and waits for the members' reports. A member that is cancelled does not
take that task away from its siblings; when nobody is left who wants it, it is cancelled and forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from refine_wrapper.core.failures import describe
from refine_wrapper.core.modes.interface import GroupSoFar
from refine_wrapper.core.planner import Planner
from refine_wrapper.core.types import Group, Outcome, PlannedRound, Progress, Question, Sample, Slot, Use

SampleContext = Callable[[PlannedRound, int], Awaitable[Sample]]
"""Samples and scores, for a planned round, the context sample of an index, by the host's training path."""

T = TypeVar("T")


@dataclass(slots=True)
class _Running:
    """One group while members of it are expected or present."""

    num_slots: int
    arrived: int = 0
    present: int = 0
    driver: asyncio.Task[None] | None = None
    so_far: GroupSoFar | None = None
    turns: dict[int, asyncio.Future[PlannedRound]] = field(default_factory=dict[int, "asyncio.Future[PlannedRound]"])
    reports: dict[int, asyncio.Future[Sample]] = field(default_factory=dict[int, "asyncio.Future[Sample]"])
    finished: bool = False
    error: Exception | None = None

    def turn(self, number: int) -> asyncio.Future[PlannedRound]:
        return self.turns.setdefault(number, asyncio.get_running_loop().create_future())

    def report(self, number: int) -> asyncio.Future[Sample]:
        return self.reports.setdefault(number, asyncio.get_running_loop().create_future())

    @property
    def all_reported(self) -> bool:
        return sum(report.done() for report in self.reports.values()) >= self.num_slots


class Member:
    """One of the S members of a group, between its arrival and its leaving. Made by :meth:`Rollout.join`.

    Attributes:
        number: The slot it fills, from 0.
    """

    def __init__(self, rollout: Rollout, key: Hashable, running: _Running, number: int) -> None:
        self._rollout, self._key, self._running = rollout, key, running
        self.number = number

    async def turn(
        self, question: Question, sample_context: SampleContext, progress: Progress | None = None
    ) -> PlannedRound:
        """The planned round of this member's slot. The first call of a group starts its rounds.

        Raises:
            NoDraftError: In every member that waits, if ``on_no_draft`` is ``error`` and nothing can be shown.
        """
        running = self._running
        if running.driver is None:
            running.driver = asyncio.ensure_future(
                self._rollout.drive(self._key, running, question, sample_context, progress)
            )
        # Shielded: cancelling this member must not cancel what its siblings are waiting for.
        return await asyncio.shield(running.turn(self.number))

    async def report(self, sample: Sample) -> Slot:
        """Hand over this member's finished sample; returns what becomes of its slot.

        ``Slot.sample`` is another index than the member's own where a context sample takes the slot: the host then
        puts that sample's row in the place of this one. Waits for the end of the group only where that may happen, and
        where this is the last report of the group.
        """
        running = self._running
        planned = await running.turn(self.number)
        report = running.report(self.number)
        if not report.done():
            report.set_result(sample)
        driver = running.driver
        assert driver is not None, "turn() comes before report()"
        planner = self._rollout.planner
        if running.all_reported or planner.mode.may_take(planner.rules):
            await asyncio.shield(driver)
            if running.error is not None:
                raise running.error
        so_far = running.so_far
        assert so_far is not None, "a group with a turn was opened"
        own = planned.first_index + self.number - _first_slot(so_far, planned)
        if so_far.end is not None and own in so_far.end.takes:
            return planner.close(so_far).slots_S[self.number]
        return planner.slot_of(planned, sample, own)

    def leave(self) -> None:
        """A member that leaves without a report has failed, before its turn or after: the group goes on without it."""
        report = self._running.report(self.number)
        if not report.done():
            report.set_result(Sample(outcome=Outcome.EXCEPTION, detail="the host ended this sample"))


class Rollout:
    """Plans each group once and hands every member its turn.

    Memory is proportional to the groups in flight: a group is dropped when its last member has left.

    Args:
        planner: Decides.
        on_finished: Called with the key and each finished group, before the last member's ``report`` returns.
        thread: Plan in a thread of its own, so that tokenising q' never holds up an event loop that feeds an engine.
            The planner's tokenizer must then be used by nobody else: fast tokenizers are not safe to share.
    """

    def __init__(
        self, planner: Planner, on_finished: Callable[[Hashable, Group], None], *, thread: bool = False
    ) -> None:
        self.planner = planner
        self._on_finished = on_finished
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refine-planner") if thread else None
        self._groups: dict[Hashable, _Running] = {}

    @property
    def groups_in_flight(self) -> int:
        """Groups with members present or still to come."""
        return len(self._groups)

    @contextmanager
    def join(self, key: Hashable, num_slots: int, number: int | None = None) -> Generator[Member]:
        """Be a member of the group ``key`` for the length of a ``with`` block.

        Args:
            key: Identity of the group: an id, or an object all members share. Never the prompt's text.
            num_slots: S, how many members will come. The group is dropped when all have come and left, or when one
                leaves by an exception while no other is present.
            number: The member's slot, where the host numbers them; by default members are numbered as they arrive.
        """
        running = self._groups.setdefault(key, _Running(num_slots))
        member = Member(self, key, running, running.arrived if number is None else number)
        running.arrived += 1
        running.present += 1
        torn_down = True
        try:
            yield member
            torn_down = False
        finally:
            running.present -= 1
            if torn_down:
                member.leave()
            if running.present == 0 and (torn_down or running.arrived >= running.num_slots):
                self.discard(key)

    def discard(self, key: Hashable) -> None:
        """Forget a group: cancel its rounds if they still run, and pass on what was sampled of it. Idempotent."""
        running = self._groups.pop(key, None)
        if running is None:
            return
        if running.driver is not None and not running.driver.done():
            running.driver.cancel()
        for turn in running.turns.values():
            if turn.done() and not turn.cancelled():
                turn.exception()  # looked at, so that asyncio does not report it as forgotten
        self._finish(key, running)

    async def drive(
        self,
        key: Hashable,
        running: _Running,
        question: Question,
        sample_context: SampleContext,
        progress: Progress | None,
    ) -> None:
        """Round after round of one group, to its end. Members start it through :meth:`Member.turn`."""
        try:
            group = running.so_far = self.planner.open(question, running.num_slots, progress)
            while True:
                group, planned = await self._off_loop(self.planner.next, group)
                running.so_far = group
                if planned is None:
                    break
                started = time.perf_counter()
                if planned.ask.use is Use.FILL:
                    samples = await self._fill(running, planned, len(group.slots))
                else:
                    samples = await self._context(planned, sample_context)
                # Where there is a thread, the planner's tokenizer is used in it alone.
                add = partial(self.planner.add, samples=samples, seconds=time.perf_counter() - started)
                group = running.so_far = await self._off_loop(add, group)
        except Exception as error:
            running.error = error
            waiting = [running.turn(number) for number in range(running.num_slots)]
            for turn in waiting:
                if not turn.done():
                    turn.set_exception(error)
                    turn.exception()  # members that never come do not look at it
            return
        self._finish(key, running)

    async def _off_loop(self, plan: Callable[[GroupSoFar], T], group: GroupSoFar) -> T:
        if self._thread is None:
            return plan(group)
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(plan, group))

    async def _fill(self, running: _Running, planned: PlannedRound, first_slot: int) -> list[Sample]:
        numbers = range(first_slot, first_slot + planned.ask.size)
        for number in numbers:
            turn = running.turn(number)
            if not turn.done():
                turn.set_result(planned)
        return [await running.report(number) for number in numbers]

    async def _context(self, planned: PlannedRound, sample_context: SampleContext) -> list[Sample]:
        indices = range(planned.first_index, planned.first_index + planned.ask.size)
        return list(await asyncio.gather(*(self._sample(planned, sample_context, index) for index in indices)))

    async def _sample(self, planned: PlannedRound, sample_context: SampleContext, index: int) -> Sample:
        """One context sample; its failure is a value, so that it cannot fail the group."""
        timeout = self.planner.config.draft_timeout
        try:
            sampling = asyncio.ensure_future(sample_context(planned, index))
            if not await _finished(sampling, timeout):
                return Sample(outcome=Outcome.TIMEOUT, detail=f"no answer within draft_timeout={timeout} s")
            if sampling.cancelled():  # one request, not the round: then the line above had raised
                return Sample(outcome=Outcome.EXCEPTION, detail="the host cancelled this sample")
            return sampling.result()
        except (asyncio.TimeoutError, TimeoutError):
            return Sample(outcome=Outcome.TIMEOUT, detail="the host timed out")
        except Exception as error:
            return Sample(outcome=Outcome.EXCEPTION, detail=describe(error))

    def _finish(self, key: Hashable, running: _Running) -> None:
        """Pass the group on, once; one that was torn down with what its members reported."""
        group = running.so_far
        if running.finished or group is None or not (group.samples or group.rounds):
            return
        running.finished = True
        if group.end is None and group.rounds and group.rounds[-1].number not in {s.round for s in group.samples}:
            first = len(group.slots)
            planned = group.rounds[-1]
            reports = [running.reports.get(number) for number in range(first, first + planned.ask.size)]
            done = [report.result() for report in reports if report is not None and report.done()]
            if planned.ask.use is Use.FILL and done:
                group = self.planner.add(group, done)
        if group.samples:
            self._on_finished(key, self.planner.close(group))


def _first_slot(group: GroupSoFar, planned: PlannedRound) -> int:
    """The first slot that a round fills: rounds before it that fill slots come first."""
    return sum(r.ask.size for r in group.rounds if r.ask.use is Use.FILL and r.number < planned.number)


async def _finished(sampling: asyncio.Future[Sample], timeout: float | None) -> bool:
    """Whether it ended in time, however it ended. Where it did not, or this is cancelled, it is cancelled too."""
    try:
        await asyncio.wait((sampling,), timeout=timeout)
        return sampling.done()
    finally:
        if not sampling.done():
            sampling.cancel()
            await asyncio.wait((sampling,))
            if not sampling.cancelled():
                sampling.exception()  # looked at, so that asyncio does not report it as forgotten
