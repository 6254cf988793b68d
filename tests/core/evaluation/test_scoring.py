"""Rewards by name, and rewards that misbehave."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from core_standins import built_in
from evaluation_standins import StandInEngine, answers_of, exact, measured, questions

from refine_wrapper.errors import ConfigError, NoRewardError
from refine_wrapper.rewards.reasoning_gym import ReasoningGymReward, answer_of
from refine_wrapper.study.evaluation.scoring import RewardError, find_reward


def test_rewards_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def always(completions, **columns):\n    return [1.0] * len(completions)\n")
    found, identity = find_reward(f"{file}:always", questions(), built_in())
    assert found(completions=["a"]) == [1.0]
    # Of another length: Python takes a file of the same size and second for unchanged.
    file.write_text(file.read_text().replace("1.0", "0.50"))
    assert find_reward(f"{file}:always", questions(), built_in())[1]["digest"] != identity["digest"]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_reward("mine:always", questions(), built_in())[0](completions=["a"]) == [0.5]
    assert find_reward(None, questions(), built_in())[1] == {"name": "math"}
    assert find_reward("format", questions(), built_in())[0](completions=["<answer>1</answer>"]) == [1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "there is no reward 'maths'. Did you mean 'math'?"),
        ("{folder}/none.py:reward", "there is no reward file"),
        ("{folder}/mine.py:alway", "has no function 'alway'. Did you mean 'always'?"),
        ("{folder}/broken.py:reward", "cannot be run: ZeroDivisionError"),
        ("no_such_module:reward", "the reward module 'no_such_module' cannot be imported"),
    ],
)
def test_rewards_that_cannot_be_found(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text("def always(completions, **columns): ...\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(RewardError) as refused:
        find_reward(name.format(folder=tmp_path), questions(), built_in())
    assert message in str(refused.value)


def test_a_reward_gets_only_what_it_takes_unless_it_takes_all() -> None:
    def strict(completions: list[str], answer: list[str]) -> list[float]:
        return exact(completions, answer)

    async def later(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        return exact(completions, answer)

    expected = measured(StandInEngine()).measures
    for reward in (strict, later):
        assert measured(StandInEngine(), reward).measures == expected


def test_one_bad_reward_costs_one_answer(tmp_path: Path) -> None:
    def picky(completions: list[str], answer: list[str], **columns: Any) -> list[Any]:
        if "7" in completions:
            raise RuntimeError("seven")
        return [math.nan if text == "3" else [float(text == "5")] for text in completions]

    evaluation = measured(StandInEngine(), picky, out=tmp_path, draft_choice="none", samples=20)
    single = answers_of(tmp_path, "single_shot")
    failures = {a["text"]: a.get("failure") for a in single}
    assert failures["7"] == "reward_exception: RuntimeError: seven"
    assert failures["3"].startswith("non_finite")
    assert {text: failure for text, failure in failures.items() if text not in "37"} == dict.fromkeys("01245689")
    assert all((a["reward"] is None) == (a["text"] in "37") for a in single)
    failed = sum(a["text"] in "37" for a in single)
    assert evaluation.measures["single_shot"].counts["without_reward"] == failed > 0
    assert evaluation.accuracy().value == pytest.approx(sum(a["text"] == "5" for a in single) / len(single))
    scored = [a["reward"] for a in single if a["reward"] is not None]
    assert 0 < sum(scored) < len(scored)


def test_a_problem_that_the_reward_does_not_apply_to_is_left_out() -> None:
    def sometimes(completions: list[str], answer: list[str], **columns: Any) -> list[Any]:
        return [None if right in "12" else 1.0 for right in answer]

    evaluation = measured(StandInEngine(), sometimes)
    assert (evaluation.num_problems, evaluation.unscored) == (5, 2)
    assert evaluation.accuracy() == evaluation.measures["with_draft"].figures["avg@4"]
    assert (evaluation.accuracy().value, evaluation.accuracy().num_problems) == (1.0, 3)
    assert list(evaluation.measures["single_shot"].per_problem) == ["0", "3", "4"]


def test_a_reward_that_never_works_ends_the_evaluation() -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise KeyError("gold")

    def short(completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * 99

    engine = StandInEngine()
    with pytest.raises(NoRewardError, match="'broken' failed on every completion so far: KeyError: 'gold'"):
        measured(engine, broken)
    assert len(engine.prompts) == 1
    with pytest.raises(NoRewardError, match="returned 99 values for 1 completions"):
        measured(StandInEngine(), short)


def test_a_shipped_reward_without_its_column_says_so() -> None:
    with pytest.raises(ConfigError, match="needs the column 'entry'"):
        measured(StandInEngine(), ReasoningGymReward())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 42 \n", "42"),
        ("<think>I guess <answer>1</answer></think>So <answer> 42 </answer>.", "42"),
        ("<answer>1</answer> no, <answer>42</answer>", "42"),
        ("<answer>42", "42"),
        (r"It is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("#### a wall\n####", "#### a wall\n####"),
    ],
)
def test_the_answer_in_a_completion(text: str, answer: str) -> None:
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "holds text that is not JSON"),
        (7, "must hold mappings or JSON text, not 7"),
        ({"answer": "1"}, "metadata.source_dataset of an entry must name its task"),
    ],
)
def test_entries_that_are_none(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ReasoningGymReward()(completions=["1"], entry=[entry])
    assert message in str(refused.value)


def test_what_counts_as_right() -> None:
    """Below the highest reward is not right, unless the settings say from where; the mean reward does not care."""

    def graded(completions: list[str], **columns: Any) -> list[float]:
        return [int(text) / 9 for text in completions]

    several: list[dict[str, Any]] = [{}, {"correct_at": 4 / 9}, {"refine": {"max_reward": 8 / 9}}, {"correct_at": 0.0}]
    accuracy = [
        measured(StandInEngine(), graded, draft_choice="none", samples=40, **settings).accuracy().value
        for settings in several
    ]
    highest, from_four, from_eight, everything = accuracy
    assert (highest, from_eight, from_four) == pytest.approx((0.1, 0.2, 0.6), abs=0.1)
    assert 0 < highest < from_eight < from_four < everything == 1.0
    reward = (
        measured(StandInEngine(), graded, draft_choice="none", samples=40).measures["single_shot"].figures["reward"]
    )
    assert reward.value == pytest.approx(0.5, abs=0.1)
