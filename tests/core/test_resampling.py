"""Dynamic sampling: which groups are drawn again, how often, on which prompts, and what takes whose place."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from core_standins import paper_group, planner_with
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.metrics import OTHER_METRICS, summarize
from refine_wrapper.core.resampling import Candidate, Resampling, has_gradient, placed
from refine_wrapper.core.trace import TraceWriter, read_trace
from refine_wrapper.core.types import GroupId
from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings
from refine_wrapper.hosts.objectives import resampling_rounds
from refine_wrapper.plugins.hookspecs import hookimpl
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

batches = st.fixed_dictionaries(
    {
        "active": st.lists(st.booleans(), min_size=1, max_size=7),
        "limit": st.integers(0, 5),
        "group_size": st.integers(1, 6),
        "num_ranks": st.integers(1, 5),
        "num_prompts": st.none() | st.integers(1, 40),
        "seed": st.integers(0, 3),
    }
)


def _resampling(active: list[bool], **settings: Any) -> Resampling:
    given: dict[str, Any] = {"limit": 9, "seed": 0, "num_prompts": 50, "group_size": 4, **settings}
    return Resampling([GroupId("train", 0, n) for n in range(len(active))], active, **given)


@given(batches, st.data())
def test_the_rule(batch: dict[str, Any], data: st.DataObject) -> None:
    """At most `limit` rounds; each for all open groups and for no others; a group is replaced by its own candidate only."""
    active, ranks, size = batch["active"], batch["num_ranks"], batch["group_size"]
    resampling, twin = _resampling(**batch), _resampling(**batch)
    open_groups = [position for position, is_active in enumerate(active) if not is_active]
    first, ids, prompts, rounds = list(open_groups), list[GroupId](), list[int](), 0
    while candidates := resampling.candidates():
        assert candidates == twin.candidates(), "another rank would come to something else"
        rounds += 1
        assert len(candidates) * size % ranks == 0, "ranks cannot sample equal shares"
        assert len(candidates) < len(open_groups) + ranks, "more candidates than it takes to fill up"
        assert [c.position for c in candidates[: len(open_groups)]] == open_groups
        assert {c.position for c in candidates} == set(open_groups)
        ids += [c.group_id for c in candidates]
        prompts += [c.prompt_index for c in candidates if c.prompt_index is not None]
        found = data.draw(st.lists(st.booleans(), min_size=len(candidates), max_size=len(candidates)))
        taken = resampling.replace(found)
        assert taken == twin.replace(found)
        succeeded = [n for n, is_active in enumerate(found) if is_active]
        expected: dict[int, int] = {}
        for number in reversed(succeeded):
            expected[candidates[number].position] = number  # the first of several for one group
        assert taken == expected
        open_groups = [position for position in open_groups if position not in taken]
    assert rounds <= batch["limit"]
    assert rounds == batch["limit"] or not open_groups
    assert len(set(ids)) == len(ids)
    if batch["num_prompts"] is not None:
        assert all(0 <= prompt < batch["num_prompts"] for prompt in prompts)
        twice = Counter(prompts)
        assert max(twice.values(), default=0) - min((twice[n] for n in range(batch["num_prompts"])), default=0) <= 1
    assert resampling.metrics(completions=7) == {
        "refine/inactive_groups": len(first),
        "refine/inactive_groups_kept": len(open_groups),
        "refine/resampling_rounds": rounds,
        "refine/resampled_groups": len(ids),
        "refine/resampled_completions": 7,
    }


@given(batches)
def test_nothing_is_drawn_again_where_all_groups_have_a_gradient(batch: dict[str, Any]) -> None:
    resampling = _resampling(**{**batch, "active": [True] * len(batch["active"])})
    assert resampling.candidates() == ()
    assert resampling.metrics(completions=0)["refine/resampling_rounds"] == 0


def test_the_group_s_own_prompt_where_no_others_can_be_drawn() -> None:
    resampling = _resampling([True, False], num_prompts=None)
    assert resampling.candidates() == (Candidate(1, GroupId("train", 0, 1, 1), None),)
    resampling.replace([False])
    assert resampling.candidates() == (Candidate(1, GroupId("train", 0, 1, 2), None),)


def test_ranks_only_add_candidates_to_fill_up() -> None:
    one = _resampling([False, True, False, False], group_size=3).candidates()
    two = _resampling([False, True, False, False], group_size=3, num_ranks=2).candidates()
    assert [c.position for c in one] == [0, 2, 3]
    assert two[:3] == one
    assert two[3].position == 0, "the fourth is a second chance for the first"


def test_prompts_depend_on_the_seed_and_the_group_alone_and_reach_all_of_the_data() -> None:
    def prompts(seed: int, step: int) -> list[int | None]:
        ids = [GroupId("train", step, n) for n in range(4)]
        made = Resampling(ids, [False] * 4, limit=1, seed=seed, num_prompts=16, group_size=4)
        return [c.prompt_index for c in made.candidates()]

    assert prompts(0, 3) == prompts(0, 3)
    assert prompts(0, 3) != prompts(1, 3)
    assert prompts(0, 3) != prompts(0, 4)
    counts = Counter(prompt for step in range(400) for prompt in prompts(0, step))
    assert len(counts) == 16
    assert 60 < min(counts.values()) <= max(counts.values()) < 140  # 100 each on average


@given(
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.data(),
)
def test_rows_of_replaced_groups_are_placed_once_on_whatever_rank(
    replaced: list[bool], group_size: int, num_ranks: int, data: st.DataObject
) -> None:
    replaced = replaced * num_ranks  # so that rows divide over the ranks
    order = data.draw(st.permutations(range(sum(replaced))))
    taken = dict(zip([n for n, is_taken in enumerate(replaced) if is_taken], order, strict=True))
    per_rank = len(replaced) * group_size // num_ranks
    moved: dict[int, int] = {}
    for rank in range(num_ranks):
        for row, source in placed(group_size, taken, rank * per_rank, per_rank):
            assert 0 <= row < per_rank
            assert rank * per_rank + row not in moved
            moved[rank * per_rank + row] = source
    assert moved == {p * group_size + i: n * group_size + i for p, n in taken.items() for i in range(group_size)}


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([[1.0, 1.0, 0.0, 0.0]], [False, False]),
        ([[1.0, 0.0, 0.5, 0.5]], [True, False]),
        ([[nan, nan, 0.5, nan]], [False, False]),
        ([[0.1 + 0.2, 0.3, -1.0, 1.0]], [False, True]),  # rounding is no difference
        ([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], [True, False]),  # of two functions that are normalised apart
    ],
)
def test_a_group_has_a_gradient_where_its_rewards_differ(rewards: list[list[float]], expected: list[bool]) -> None:
    assert has_gradient([True, True], rewards) == expected


def test_a_group_that_is_not_trained_has_none() -> None:
    assert has_gradient([False, True], [[1.0, 0.0, 1.0, 0.0]]) == [False, True]


def test_replaced_groups_count_in_what_was_sampled_alone(tmp_path: Path) -> None:
    planner = planner_with(num_drafts=2)
    kept = paper_group(planner, (0.0, 1.0), (1.0, 0.0))
    gone = replace(paper_group(planner, (1.0, 1.0), (1.0, 1.0), 1), replaced=True)
    assert kept.trainable
    assert not gone.trainable
    alone = summarize([kept], max_reward=1.0, extract_answer=str.strip)
    both = summarize([kept, gone], max_reward=1.0, extract_answer=str.strip)
    doubled = {"refine/draft_tokens", "refine/refinement_tokens", "refine/completions"}
    assert {name for name in alone if alone[name] != both[name]} == doubled
    assert both["refine/completions"] == 2 * alone["refine/completions"]
    writer = TraceWriter(tmp_path)
    writer.write(kept)
    writer.write(gone)
    assert [group.get("replaced") for group in read_trace(tmp_path)] == [None, True]


def test_the_names_are_documented() -> None:
    assert set(_resampling([True]).metrics(completions=0)) <= set(OTHER_METRICS)


class _Objectives:
    @hookimpl
    def register_objectives(self) -> dict[str, dict[str, ObjectiveSettings]]:
        return {"mine": {"host": ObjectiveSettings({}, dynamic_sampling=5), "other": ObjectiveSettings({})}}


@pytest.mark.parametrize(
    ("settings", "host", "rounds"),
    [
        ({}, "host", 0),
        ({"objective": "mine"}, "host", 5),
        ({"objective": "mine"}, "other", 0),
        ({"objective": "mine", "dynamic_sampling": 2}, "host", 2),
        ({"objective": "mine", "dynamic_sampling": 0}, "host", 0),
        ({"dynamic_sampling": 3}, "host", 3),
        ({"dynamic_sampling": 3, "enabled": False}, "host", 3),
    ],
)
def test_what_the_settings_say_comes_before_what_the_objective_needs(
    settings: dict[str, Any], host: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plugins(_modules: object = ()) -> Plugins:
        made = Plugins(entry_points=False)
        made._manager.register(_Objectives())  # pyright: ignore[reportPrivateUsage]
        made._registries["objective"] = made._collect("objective", "register_objectives")  # pyright: ignore[reportPrivateUsage]
        return made

    monkeypatch.setattr("refine_wrapper.hosts.objectives.Plugins", plugins)
    assert resampling_rounds(host, RefineConfig(**settings)) == rounds


def test_hosts_with_their_own_name_it() -> None:
    RefineConfig(dynamic_sampling=0).refuse_dynamic_sampling("veRL", "its_flag=True")
    with pytest.raises(ConfigError, match="veRL has its own: use its_flag=True"):
        RefineConfig(dynamic_sampling=1, enabled=False).refuse_dynamic_sampling("veRL", "its_flag=True")


def test_settings_without_refinement_keep_what_is_not_refinement() -> None:
    config = RefineConfig(selector="nowhere", dynamic_sampling=2, dynamic_sampling_prompts="same", seed=4, num_drafts=3)
    left = config.without_refinement()
    assert not left.active
    assert (left.dynamic_sampling, left.dynamic_sampling_prompts, left.seed, left.selector) == (2, "same", 4, "best")
