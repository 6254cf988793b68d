"""How a V0 batch is cut, and how groups are named."""

from __future__ import annotations

import pytest

from refine_wrapper_verl.chunks import GroupIds, whole_group_slices


@pytest.mark.parametrize(
    ("groups", "chunks", "sizes"),
    [
        ([3, 3, 3], 2, [3, 6]),  # groups that do not divide the workers
        ([4, 4, 4, 4], 2, [8, 8]),
        ([4], 3, [4]),  # fewer groups than workers
        ([5, 1, 1, 1], 2, [5, 3]),
        ([1, 1, 6], 2, [2, 6]),
        ([2, 2, 2, 2, 2], 3, [4, 2, 4]),
    ],
)
def test_no_cut_goes_through_a_group(groups: list[int], chunks: int, sizes: list[int]) -> None:
    uids = [f"g{number}" for number, size in enumerate(groups) for _ in range(size)]
    slices = whole_group_slices(uids, chunks)
    assert [rows.stop - rows.start for rows in slices] == sizes
    assert [uid for rows in slices for uid in uids[rows]] == uids
    owners = [{uids[row] for row in range(rows.start, rows.stop)} for rows in slices]
    assert all(not (a & b) for number, a in enumerate(owners) for b in owners[number + 1 :])


def test_groups_are_named_by_step_and_place() -> None:
    ids = GroupIds()

    def named(uids: list[str], step: int, validate: bool) -> list[str]:
        return list(map(str, ids.next(uids, step, validate)))

    assert named(["u", "u", "v"], 1, False) == ["train-1-0", "train-1-0", "train-1-1"]
    assert named(["w"], 1, False) == ["train-1-2"]  # a refill in the same step
    assert named(["x"], 1, True) == ["eval-1-0"]
    assert named(["y"], 2, False) == ["train-2-0"]
    assert named(["z"], 1, True) == ["eval-1-1"]
