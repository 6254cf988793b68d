"""The format reward: its own form, and any regular expression."""

from __future__ import annotations

import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.answers import boxed_spans, extract_answer
from refine_wrapper.rewards.format import FormatReward


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{5}",
        r"Hence $\boxed{5}$.",
        "So\n\\[\n\\boxed{\\frac{1}{2}}\n\\]\n",
        "\\begin{align*}\n\\boxed{5}\n\\end{align*}\n$$",
        r"\boxed{5} centimetres, as was asked.",
        "<answer>5</answer>\n",
        "words <answer>\n5\n</answer>",
        r"<answer>\boxed{5}</answer>",
        r"<think>perhaps \boxed{4}</think> \boxed{5}",
        r"opened by the template: \boxed{4}</think>\boxed{5}",
    ],
)
def test_fits(text: str) -> None:
    assert FormatReward()(prompts=["q"], completions=[text]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        r"\boxed{}",
        r"\boxed{ }",
        r"\boxed{5",
        r"\boxed{5} or \boxed{6}",
        r"\boxed{\boxed{5}}",
        "\\boxed{5}\nNow to something else.",
        "<answer></answer>",
        "<answer>5",
        "5</answer>",
        "</answer>5<answer>",
        "<answer>5</answer> and more",
        "<answer>5</answer><answer>5</answer>",
        r"\boxed{4} <answer>5</answer>",
        r"<think>\boxed{5}",
        r"<think>a</think><think>b</think>\boxed{5}",
        r"<think>a<think>b</think>\boxed{5}",
        r"a</think>b</think>\boxed{5}",
        r"hello <think>a</think>\boxed{5}",
        r"<think>\boxed{5}</think>",
    ],
)
def test_does_not_fit(text: str) -> None:
    assert FormatReward()(prompts=["q"], completions=[text]) == [0.0]


def test_pattern_is_for_the_whole_text_and_its_dot_matches_line_ends() -> None:
    reward = FormatReward(r"<think>.*</think>\s*\d+")
    assert reward(completions=["<think>a\nb</think>\n42", "x<think></think>4", "<think></think>4x"]) == [
        1.0,
        0.0,
        0.0,
    ]


def test_takes_conversations_and_whatever_else_a_trainer_passes() -> None:
    completions = [[{"role": "assistant", "content": r"\boxed{5}"}], [{"role": "assistant", "content": "5"}]]
    extra = {"prompts": ["q", "q"], "completion_ids": [[1], [2]], "answer": ["5", "5"], "log_metric": print}
    assert FormatReward()(completions=completions, **extra) == [1.0, 0.0]


def test_a_wrong_pattern_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'format': '\(' is no regular expression"):
        FormatReward("(")


def test_name_and_pickle() -> None:
    assert FormatReward().__name__ == "format"
    copy = pickle.loads(pickle.dumps(FormatReward("a+", name="as")))
    assert copy.__name__ == "as"
    assert copy(completions=["aa", "b"]) == [1.0, 0.0]


fragments = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", r"\boxed{", "}", "{", "\n", " ", "$", "5", "a"]),
    max_size=12,
).map("".join)


@given(fragments)
def test_what_fits_has_a_final_answer_after_its_thoughts(text: str) -> None:
    if FormatReward()(completions=[text]) == [1.0]:
        said = text.rpartition("</think>")[2]
        assert extract_answer(said)
        assert boxed_spans(said) or "<answer>" in said
        assert text.count("<think>") <= 1


@given(fragments, st.sampled_from(["\nmore", "<think>", r"\boxed{6}", "<answer>6</answer>", "<answer>"]))
def test_nothing_can_be_added_to_what_fits(text: str, more: str) -> None:
    if FormatReward()(completions=[text]) == [1.0]:
        assert FormatReward()(completions=[text + more]) == [0.0]


@given(st.text())
def test_any_text_gets_a_number(text: str) -> None:
    assert FormatReward()(completions=[text])[0] in (0.0, 1.0)


@pytest.mark.parametrize("unit", ["<think>", "<answer>", r"\boxed{", "$", "}", r"\end{a", "\n", "*"])
def test_degenerate_repetition_is_fast(unit: str) -> None:
    started = time.perf_counter()
    FormatReward()(completions=[unit * 40_000, "\\boxed{5}\n" + unit * 40_000 + "x", "</think>" + unit * 40_000])
    assert time.perf_counter() - started < 3
