"""From what a model writes to what math-verify reads: which part of a completion is read, and as what."""

from __future__ import annotations

import re
from typing import Final

from refine_wrapper.rewards.answers import marked_answer

LONGEST_ANSWER: Final = 2_000
"""Characters. Of a completion that marks no answer only the end is read; a longer marked answer is none."""

_WORDS = re.compile(r"[A-Za-z][A-Za-z '-]{2,}")
_MIXED_NUMBER = re.compile(r"([+-]?\d+)\s+(\d+)/(\d+)")
_SCIENTIFIC = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))[eE]\+?(-?\d+)")
# Words, or mathematics that is delimited within something else: there the parser has to search.
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}\s+[A-Za-z]+|(?<!\\)(?:\$|\\[(\[])")
_PLAIN_NUMBER = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?")
# Names that are mathematics although they are written like words, and a word that is as short as a product.
_NAMED: Final = {"pi": r"\pi", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty", "no": r"\text{no}"}


def final_answer(text: str) -> str:
    """The answer to compare: what is marked last after any ``</think>``, else the end of the text."""
    said = text.rpartition("</think>")[2]
    marked = marked_answer(said)
    if marked is None:
        return said.strip()[-LONGEST_ANSWER:]
    return "" if len(marked) > LONGEST_ANSWER else marked


def normalized(answer: str) -> str:
    """The answer without what never matters: space, dollar signs around it, a full stop after it."""
    answer = " ".join(answer.split()).removesuffix(".")
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and "$" not in answer[1:-1]:
        answer = answer[1:-1]
    return answer.strip()


def is_plain_number(answer: str) -> bool:
    """Whether it is certainly readable, so that nobody has to be asked."""
    return _PLAIN_NUMBER.fullmatch(answer) is not None


def readings(answer: str) -> list[str]:
    """Texts to hand to the parser, best first; the first that it makes something of counts.

    A bare answer is put into a box: outside of one the parser looks only for numbers (``(1, 2)``, ``3!``).
    """
    boxed = rf"\boxed{{{as_latex(answer)}}}"
    several_lines = "\n" in answer and r"\begin" not in answer  # and no matrix
    return [answer, boxed] if several_lines or _PROSE.search(normalized(answer)) else [boxed, answer]


def as_latex(answer: str) -> str:
    """An answer in LaTeX, where its plain notation would be misread.

    The letters of a word are a product to the parser, equal in any order; so is ``2 1/2``; ``1e-7`` contains
    Euler's number.
    """
    answer = normalized(answer)
    if answer.lower() in _NAMED:
        return _NAMED[answer.lower()]
    if _WORDS.fullmatch(answer):
        return rf"\text{{{answer}}}"
    if match := _MIXED_NUMBER.fullmatch(answer):
        return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    if match := _SCIENTIFIC.fullmatch(answer):
        return rf"{match[1]}\times 10^{{{match[2]}}}"
    return answer
