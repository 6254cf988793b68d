"""The math reward without math-verify: columns, refusals, what needs no comparison."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from array import array
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.errors import ConfigError, RefineError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.rewards.math import MathReward
from refine_wrapper.rewards.math_gold import right_answers
from refine_wrapper.rewards.math_notation import LONGEST_ANSWER, final_answer, notation, readings
from refine_wrapper.rewards.math_process import MathProcesses


def test_a_process_that_cannot_start_says_why_and_what_to_install(stand_in: Path) -> None:
    (stand_in / "math_verify" / "__init__.py").write_text("raise ModuleNotFoundError('No module named math_verify')")
    what = r"cannot start: ModuleNotFoundError: No module named math_verify.*pip install 'refine-wrapper\[math\]'"
    with pytest.raises(RefineError, match=what):
        MathReward()(prompts=["q"], completions=["4"], answer=["4"])


def test_a_process_that_dies_at_once_says_so(stand_in: Path) -> None:
    (stand_in / "math_verify" / "__init__.py").write_text("import os; os._exit(7)")
    with pytest.raises(RefineError, match="cannot start: it ended with 7"):
        MathProcesses(1.0).ask("4", "4")


def test_no_gold_no_reward(stand_in: Path) -> None:
    reward = MathReward()
    nothing = [None, "", "  ", float("nan"), r"\boxed{}", float("inf")]
    assert reward(completions=["4"] * len(nothing), answer=nothing) == [None] * len(nothing)
    assert not reward._processes._running


def test_gold_that_cannot_be_read_gives_none_whatever_the_answer(stand_in: Path) -> None:
    reward = MathReward()
    assert reward(completions=["word", "4", ""], answer=["word"] * 3) == [None] * 3
    reward.close()


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth"])
def test_columns(stand_in: Path, column: str) -> None:
    assert MathReward()(completions=["4"], **{column: [r"so \boxed{4}"], "level": [3]}) == [1.0]


def test_the_first_column_counts_unless_one_is_named(stand_in: Path) -> None:
    columns: dict[str, Any] = {"ground_truth": ["1"], "solution": ["2"], "final": ["3"]}
    assert right_answers(columns, None, 1, "math") == ["2"]
    assert right_answers(columns, "final", 1, "math") == ["3"]


def test_a_column_may_be_an_array() -> None:
    assert right_answers({"answer": array("d", [0.5, 1e-7])}, None, 2, "math") == ["0.5", "0.0000001"]


def test_a_missing_column_names_those_present() -> None:
    trl: dict[str, Any] = {"completion_ids": [[1]], "trainer_state": None, "log_extra": print}
    with pytest.raises(
        ConfigError, match=r"no column 'answer' or 'solution' or 'ground_truth'. Columns present: target"
    ) as caught:
        MathReward()(prompts=["q"], completions=["4"], target=["4"], **trl)
    assert "MathReward(answer_column='target')" in str(caught.value)
    assert isinstance(caught.value, RefineError)
    with pytest.raises(ConfigError, match=r"no column 'anwser'.*Did you mean 'answer'\?"):
        MathReward("anwser")(completions=["4"], answer=["4"])
    with pytest.raises(ConfigError, match=r"Columns present: none"):
        MathReward()(completions=["4"], **trl)


@pytest.mark.parametrize("value", [["4"], {"target": 4}, True, b"4", 4j])
def test_a_gold_answer_of_a_wrong_type_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"column 'answer' must hold text or numbers, not"):
        MathReward()(completions=["4"], answer=[value])


@pytest.mark.parametrize("column", ["4", ["4", "4"], [], None, 4, {"4": "4"}])
def test_a_column_has_one_value_per_completion(column: Any) -> None:
    with pytest.raises(ConfigError, match=r"column 'answer' must have one value per completion \(1\)"):
        MathReward()(completions=["4"], answer=column)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.decimals(-100, 100, places=3))
def test_numbers_keep_their_value_and_get_no_exponent(number: float | int | Decimal) -> None:
    (answer,) = right_answers({"answer": [number]}, None, 1, "math")
    assert answer is not None
    assert "e" not in answer.lower()
    assert Decimal(answer) == Decimal(repr(float(number)) if not isinstance(number, int) else number)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout must be above 0"):
        MathReward(timeout=timeout)


def test_pickles_with_its_settings() -> None:
    copy = pickle.loads(pickle.dumps(MathReward("final", timeout=2, name="exact")))
    assert (copy.answer_column, copy.timeout, copy.__name__) == ("final", 2, "exact")


def test_reasoning_is_no_answer_and_an_endless_one_is_cut() -> None:
    assert final_answer(r"\boxed{1}</think> it is 2") == "it is 2"
    assert final_answer(r"<think>\boxed{1}</think>\boxed{2}") == "2"
    assert final_answer("1" * 99_999 + " so 5") == ("1" * 99_999 + " so 5")[-LONGEST_ANSWER:]
    assert final_answer(r"\boxed{" + "1" * 99_999 + "}") == ""


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        ("yes", r"\text{yes}"),
        ("xy", "xy"),
        ("Pi", r"\text{Pi}"),
        ("pi", r"\pi"),
        ("-2  1/2", "-5/2"),
        ("1e-7", r"1\times 10^{-7}"),
        ("2.5E+3.", r"2.5\times 10^{3}"),
        ("$x$", "x"),
        ("$x$ and $y$", "$x$ and $y$"),
        ("The answer is **4**.", "4"),
        ("The answer is what we need.", r"\text{The answer is what we need}"),
    ],
)
def test_what_math_verify_is_given(answer: str, given: str) -> None:
    assert notation(answer) == given


def test_a_sentence_is_searched_and_a_bare_answer_is_boxed() -> None:
    assert readings("we get 4") == ["we get 4", r"\boxed{we get 4}"]
    assert readings("(1, 2)") == [r"\boxed{(1, 2)}", "(1, 2)"]
    for searched in ("I get $x$", r"I get \(x\)", "2+2\n4"):
        assert readings(searched)[0] == searched
    for bare in (r"\left(1, 2\right)", "\\begin{pmatrix}1\\\\\n2\\end{pmatrix}", "x=0 or x=1", "42 apples"):
        assert readings(bare)[0] == rf"\boxed{{{bare}}}"


@pytest.mark.parametrize(
    "unit", ["(", "√(", "1 ", "1,", "12,34", "a", "text ", r"\text{", "answer is ", "1\n", "\uff12", "{"]
)
def test_no_answer_makes_the_rules_slow(unit: str) -> None:
    """Each would take minutes in time that grows with the square of the length; the tests' limit is in pyproject.toml."""
    text = (unit * 100_000)[:100_000]
    notation(final_answer(text))
    notation(final_answer(rf"\boxed{{{text}}}"))


