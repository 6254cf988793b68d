"""Which rows go together: ids of groups, and cuts of a batch that go through none of them."""

from __future__ import annotations

from collections.abc import Sequence

from refine_wrapper.core.types import GroupId, Purpose


class GroupIds:
    """Ids of groups by step and place: veRL's uids are random, and with them no run could be repeated."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Purpose, int], int] = {}

    def next(self, uids: Sequence[str], step: int, validate: bool) -> list[GroupId]:
        """An id for each row, the same for rows of one uid; numbering goes on where the step's last batch ended."""
        purpose: Purpose = "eval" if validate else "train"
        step = int(step)
        start = self._counts.get((purpose, step), 0)
        places = {uid: start + place for place, uid in enumerate(dict.fromkeys(uids))}
        self._counts = {key: count for key, count in self._counts.items() if key[0] != purpose}  # steps only go up
        self._counts[purpose, step] = start + len(places)
        return [GroupId(purpose, step, places[uid]) for uid in uids]


def whole_group_slices(uids: Sequence[str], num_chunks: int) -> list[slice]:
    """Cut rows, of which those of a group are adjacent, into at most ``num_chunks`` slices of about equal size.

    No slice is empty, and none cuts a group. (Padding that repeats the first rows at the end forms groups of its own.)
    """
    starts = [row for row in range(len(uids)) if row == 0 or uids[row] != uids[row - 1]]
    cuts = [0]
    for chunk in range(1, num_chunks):
        wanted = len(uids) * chunk / num_chunks
        possible = [start for start in starts if start > cuts[-1]]
        if possible:
            cuts.append(min(possible, key=lambda start: abs(start - wanted)))
    return [slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(uids)], strict=True)]
