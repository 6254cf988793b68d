"""From what models and data sets write to what math-verify reads.

math-verify is the judge. A rule stands here only if a case in tests/trl/rewards/math_cases.jsonl needs it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from importlib import import_module
from typing import Final

from refine_wrapper.rewards.answers import marked_answer

LONGEST_ANSWER: Final = 2_000
"""Characters. Of a completion that marks no answer only the end is read; a longer marked answer is none."""

_DATE: Final = r"(?:\\text\{)?(?<![\d/.-])(?:\d{4}([-/.])\d\d?\1\d\d?|\d\d?([-/.])\d\d?\2\d{4})(?![\d/-])\}?"
_FUNCTIONS: Final = r"(?:arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp)(?=[\^_({\\\d]|\s+[\\(\da-z])"

REWRITES: Final[tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = (
    (r"(?<=\d)(?=[¼-¾⅐-⅞])", " "),  # 2½ is 2 1/2, not 21/2
    (r"⁻?[⁰¹²³⁴-⁹]+", lambda found: f"^{{{unicodedata.normalize('NFKC', found[0])}}}"),
    (r"[^\x00-\x7f]+", lambda found: unicodedata.normalize("NFKC", found[0])),  # full-width digits, thin spaces, ½
    (r"(?:√|(?<![\\A-Za-z])sqrt)\s*(\d+(?:\.\d+)?|[A-Za-z]|\((?:[^()]|\([^()]*\))*\))", r"\\sqrt{\1}"),
    (r"√", r"\\sqrt"),
    (r"⁄", "/"),  # noqa: RUF001
    (r"°", r"^\\circ "),
    (r"∅|\\varnothing", r"\\emptyset "),
    (r"∞|(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
    (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    (rf"(?<![\\A-Za-z])({_FUNCTIONS})", r"\\\1"),
    (r"(?<![\w.\\])(\d+\.?\d*|\.\d+)[eE]\+?(-?\d+)(?!\w|\.\d)", r"\1\\times 10^{\2}"),  # 1e-7 holds Euler's number
    (_DATE, lambda found: r"\text{" + "-".join(part.lstrip("0") for part in re.findall(r"\d+", found[0])) + "}"),
    (r"\((\d[\dA-F]*)\)(?=_)", r"\1"),  # (1011)_2
    (r"(?<![\d./,])(\d+)[ ~]+(\d+)/(\d+)(?![\d/])", lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}"),
    (r"(?<![\d.,])\d{1,3}(?:(?: |~|\\[,;:! ])\d{3})+(?!\d)", lambda found: re.sub(r"\D", "", found[0])),
    (r"(?<![\d.,([{])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,)\]}])", lambda found: found[0].replace(",", "")),
    (r"\\text\s*\{\s*percent\s*\}|\bpercent\b", r"\\%"),
)
"""What is written, and what math-verify is given instead, in this order."""

# The letters of a word are a product to math-verify, equal in any order. These few may be one.
_PRODUCT: Final = re.compile(r"(?!.*(.).*\1)(?:[a-df-hj-np-z]{3}|[A-Za-df-hj-np-z]{1,2}|[eio])|and|or")
# Two words, or mathematics that is delimited within something else: there math-verify has to search.
_SENTENCE: Final = re.compile(
    r"(?<![\\A-Za-z{])(?!and\b|or\b)[A-Za-z]{2,}\s+(?!and\b|or\b)[A-Za-z]+|(?<!\\)(?:\$|\\[(\[])"
)
_SAID: Final = re.compile(r"\b(?:answer|option|choice)s?\b[\s:*]*(?:(?:is|are|option|choice)\b[\s:*]*)*", re.IGNORECASE)
_LABEL: Final = re.compile(r"[\s(*]*(?:\\(?:text|math)\w*\{)?[\s(*]*([A-J])[\s).:*}]*")
_OPTION: Final = re.compile(
    r"[\s(*]*(?:\\(?:text|math)\w*\{)?[\s(*]*([A-J])(?![)}]*[\^_+*/=!-])"
    r"(?!\W*(?:and|or|[A-J])\b(?!\s+[a-z]))(?:[).:}~]|$)"  # not "B and C"
)
_BASE: Final = re.compile(r"(?<![\w\\])\d[\dA-F]*\)?_\{?(\d+)")
_UNIT: Final = re.compile(
    r"(?<=[\d}!)])((?:\s|\\[,; ]|~)*)"
    r"(\\?%|(?:\\(?:text\w*|math\w*|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?[/ ]?)+|(?:[A-Za-z]+(?:\^\{?\d\}?)?[/ ]?){1,3})$"
)
_UNIT_NAMES: Final = {"hr": "hour", "hrs": "hour", "min": "minute", "sec": "second", "lb": "pound", "lbs": "pound"}
_NO_UNITS: Final = frozenset(("and", "or", "more", "less", "thousand", "million", "billion"))


def final_answer(text: str) -> str:
    """The answer to compare: what is marked last after any ``</think>``, else the end of the text."""
    said = text.rpartition("</think>")[2]
    marked = marked_answer(said)
    if marked is None:
        return said.strip()[-LONGEST_ANSWER:]
    return "" if len(marked) > LONGEST_ANSWER else marked


def notation(answer: str) -> str:
    """The answer as math-verify reads it: without the sentence around it, rewritten, a word as a text."""
    for written, given in REWRITES:
        answer = re.sub(written, given, answer)
    said = _SAID.split(answer)[-1]
    answer = _stripped(said if said.strip() and not _is_sentence(said) else answer)
    runs = re.findall(r"[A-Za-z]+", answer) if re.fullmatch(r"[A-Za-z][A-Za-z '-]*", answer) else []
    return rf"\text{{{answer}}}" if any(not _PRODUCT.fullmatch(run) for run in runs) else answer


def readings(answer: str) -> list[str]:
    """Texts to hand to the parser, best first; the first that it makes something of counts.

    A bare answer is put into a box: outside of one the parser looks only for numbers (``(1, 2)``, ``3!``).
    """
    boxed = rf"\boxed{{{answer}}}"
    return [answer, boxed] if _is_sentence(answer) else [boxed, answer]


def comparisons(gold: str, answer: str) -> list[tuple[str, str]]:
    """Pairs of notations, one of which must be equal; none if what math-verify does not look at differs."""
    gold, answer = notation(gold), notation(answer)
    if label := _LABEL.fullmatch(gold):  # multiple choice: the option's text may follow its label
        option = _OPTION.match(answer)
        return [(label[1], option[1] if option else answer)]
    gold_bases, bases = _BASE.findall(gold), _BASE.findall(answer)
    (gold_number, gold_unit), (number, unit) = _without_unit(gold), _without_unit(answer)
    if (gold_bases and bases and gold_bases != bases) or (gold_unit and unit and gold_unit != unit):
        return []
    # A unit that only one of them has does not count; a percent sign may also mean a hundredth.
    return [(gold_number, number)] if gold_unit == unit else [(gold_number, number), (gold, answer)]


def _stripped(answer: str) -> str:
    """Without what never matters: space, stars and dollar signs around it, a full stop after it."""
    answer = " ".join(answer.split()).strip("*").removesuffix(".").strip("* ")
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and "$" not in answer[1:-1]:
        answer = answer[1:-1]
    return answer.strip()


def _is_sentence(answer: str) -> bool:
    several_lines = "\n" in answer.strip() and r"\begin" not in answer  # and no matrix
    return several_lines or _SENTENCE.search(_stripped(answer)) is not None


def _without_unit(answer: str) -> tuple[str, str]:
    found = _UNIT.search(answer)
    if found is None:
        return answer, ""
    known = import_module("sympy.physics.units")  # here, because only the process that compares imports sympy
    unit = re.sub(r"\\(?:text\w*|math\w*|mbox)|[{}\\]", " ", found[2])
    words = re.findall(r"[A-Za-z]+", unit)

    def is_product(word: str) -> bool:
        is_known = word in _UNIT_NAMES or isinstance(getattr(known, word, None), known.Quantity)
        alone = (
            bool(found[1]) and " " not in found[2].strip()
        )  # `1/2 m v^2` has no units, and a mass times g is no milligram
        return _PRODUCT.fullmatch(word) is not None and not (is_known and word != "mg" and (len(word) > 1 or alone))

    if _NO_UNITS.intersection(words) or ("\\" not in found[2] and any(map(is_product, words))):
        return answer, ""
    for word in words:
        unit = unit.replace(word, str(getattr(known, word, _UNIT_NAMES.get(word, word.removesuffix("s")))), 1)
    return answer[: found.start()], "".join(unit.split())
