"""Synchronous batches over ranks."""

from __future__ import annotations

import pytest
from core_standins import refiner_with, scored
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.batch import BatchStages, Question
from refine_wrapper.core.types import Action, Refinement


@given(groups=st.integers(1, 9), drafts=st.integers(1, 6), ranks=st.integers(1, 5), share=st.sampled_from([0.5, 1.0]))
def test_the_layout_of_stage_1(groups: int, drafts: int, ranks: int, share: float) -> None:
    """Equal shares in rank order; N adjacent rows for each open group; padding of whole groups, at the end only."""
    refiner = refiner_with(num_drafts=drafts, refine_share=share)
    stages = BatchStages(refiner, [Question(f"g{n}", f"q{n}") for n in range(groups)], ranks)
    rows = stages.draft_rows
    shares = [rows.share(rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in shares}) == 1
    assert tuple(row for part in shares for row in part) == rows.groups
    real = rows.groups[: rows.num_real]
    assert sorted(set(real)) == list(dict.fromkeys(real))
    assert all(real.count(group) == drafts for group in set(real))
    padding = rows.groups[rows.num_real :]
    assert len(padding) % drafts == 0
    assert len(padding) < ranks * drafts
    sampled = [draft for _ in range(len(rows.groups) // drafts) for draft in scored(*range(drafts))]
    plans = stages.plan(sampled)
    assert {n for n, plan in enumerate(plans) if plan.action is Action.REFINE} == set(real)
    assert all(len(plan.drafts_N) == drafts for plan in plans if plan.action is Action.REFINE)


def test_rows_say_what_to_do() -> None:
    stages = BatchStages(refiner_with(num_drafts=1, on_no_draft="skip"), [Question("a", "qa"), Question("b", "qb")])
    stages.plan([*scored(1.0), *scored(None)])
    rows = stages.rows(2)
    assert [(row.group_id, row.refined, row.trained) for row in rows] == [("a", True, True)] * 2 + [
        ("b", False, False)
    ] * 2
    assert rows[2].prompt == "qb"
    metrics = stages.finish([Refinement("x", 1.0, 3)] * 4, step=7)
    assert metrics["refine/groups"] == 2
    assert metrics["refine/fallbacks/no_usable_draft"] == 1


def test_wrong_counts_are_refused() -> None:
    stages = BatchStages(refiner_with(num_drafts=2), [Question("a", "q")])
    with pytest.raises(ValueError, match="sampled 1 rows, 2 were laid out"):
        stages.plan(scored(1.0))
    stages.plan(scored(1.0, 0.0))
    other = BatchStages(refiner_with(num_drafts=1), [Question("a", "q"), Question("b", "q")])
    other.plan(scored(1.0) * 2)
    with pytest.raises(ValueError, match="do not divide"):
        other.finish([Refinement()] * 3)