def test_is_registered_and_nothing_is_imported_for_it() -> None:
    rewards = Plugins(entry_points=False).all("reward")
    names = ("math", "format", "reasoning-gym", "judge")
    assert {name: reward.__name__ for name, reward in rewards.items()} == dict(zip(names, names, strict=True))
    assert rewards["math"] is Plugins(entry_points=False).get("reward", "math")
    code = (
        "import sys; from refine_wrapper.plugins.manager import Plugins; Plugins(entry_points=False).all('reward');"
        "import refine_wrapper.rewards.weighted, refine_wrapper.rewards.math_worker;"
        "print(sorted({'torch', 'sympy', 'math_verify', 'transformers', 'trl', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_hangs_is_counted_and_said_and_asked_again(stand_in: Path, caplog: pytest.LogCaptureFixture) -> None:
    reward = MathReward(timeout=0.5)
    logged: list[tuple[str, float]] = []
    completions = ["hang 1", "4", "hang 1", "sleep 2"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rewards = reward(completions=completions, answer=["4"] * 4, log_metric=lambda *pair: logged.append(pair))
            assert rewards == [0.0, 1.0, 0.0, 0.0]
    assert reward.timeouts == 4  # once in each call, for a slow machine may have been the reason
    assert logged == [("math/timeouts", 2.0)] * 2
    assert len(caplog.records) == 3  # the first, the second, the fourth
    assert all(record.message.startswith("refine: reward 'math': a comparison took mor") for record in caplog.records)
    reward.close()


def test_a_gold_answer_that_hangs_gives_none(stand_in: Path) -> None:
    reward = MathReward(timeout=0.5)
    assert reward(completions=["4", "4"], answer=["hang 4", "4"]) == [None, 1.0]
    reward.close()
