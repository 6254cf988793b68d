r"""What the math reward pays, case by case, beside what math-verify says alone; and that each rule of ours is needed.

math_cases.jsonl has the cases. ``math_verify`` is what ``verify(parse(r"\boxed{gold}"), parse(completion))`` of the newest
version says. Both supported versions run these tests (nox sessions ``trl`` and ``math_oldest``).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refine_wrapper.rewards import math_notation, math_worker
from refine_wrapper.rewards.answers import extract_answer
from refine_wrapper.rewards.math import MathReward
from refine_wrapper.rewards.math_notation import REWRITES, comparisons, final_answer

pytest.importorskip("math_verify")

KINDS = {
    "mixed number": "11 5/6 is read as 11 in a sentence, and as a product in a box",
    "exact": "numbers are compared to 15 places after the point: 1/2004! and 1/2006! are both 0",
    "decimal": "decimals are rounded to 6 places after the point, and 1e-7 holds Euler's number",
    "cut-off box": "of a box that was cut off it takes what there is, or an earlier box",
    "base": "the base is not looked at, and (1011)_2 is not read",
    "date": "a date is a difference or a quotient",
    "unit": "units are dropped, and single letters count as units: 5t is 5",
    "algebra": "right; a word must not be seen in it, and the last number of a sentence must not stand for it",
    "word": "the letters of a word are a product: their order does not count",
    "multiple choice": "the text of the option is read beside its label",
    "grouped thousands": "groups parted by spaces are a product, Indian groups are a list",
    "unicode": "signs that are not ASCII are not read",
    "function": "the name of a function without a backslash is a product of letters",
    "solutions": "right; a sentence must not be seen in it",
    "which part is read": "reasoning is read too, and \\fbox is not",
    "structure": "right",
}
"""Why each kind has cases: what math-verify makes of it alone."""

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "math_cases.jsonl").read_text(encoding="utf-8").splitlines()
]
Verdict = bool | None


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    reward = MathReward(timeout=30)
    yield reward
    reward.close()


def test_every_kind_is_explained_and_has_cases() -> None:
    assert {case["kind"] for case in CASES} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_cases(reward: MathReward, kind: str) -> None:
    cases = [case for case in CASES if case["kind"] == kind]
    paid = reward(completions=[case["completion"] for case in cases], answer=[case["gold"] for case in cases])
    assert [{**case, "reward": got} for case, got in zip(cases, paid, strict=True)] == cases


@pytest.mark.skipif(not version("math_verify").startswith("0.9."), reason="the table is of 0.9")
def test_what_math_verify_says_alone_is_as_the_table_says() -> None:
    # In a process of its own, for in this one its comparison of numbers is replaced.
    code = (
        "import json, sys; from math_verify import parse, verify\n"
        "for case in json.load(sys.stdin):\n"
        "    print(float(verify(parse(chr(92) + 'boxed{' + case['gold'] + '}'), parse(case['completion']))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(CASES), capture_output=True, text=True, check=True
    )
    said = [float(line) for line in done.stdout.split()]
    assert [{**case, "math_verify": one} for case, one in zip(CASES, said, strict=True)] == CASES


def _needed(change: Callable[[], None]) -> bool:
    """Whether a case is judged wrongly after the change."""
    before = [comparisons(extract_answer(case["gold"]), final_answer(case["completion"])) for case in CASES]
    change()
    for case, pairs in zip(CASES, before, strict=True):
        gold, answer = extract_answer(case["gold"]), final_answer(case["completion"])
        if comparisons(gold, answer) != pairs and _judge(gold, answer) is not bool(case["reward"]):
            return True
    return False


def _judge(gold: str, answer: str) -> Verdict:
    math_worker.check.cache_clear()
    math_worker._read.cache_clear()
    return math_worker.check(gold, answer)


@pytest.mark.parametrize("rule", REWRITES, ids=[written for written, _ in REWRITES])
def test_every_rewrite_is_needed(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(other for other in REWRITES if other is not rule)
    assert _needed(lambda: monkeypatch.setattr(math_notation, "REWRITES", others))


@pytest.mark.parametrize("rule", ["_SAID", "_LABEL", "_OPTION", "_BASE", "_UNIT", "_SENTENCE", "_PRODUCT"])
def test_every_other_rule_is_needed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _needed(lambda: monkeypatch.setattr(math_notation, rule, re.compile(r"(?!)")))


@pytest.mark.parametrize(("names", "none"), [("_UNIT_NAMES", {}), ("_NO_UNITS", frozenset())])
def test_the_lists_of_units_are_needed(names: str, none: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _needed(lambda: monkeypatch.setattr(math_notation, names, none))


# A value, and ways to write it. Two ways to write one value are equal; two values are not, however they are written.

Written = tuple[Any, list[str]]


def _grouped(number: int) -> Written:
    digits = str(number)
    head, groups = digits[: len(digits) % 3 or 3], re.findall("...", digits[len(digits) % 3 or 3 :])
    thousands = [sep.join([head, *groups]) for sep in (",", " ", "\u2009", "\u202f", r"\,", "{,}", "~")]
    lakhs = re.sub(r"(?<=\d)(?=(?:\d\d)+$)", ",", digits[:-3]) + "," + digits[-3:]
    full_width = digits.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)})
    return number, [digits, *thousands, lakhs, full_width, f"The answer is {thousands[1]}."]


def _mixed(whole: int, part: Fraction) -> Written:
    fraction, total = f"{part.numerator}/{part.denominator}", whole + part
    latex = rf"\frac{{{part.numerator}}}{{{part.denominator}}}"
    return total, [
        f"{whole} {fraction}",
        f"so it is {whole} {fraction} of them",
        f"{whole}{latex}",
        f"{total.numerator}/{total.denominator}",
        f"{whole}+{fraction}",
    ]


def _tiny(digits: int, exponent: int) -> Written:
    value = Fraction(digits, 10**exponent)
    decimal = f"{digits:0{exponent + 1}d}"
    return value, [
        f"{decimal[:-exponent]}.{decimal[-exponent:]}",
        f"{digits}e-{exponent}",
        rf"{digits}\times 10^{{-{exponent}}}",
        rf"\frac{{{digits}}}{{10^{{{exponent}}}}}",
        f"{digits}\u00d710{str(-exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}",
    ]


def _rounded(value: Fraction) -> Written:
    ways = [f"{value.numerator}/{value.denominator}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"]
    if value.denominator % 2 and value.denominator % 5:  # it never ends, nor does a rounding look as if it did
        ways += [f"{float(value):.{places}f}" for places in (8, 10, 12)]
    return value, ways


def _root(factor: int, under: int) -> Written:
    latex = rf"{factor}\sqrt{{{under}}}"
    return factor**2 * under, [latex, f"{factor}√{under}", f"{factor}sqrt({under})", rf"\sqrt{{{factor**2 * under}}}"]


def _function(name: str, argument: int) -> Written:
    latex = f"\\{name} {argument}"
    return (name, argument), [latex, f"{name} {argument}", f"{name}({argument})", f"\\{name}({argument})"]


def _base(digits: str, base: int) -> Written:
    return (digits.lstrip("0"), base), [f"{digits}_{base}", f"{digits}_{{{base}}}", f"({digits})_{base}"]


def _date(year: int, month: int, day: int) -> Written:
    padded = f"{year}-{month:02}-{day:02}"
    return padded, [padded, f"{year}-{month}-{day}", f"{year}/{month:02}/{day:02}", rf"\text{{{padded}}}"]


_UNITS = [
    ("cm", "centimeters"),
    ("m", "meter"),
    ("kg", "kilograms"),
    ("hr", "hours"),
    ("km/h", "km/hr"),
    ("cm^2", "cm^{2}"),
]


def _unit(number: int, unit: tuple[str, str]) -> Written:
    ways = [f"{number} {name}" for name in unit]
    latex = [rf"{number}\text{{ {name}}}" for name in unit if "^" not in name]
    return (number, unit), [*ways, *latex]


def _linear(a: int, b: int) -> Written:
    first, second = f"{a}x", f"{b}y"
    return (a, b), [f"{first}+{second}".replace("+-", "-"), f"{second}+{first}".replace("+-", "-"), f"{first}-({-b})y"]


def _choice(label: str) -> Written:
    return label, [label, f"({label})", rf"\text{{{label}}}", rf"\textbf{{({label})}}", f"The answer is ({label})."]


def _solutions(pair: frozenset[int]) -> Written:
    a, b = sorted(pair)
    return pair, [f"x={a} or x={b}", rf"x={b} \text{{ or }} x={a}", rf"\{{{a},{b}\}}", f"x = {b} and x = {a}"]


_DIGIT, _SMALL = st.integers(2, 9), st.integers(-9, 9).filter(bool)
WAYS: dict[str, st.SearchStrategy[Written]] = {
    "grouped thousands": st.integers(100_000, 10**12).map(_grouped),
    "mixed number": st.builds(
        _mixed, st.integers(1, 99), st.fractions(0, 1, max_denominator=20).filter(lambda f: 0 < f < 1)
    ),
    "exact and decimal": st.builds(_tiny, st.integers(1, 9999).filter(lambda n: n % 10), st.integers(5, 40)),
    "decimal": st.fractions(0, 10, max_denominator=99).filter(lambda f: f.denominator > 1).map(_rounded),
    "unicode": st.builds(_root, _DIGIT, st.sampled_from([2, 3, 5, 7, 10, 11, 13, 15])),
    "function": st.builds(_function, st.sampled_from(["sin", "cos", "tan", "ln", "sinh", "arctan"]), _DIGIT),
    "base": st.builds(_base, st.text("01", min_size=3, max_size=8).filter(lambda d: d[0] == "1"), st.integers(2, 16)),
    "date": st.dates().filter(lambda d: d.year > 999).map(lambda d: _date(d.year, d.month, d.day)),
    "unit": st.builds(_unit, st.integers(1, 999), st.sampled_from(_UNITS)),
    "algebra": st.builds(_linear, _SMALL, _SMALL),
    "multiple choice": st.sampled_from("ABCDEFGHIJ").map(_choice),
    "solutions": st.frozensets(st.integers(-9, 9), min_size=2, max_size=2).map(_solutions),
}


@pytest.mark.parametrize("kind", WAYS)
def test_one_value_written_in_two_ways_is_equal_and_another_is_not(kind: str) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(one=WAYS[kind], other=WAYS[kind], data=st.data())
    def check(one: Written, other: Written, data: st.DataObject) -> None:
        gold, same = (data.draw(st.sampled_from(one[1])) for _ in range(2))
        different = data.draw(st.sampled_from(other[1]))
        box = data.draw(st.sampled_from(["{}", r"\boxed{{{}}}", "#### {}"]))
        assert math_worker.check(gold, final_answer(box.format(same))) is True, (gold, same)
        assume(one[0] != other[0])
        assert math_worker.check(gold, final_answer(box.format(different))) is False, (gold, different)

    check()
