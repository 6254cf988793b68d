"""The two stages of one prompt under concurrency: Stage 1 once, shared, shielded, and forgotten in the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from core_standins import refiner_with

from refine_wrapper.core.batch import BatchStages, Question
from refine_wrapper.core.rollout import Rollout
from refine_wrapper.core.trace import trace_record
from refine_wrapper.core.types import (
    Action,
    DraftOutcome,
    FallbackCause,
    GroupOutcome,
    GroupPlan,
    Refinement,
    SampledDraft,
)
from refine_wrapper.errors import NoDraftError

G = 4


async def one_group(
    rollout: Rollout, key: str, sample: Any, rng: random.Random, members: int = G, question: str = "q"
) -> list[GroupPlan | BaseException]:
    async def member() -> GroupPlan:
        with rollout.join(key, members) as me:
            await asyncio.sleep(rng.random() / 500)
            plan = await me.plan(key, question, sample)
            await asyncio.sleep(rng.random() / 500)
            me.report(Refinement("r", 1.0, 1))
            return plan

    return await asyncio.gather(*(member() for _ in range(members)), return_exceptions=True)


@pytest.mark.parametrize("seed", range(8))
def test_stage_1_runs_once_whatever_the_interleaving(seed: int) -> None:
    rng, calls, metrics = random.Random(seed), Counter[tuple[str, int]](), []
    rollout = Rollout(refiner_with(num_drafts=3), metrics.append)

    async def main() -> None:
        def sampler(key: str) -> Any:
            async def sample(index: int) -> SampledDraft:
                calls[key, index] += 1
                await asyncio.sleep(rng.random() / 500)
                return SampledDraft(f"draft {index}", float(index % 2), 1)

            return sample

        groups = await asyncio.gather(*(one_group(rollout, f"g{i}", sampler(f"g{i}"), rng) for i in range(6)))
        for plans in groups:
            assert len({id(plan) for plan in plans}) == 1
            assert plans[0].selection.draft.index == 1  # type: ignore[union-attr]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert calls == {(f"g{i}", n): 1 for i in range(6) for n in range(3)}
    assert rollout.groups_in_flight == 0
    assert len(metrics) == 6
    assert all(m["refine/completions"] == 3 + G for m in metrics)


def test_a_cancelled_member_does_not_take_stage_1_from_its_siblings() -> None:
    rollout = Rollout(refiner_with(num_drafts=2))

    async def main() -> None:
        go = asyncio.Event()

        async def sample(index: int) -> SampledDraft:
            await go.wait()
            return SampledDraft("d", 1.0, 1)

        async def member() -> GroupPlan:
            with rollout.join("g", 3) as me:
                return await me.plan("g", "q", sample)

        tasks = [asyncio.create_task(member()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(isinstance(plan, GroupPlan) and plan.action is Action.REFINE for plan in results[1:])

    asyncio.run(main())
    assert rollout.groups_in_flight == 0


def test_stage_1_ends_when_nobody_wants_it() -> None:
    rollout = Rollout(refiner_with(num_drafts=2))
    ended: list[int] = []

    async def main() -> None:
        async def sample(index: int) -> SampledDraft:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(index)
            raise AssertionError

        tasks = [asyncio.create_task(one_group(rollout, "g", sample, random.Random(0))) for _ in range(1)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert sorted(ended) == [0, 1]
    assert rollout.groups_in_flight == 0


def test_every_failure_is_typed_and_costs_one_draft() -> None:
    rollout = Rollout(refiner_with(num_drafts=6, draft_timeout=0.05))

    async def sample(index: int) -> SampledDraft:
        if index == 0:
            raise OSError("engine gone")
        if index == 1:
            await asyncio.sleep(60)
        return SampledDraft("ok" if index != 5 else " ", [None, None, None, float("nan"), [1.0, 2.0], 1.0][index], 1)

    plan = asyncio.run(one_group(rollout, "g", sample, random.Random(0)))[0]
    assert isinstance(plan, GroupPlan)
    assert [draft.outcome for draft in plan.drafts_N] == [
        DraftOutcome.EXCEPTION,
        DraftOutcome.TIMEOUT,
        DraftOutcome.NO_REWARD,
        DraftOutcome.NON_FINITE,
        DraftOutcome.WRONG_LENGTH,
        DraftOutcome.EMPTY,
    ]
    assert (plan.action, plan.cause, plan.prompt) == (Action.PLAIN, FallbackCause.NO_USABLE_DRAFT, "q")
    assert "engine gone" in plan.drafts_N[0].detail


def test_on_no_draft_error_reaches_every_member() -> None:
    rollout = Rollout(refiner_with(num_drafts=1, on_no_draft="error"))

    async def sample(index: int) -> SampledDraft:
        return SampledDraft("d", None)

    results = asyncio.run(one_group(rollout, "g", sample, random.Random(0)))
    assert all(isinstance(result, NoDraftError) for result in results)
    assert rollout.groups_in_flight == 0


def test_both_kinds_of_host_plan_the_same() -> None:
    """One decision path: the same drafts give the same plan through Rollout and through BatchStages."""
    rewards = [[0.0, 1.0, 1.0], [None, 0.5, 0.2], [None, None, None]]
    sampled = [[SampledDraft(f"d{i}", r, i + 1) for i, r in enumerate(group)] for group in rewards]
    refiner = refiner_with(num_drafts=3)
    batch = BatchStages(refiner, [Question(f"g{n}", f"q{n}") for n in range(3)])
    together = batch.plan([draft for group in sampled for draft in group])
    for number, group in enumerate(sampled):

        async def sample(index: int, group: list[SampledDraft] = group) -> SampledDraft:
            return group[index]

        plans = asyncio.run(one_group(Rollout(refiner), f"g{number}", sample, random.Random(1), question=f"q{number}"))
        alone = plans[0]
        assert isinstance(alone, GroupPlan)
        assert (alone.action, alone.prompt, alone.selection) == (
            together[number].action,
            together[number].prompt,
            together[number].selection,
        )


def test_finished_groups_are_handed_on_where_they_are_collected() -> None:
    """Nothing is taken note of here: who collects them calls finish(), perhaps in another process."""
    finished: list[tuple[Any, GroupOutcome]] = []
    refiner = refiner_with(num_drafts=2)
    noted: list[Any] = []
    refiner.finish = noted.append  # type: ignore[method-assign, assignment]
    rollout = Rollout(refiner, on_finished=lambda key, outcome: finished.append((key, outcome)))

    async def sample(index: int) -> SampledDraft:
        return SampledDraft(f"draft {index}", float(index), 1)

    asyncio.run(one_group(rollout, "g", sample, random.Random(0)))
    [(key, outcome)] = finished
    assert key == "g"
    assert len(outcome.refinements_G) == G
    assert noted == []
    assert rollout.groups_in_flight == 0


def test_a_refinement_without_a_usable_reward_is_named_and_its_group_not_trained() -> None:
    refiner = refiner_with(num_drafts=1)
    plan = refiner.plan("g", "q", [SampledDraft("draft", 1.0, 1)])
    good = refiner.refinement(SampledDraft("a", [0.5], 3, finished=False))
    assert good == Refinement("a", 0.5, 3, finished=False)
    bad = [
        refiner.refinement(SampledDraft("a", reward, 1, failure=failure, detail=detail))
        for reward, failure, detail in [
            (None, DraftOutcome.REWARD_EXCEPTION, "ValueError: no"),
            (None, None, ""),
            (float("nan"), None, ""),
            ([1.0, 2.0], None, ""),
        ]
    ]
    assert [r.failure for r in bad] == [
        "reward_exception: ValueError: no",
        "no_reward",
        "non_finite: nan",
        "wrong_length: not one number: [1.0, 2.0]",
    ]
    assert all(r.reward is None for r in bad)
    assert GroupOutcome(plan, (good, good)).trainable
    outcome = GroupOutcome(plan, (good, bad[0]))
    assert not outcome.trainable
    assert refiner.finish([outcome])["refine/refinement_failures"] == 1
    record = trace_record(outcome, texts=False)
    assert [r.get("failure") for r in record["refinements"]] == [None, "reward_exception: ValueError: no"]
