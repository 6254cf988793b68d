"""Synchronous batches over ranks."""

from __future__ import annotations

import pytest
from core_standins import asked, planner_with, sampled
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.batch import BatchRounds, Wave
from refine_wrapper.core.planner import Planner
from refine_wrapper.core.types import Cause, Group, Progress, Sample, Use
from refine_wrapper.errors import ConfigError


def rounds_of(planner: Planner, num_groups: int, num_slots: int, num_ranks: int = 1) -> BatchRounds:
    questions = [asked(f"q{place}", place) for place in range(num_groups)]
    return BatchRounds(planner, questions, num_slots, Progress(1), num_ranks)


def pay(planner: Planner, wave: Wave, reward: float | None) -> list[Sample]:
    return [sample for row in wave.rows for sample in sampled(planner, [reward], row.planned)]


@given(
    st.sampled_from(["paper", "joint", "on_failure", "rescue", "rounds"]),
    st.integers(1, 7),
    st.integers(2, 6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([0.5, 1.0]),
    st.data(),
)
def test_waves_share_evenly_and_fill_every_slot_once(
    mode: str, num_groups: int, num_slots: int, num_drafts: int, num_ranks: int, share: float, data: st.DataObject
) -> None:
    planner = planner_with(mode=mode, num_drafts=num_drafts, refine_share=share)
    try:
        planner.mode.check(num_slots, planner.rules)
    except ConfigError:
        return
    batch = rounds_of(planner, num_groups, num_slots, num_ranks)
    filled: list[tuple[int, int]] = []
    waves: list[Wave] = []
    while (wave := batch.next_wave()) is not None:
        assert not (waves and waves[-1].final), "a final wave is the last"
        waves.append(wave)
        shares = [wave.share(rank, num_ranks) for rank in range(num_ranks)]
        assert len({len(part) for part in shares}) == 1
        assert tuple(row for part in shares for row in part) == wave.rows
        real = [row for row in wave.rows if not row.padding]
        assert list(wave.rows[: len(real)]) == real, "padding comes last"
        assert len(wave.rows) - len(real) < num_ranks * wave.repeat
        for start in range(0, len(wave.rows), wave.repeat):
            assert len({id(row.planned) for row in wave.rows[start : start + wave.repeat]}) == 1
        filled += [(row.position, row.slot) for row in real if row.slot is not None]
        rewards = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(wave.rows), max_size=len(wave.rows)))
        batch.add(
            [s for row, reward in zip(wave.rows, rewards, strict=True) for s in sampled(planner, [reward], row.planned)]
        )
    assert sorted(filled) == [(group, slot) for group in range(num_groups) for slot in range(num_slots)]
    groups = batch.groups_P(step=7)
    assert [group.id.place for group in groups] == list(range(num_groups))
    assert all(group.step == 7 and len(group.slots_S) == num_slots for group in groups)


def test_plain_groups_wait_for_the_refined_ones_so_that_the_last_wave_is_one_call() -> None:
    planner = planner_with(refine_share=0.5, num_drafts=2)
    batch = rounds_of(planner, 8, 3)
    first = batch.next_wave()
    assert first is not None
    assert {row.planned.ask.use for row in first.rows} == {Use.CONTEXT}
    assert 0 < len(first.rows) < 16
    batch.add(pay(planner, first, 1.0))
    last = batch.next_wave()
    assert last is not None
    assert [row.position for row in last.rows] == [position for position in range(8) for _ in range(3)]
    assert last.final
    assert last.repeat == 3


def test_rows_say_what_to_do() -> None:
    planner = planner_with(num_drafts=1, on_no_draft="skip")
    batch = rounds_of(planner, 2, 2)
    assert batch.next_wave() is not None
    batch.add(sampled(planner, (1.0, None)))
    wave = batch.next_wave()
    assert wave is not None
    assert [(row.position, row.slot, row.planned.ask.trained) for row in wave.rows] == [
        (0, 0, True),
        (0, 1, True),
        (1, 0, False),
        (1, 1, False),
    ]
    assert wave.rows[2].prompt == "q1"
    batch.add(pay(planner, wave, 1.0))
    groups: list[Group] = batch.groups_P()
    assert [group.cause for group in groups] == [None, Cause.NO_USABLE_DRAFT]


def test_wrong_counts_are_refused() -> None:
    planner = planner_with(num_drafts=2)
    batch = rounds_of(planner, 1, 2)
    with pytest.raises(ValueError, match="no wave is open"):
        batch.add([])
    batch.next_wave()
    with pytest.raises(ValueError, match="1 rows were sampled; 2 were laid out"):
        batch.add(sampled(planner, (1.0,)))
