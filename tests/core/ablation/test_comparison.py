"""Means, intervals and verdicts, against scipy's own tests and by hand."""

from __future__ import annotations

from math import isnan

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from refine_wrapper.study.ablation.comparison import ResultsError, caution, compare, interval, sentence, summary
from refine_wrapper.study.ablation.screen import markdown

VALUES = st.lists(st.floats(-5, 5).map(lambda value: round(value, 3)), min_size=3, max_size=6)


def row(
    cell: str, *, refined: bool, seed: int, value: float, step: int = 9, metric: str = "m", **other: object
) -> dict[str, object]:
    return {
        "cell": cell,
        "host": "trl",
        "objective": "grpo",
        "task": "sort",
        "refined": refined,
        "mode": "paper" if refined else None,
        "num_drafts": 4 if refined else 0,
        "group_size": 4 if refined else 8,
        "selector": "best" if refined else None,
        "template": "append" if refined else None,
        "share": 1.0 if refined else None,
        "options": None,
        "seed": seed,
        "metric": metric,
        "step": step,
        "value": value,
        **other,
    }


def table(plain: dict[int, float], refined: dict[int, float]) -> pd.DataFrame:
    rows = [row(f"p{seed}", refined=False, seed=seed, value=value) for seed, value in plain.items()]
    return pd.DataFrame(
        rows + [row(f"r{seed}", refined=True, seed=seed, value=value) for seed, value in refined.items()]
    )


@settings(max_examples=30, deadline=None)
@given(VALUES, st.randoms())
def test_differences_are_those_of_a_paired_t_test(plain: list[float], random: object) -> None:
    refined = [value + random.uniform(-1, 1) for value in plain]  # type: ignore[attr-defined]
    differences = [after - before for before, after in zip(plain, refined, strict=True)]
    assume(max(differences) - min(differences) > 1e-6)  # scipy has no answer where all are equal
    (found,) = compare(table(dict(enumerate(plain)), dict(enumerate(refined))), "m")
    test = stats.ttest_rel(refined, plain)
    low, high = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.difference == pytest.approx(sum(refined) / len(refined) - sum(plain) / len(plain))


def test_only_seeds_that_both_have_are_compared() -> None:
    (found,) = compare(table({0: 1.0, 1: 2.0, 2: 50.0}, {0: 2.0, 1: 4.0, 3: -50.0}), "m")
    assert found.seeds == (0, 1)
    assert (found.plain_mean, found.refined_mean, found.difference) == (1.5, 3.0, 1.5)


def test_the_last_value_of_a_cell_counts() -> None:
    rows = [row("p", refined=False, seed=0, value=9.0, step=1), row("p", refined=False, seed=0, value=1.0, step=30)]
    rows += [
        row("p", refined=False, seed=0, value=5.0, step=12),
        row("p", refined=False, seed=0, value=float("nan"), step=40),
    ]
    assert summary(pd.DataFrame(rows), "m")["mean"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.30, 0.31, 0.29], "refined higher"),
        ([-0.30, -0.31, -0.29], "refined lower"),
        ([0.3, -0.2, 0.1], "no difference shown"),
        ([0.0, 0.0, 0.0], "no difference shown"),
        ([0.5], "one seed: nothing can be said"),
        ([], "no seed in common"),
    ],
)
def test_verdicts(differences: list[float], verdict: str) -> None:
    refined = {seed: 0.5 + value for seed, value in enumerate(differences)} or {99: 0.5}
    (found,) = compare(table(dict.fromkeys(range(3), 0.5), refined), "m")
    assert found.verdict == verdict
    said = sentence([found], "m")
    assert said.startswith(f"m, 4 + 4, best against plain 8 at {len(found.seeds)} seed")
    assert verdict in said


def test_many_comparisons_need_more_than_one_low_p_value() -> None:
    """p = 0.018 alone is below 0.05; as the lowest of five it is not."""
    alone = table({0: 0.0, 1: 0.0, 2: 0.0}, {0: 0.8, 1: 1.0, 2: 1.3})
    (found,) = compare(alone, "m")
    assert found.p < 0.05
    assert found.verdict == "refined higher"
    others = [
        row(f"{name}-{kind}{seed}", refined=kind == "r", seed=seed, value=value, objective=name)
        for name in "abcd"
        for kind, values in (("p", (0.0, 0.0, 0.0)), ("r", (1.0, -1.0, 0.3)))
        for seed, value in enumerate(values)
    ]
    first, *rest = compare(pd.concat([alone, pd.DataFrame(others)]), "m")
    assert first.p == pytest.approx(min(1.0, 5 * found.p))
    assert first.verdict == "no difference shown"
    assert {other.verdict for other in rest} == {"no difference shown"}


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(ResultsError, match=r"no cell has a value of .x.\. There are: m"):
        compare(table({0: 1.0}, {0: 1.0}), "x")


def test_settings_that_differ_in_an_option_are_two() -> None:
    rows = [row("p", refined=False, seed=0, value=1.0)]
    rows += [row(name, refined=True, seed=0, value=2.0, options=f"rounds={name}") for name in "23"]
    assert [found.refined for found in compare(pd.DataFrame(rows), "m")] == [
        "4 + 4, best, rounds=2",
        "4 + 4, best, rounds=3",
    ]


def test_results_from_before_modes_are_compared() -> None:
    old = table({0: 1.0}, {0: 2.0}).drop(columns=["mode", "options"])
    assert [found.refined for found in compare(old, "m")] == ["4 + 4, best"]


def test_a_comparison_by_training_reward_says_what_it_is() -> None:
    rows = table({0: 1.0}, {0: 2.0})
    for metric, said in (("reward", True), ("eval/single_shot", False)):
        of_metric = rows.assign(metric=metric)
        text = markdown(summary(of_metric, metric), compare(of_metric, metric), metric, "2 finished")
        assert ("refinements saw a draft" in text) == said
        assert bool(caution(metric)) == said


def test_one_value_has_no_interval() -> None:
    found = interval([0.4])
    assert found.mean == 0.4
    assert isnan(found.low)
    assert isnan(found.p)
