"""Finding the final answer: the conventions, and that no text makes it slow or wrong."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.rewards.answers import boxed_spans, extract_answer, last_boxed, marked_answer

# Text made of what the rules look for, so that they meet in every order.
fragments = st.lists(
    st.sampled_from(
        [
            r"\boxed{",
            r"\boxed {",
            r"\fbox{",
            "{",
            "}",
            "<answer>",
            "</answer>",
            "####",
            "#",
            "\n",
            " ",
            "4",
            "x",
        ]
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {4}", "4"),
        (r"\boxed{4} \boxed{5", ""),
        (r"\boxed{a \boxed{b}", "b"),
        (r"<answer>4</answer> \fbox{5", ""),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"}} \boxed{4}", "4"),
        (r"\boxed{4} <answer>5</answer>", "4"),
        ("<answer>4</answer> <ANSWER> 5 </ANSWER>", "5"),
        ("<answer></answer>", ""),
        ("<answer>4</answer> #### 5", "4"),
        ("x\n#### 3\ny #### 1,000 \n", "1,000"),
        ("  four ", "four"),
        ("</answer><answer>4", "</answer><answer>4"),
        ("", ""),
    ],
)
def test_extracts(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_marked_answer_is_none_without_a_mark() -> None:
    assert marked_answer("the answer is 4") is None
    assert marked_answer("<answer></answer>") == ""


@given(fragments)
def test_last_boxed_is_what_a_naive_scan_finds(text: str) -> None:
    assert last_boxed(text) == _naive_last_boxed(text)


@given(fragments)
def test_boxes_are_balanced_and_in_the_text(text: str) -> None:
    for start, end in boxed_spans(text):
        content = text[start:end]
        assert content.count("{") == content.count("}")
        assert text[start - 1] == "{"
        assert text[end] == "}"


@given(fragments)
def test_tag_is_what_the_whole_pattern_finds(text: str) -> None:
    if last_boxed(text) is None:
        found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL | re.IGNORECASE)
        found = found or re.findall(r"####\s*(.+)", text)
        assert extract_answer(text) == (found[-1] if found else text).strip()


@given(st.text())
def test_any_text_has_an_answer_without_outer_space(text: str) -> None:
    answer = extract_answer(text)
    assert answer == answer.strip()
    assert answer in text


@given(st.text(alphabet="ab1 +", min_size=1))
def test_boxing_and_extracting_are_inverse(answer: str) -> None:
    assert extract_answer(rf"so \boxed{{{answer}}}") == answer.strip()


@pytest.mark.parametrize(
    "unit", [r"\boxed{", r"\boxed ", "<answer>", "</answer>", "#", "####\n", "{", "\n", "}", r"\boxed{1}"]
)
def test_degenerate_repetition_is_fast(unit: str) -> None:
    text = unit * 40_000
    for mixed in (text, "<answer>1</answer>" + text, "</answer>" + text, "#" * 20_000 + "\n" * 20_000 + text):
        started = time.perf_counter()
        extract_answer(mixed)
        assert time.perf_counter() - started < 3  # a quadratic scan takes minutes


def _naive_last_boxed(text: str) -> str | None:
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
        return ""
    return None
