"""Each selector's rule, and what all of them have in common: the same choice on every rank and in every order."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from core_standins import built_in, paper_group, planner_with, plugins_with
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.selection.interface import SelectionContext
from refine_wrapper.core.types import GroupId, Sample
from refine_wrapper.errors import ConfigError, PluginError
from refine_wrapper.plugins.hookspecs import hookimpl

NAMES = ("best", "random", "worst_formatted", "best_imperfect", "median", "wrong_first")
DRAWN = ("random", "wrong_first")
CONTEXT = SelectionContext("group", seed=0, max_reward=1.0)

rewards_N = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0]), min_size=1, max_size=8)


def draft(index: int, text: str, reward: float, **options: Any) -> Sample:
    return Sample(text, reward=reward, index=index, visible=text, **options)


def drafts_of(*rewards: float, **options: Any) -> list[Sample]:
    return [draft(index, f"text {index}", float(reward), **options) for index, reward in enumerate(rewards)]


def choose(name: str, drafts: list[Sample], context: SelectionContext = CONTEXT, **options: Any) -> int:
    return built_in().get("selector", name)(**options).select(drafts, context).index


def test_these_are_all_selectors() -> None:
    assert sorted(built_in().all("selector")) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "rewards", "chosen"),
    [
        ("best", (0.1, 0.9, 0.9, 0.2), 1),
        ("best", (-2, -1, -1), 1),
        ("worst_formatted", (0.5, 0.1, 0.1, 0.9), 1),
        ("best_imperfect", (0.2, 1.0, 0.7, 0.7), 2),
        ("best_imperfect", (1.5, 0.0, 1.0), 1),
        ("best_imperfect", (1.0, 1.5, 1.5), 1),
        ("best_imperfect", (1.0, 1.0), 0),
        ("median", (3, 1, 2), 2),
        ("median", (4, 3, 2, 1), 2),
        ("median", (0, 1, 0, 1), 0),
        ("median", (1, 0, 1), 0),
        ("median", (7,), 0),
        ("median", (2, 1), 1),
    ],
)
def test_the_rule(name: str, rewards: tuple[float, ...], chosen: int) -> None:
    assert choose(name, drafts_of(*rewards)) == chosen


def test_best_imperfect_goes_by_the_configured_maximum() -> None:
    assert choose("best_imperfect", drafts_of(0.5, 1.0, 2.0), SelectionContext("g", 0, max_reward=2.0)) == 1


def test_worst_formatted_wants_drafts_that_ended_by_themselves() -> None:
    drafts = [draft(0, "a", 0.0, finished=False), draft(1, "b", 0.5), draft(2, "c", 0.2), draft(3, "d", 0.2)]
    assert choose("worst_formatted", drafts) == 2


def test_worst_formatted_wants_the_pattern_across_lines() -> None:
    drafts = [
        draft(0, "no answer", 0.0),
        draft(1, "<answer>\n1\n</answer>", 1.0),
        draft(2, "so <answer>2</answer>", 0.5),
        draft(3, "<answer>3</answer>", 0.1, finished=False),
    ]
    assert choose("worst_formatted", drafts, pattern="<answer>.*</answer>") == 2


def test_worst_formatted_takes_the_worst_of_all_where_none_is_well_formed() -> None:
    drafts = drafts_of(0.5, 0.1, 0.1, finished=False)
    assert choose("worst_formatted", drafts) == 1
    assert choose("worst_formatted", drafts_of(0.5, 0.1), pattern="boxed") == 1


@pytest.mark.parametrize("pattern", ["(", 5, "a{99999999999999999999}"])
def test_a_bad_pattern_is_refused_at_start(pattern: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"selector_options pattern = .*(is no regular expression: |should be a valid string)"
    ):
        planner_with(selector="worst_formatted", selector_options={"pattern": pattern})


def test_an_unknown_selector_names_the_nearest() -> None:
    with pytest.raises(PluginError) as raised:
        planner_with(selector="worst_format")
    assert str(raised.value) == "refine: unknown selector 'worst_format'. Did you mean 'worst_formatted'?"


@pytest.mark.parametrize(("selector", "fields"), [("best", "none"), ("worst_formatted", "pattern")])
def test_an_unknown_option_names_those_there_are(selector: str, fields: str) -> None:
    with pytest.raises(ConfigError) as raised:
        planner_with(selector=selector, selector_options={"speed": 3})
    has = f"It has: {fields}. " if fields != "none" else "It has none."
    assert str(raised.value).startswith(
        f"refine: selector '{selector}' has no option 'speed' (selector_options). {has}"
    )


@given(rewards_N, st.sampled_from(NAMES), st.integers(0, 99), st.integers(0, 9))
def test_every_rank_makes_the_same_choice(rewards: list[float], name: str, place: int, seed: int) -> None:
    shown = []
    for _ in range(2):
        planner = planner_with(selector=name, seed=seed, num_drafts=len(rewards))
        shown.append(paper_group(planner, rewards, (1.0,), place).rounds[1].ask.show)
    assert shown[0] == shown[1]


@given(rewards_N, st.sampled_from([name for name in NAMES if name not in DRAWN]), st.data())
def test_a_rule_by_reward_chooses_the_same_reward_from_any_permutation(
    rewards: list[float], name: str, data: st.DataObject
) -> None:
    drafts = drafts_of(*rewards)
    shuffled = [draft(i, d.text, d.reward or 0.0) for i, d in enumerate(data.draw(st.permutations(drafts)))]
    assert drafts[choose(name, drafts)].reward == shuffled[choose(name, shuffled)].reward


@given(rewards_N, st.sampled_from([name for name in NAMES if name not in DRAWN]))
def test_ties_go_to_the_lowest_index(rewards: list[float], name: str) -> None:
    index = choose(name, drafts_of(*rewards))
    assert rewards.index(rewards[index]) == index


@given(rewards_N, st.text(max_size=5), st.integers(0, 99))
def test_random_depends_on_seed_and_group_alone(rewards: list[float], group_id: str, seed: int) -> None:
    context = SelectionContext(group_id, seed, 1.0)
    other_rewards = [reward + 1 for reward in reversed(rewards)]
    assert choose("random", drafts_of(*rewards), context) == choose("random", drafts_of(*other_rewards), context)


def test_random_is_roughly_uniform_over_groups_and_seeds() -> None:
    drafts = drafts_of(1, 0, 0, 0)
    by_group = Counter(choose("random", drafts, SelectionContext(f"g{i}", 3, 1.0)) for i in range(2000))
    by_seed = Counter(choose("random", drafts, SelectionContext("g", i, 1.0)) for i in range(2000))
    for counts in (by_group, by_seed):
        assert sorted(counts) == [0, 1, 2, 3]
        assert all(430 < count < 570 for count in counts.values()), counts  # 500 +- 3.6 standard deviations


def test_wrong_first_draws_among_wrong_drafts_else_among_all() -> None:
    contexts = [SelectionContext(f"g{i}", 0, 1.0) for i in range(200)]
    assert {choose("wrong_first", drafts_of(1, 0, 1, 0.5), context) for context in contexts} == {1, 3}
    assert {choose("wrong_first", drafts_of(1, 1, 1), context) for context in contexts} == {0, 1, 2}


def test_selectors_cross_processes() -> None:
    for name in NAMES:
        selector = built_in().get("selector", name)()
        assert pickle.loads(pickle.dumps(selector)) == selector


def test_a_selector_only_sees_usable_drafts_in_index_order() -> None:
    seen: list[list[int]] = []

    @dataclass(frozen=True)
    class Spy:
        def select(self, drafts: Any, context: SelectionContext) -> Sample:
            seen.append([draft.index for draft in drafts])
            assert context == SelectionContext(str(GroupId("train", 0, 0)), 5, 3.0)
            return drafts[-1]

    class Plugin:
        @hookimpl
        def register_selectors(self) -> Any:
            return {"spy": Spy}

    assert "spy" in plugins_with(Plugin()).all("selector")
    planner = planner_with(Plugin(), selector="spy", seed=5, max_reward=3.0, num_drafts=5)
    group = paper_group(planner, (None, 1.0, "bad", 0.0, float("nan")), (1.0,))
    assert seen == [[1, 3]]
    assert (group.rounds[1].ask.show, group.selector) == (3, "spy")
