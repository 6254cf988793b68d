"""Two tasks of reasoning-gym, worded for a model that reads characters; problems and scores are reasoning-gym's own."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import reasoning_gym

_LENGTH = 6
_DIGITS = dict(zip("0123456789", "abcdefghij", strict=True))
_GENERATORS: dict[str, tuple[str, dict[str, int]]] = {
    "palindrome": ("palindrome_generation", {"min_length": _LENGTH, "max_length": _LENGTH}),
    "sorting": (
        "number_sorting",
        {
            "min_numbers": _LENGTH,
            "max_numbers": _LENGTH,
            "min_decimals": 0,
            "max_decimals": 0,
            "min_value": 0,
            "max_value": 9,
        },
    ),
}
NAMES = tuple(_GENERATORS)


@dataclass(frozen=True)
class Task:
    """Problems of one kind.

    ``palindrome``: arrange six letters to a palindrome, asked as ``letters:``. ``sorting``: sort six digits, written as
    the letters a to j, asked as ``digits:`` for ascending and ``digits.`` for descending order.
    """

    name: str

    def question(self, entry: dict[str, Any]) -> str:
        """How the model reads a problem."""
        found = entry["metadata"]
        if self.name == "palindrome":
            return "".join(found["letters"]) + ":"
        return _letters(found["original_numbers"]) + (":" if found["direction"] == "ascending" else ".")

    def answer(self, entry: dict[str, Any]) -> str:
        """How the model writes the right answer."""
        return entry["answer"] if self.name == "palindrome" else _letters(entry["metadata"]["sorted_numbers"])

    def right(self, text: str, entry: dict[str, Any]) -> bool:
        """Whether reasoning-gym's verifier gives an answer full marks."""
        if self.name == "sorting":
            digits = {letter: digit for digit, letter in _DIGITS.items()}
            text = json.dumps([f"{digits.get(letter, '?')}.0" for letter in text]).replace('"', "'")
        return _generator(self.name, 0, 1).score_answer(text, entry) >= 1.0

    def entries(self, seed: int, count: int, avoid: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
        """Problems of one seed, without those whose question is in ``avoid``."""
        generator = _generator(self.name, seed, 10**9)
        found: list[dict[str, Any]] = []
        position = 0
        while len(found) < count:
            entry = generator[position]
            position += 1
            if self.question(entry) not in avoid:
                found.append(entry)
        return found

    def rows(self, entries: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
        """Rows of a data set; the whole entry travels along, as JSON, for the verifier."""
        return [{"prompt": self.question(e), "entry": json.dumps({"task": self.name, **e})} for e in entries]

    def held_out(self, count: int) -> list[dict[str, Any]]:
        """The problems that nobody trains on; the same for everyone."""
        return self.entries(7, count)


def reward(completions: Sequence[str], entry: Sequence[str], **_: Any) -> list[float]:
    """1.0 for a right answer: the training reward, and the held-out measure."""
    problems = [json.loads(problem) for problem in entry]
    return [float(Task(p["task"]).right(text, p)) for text, p in zip(completions, problems, strict=True)]


@functools.cache
def _generator(name: str, seed: int, size: int) -> Any:
    generator, settings = _GENERATORS[name]
    return reasoning_gym.create_dataset(generator, seed=seed, size=size, **settings)


def _letters(numbers: Sequence[str]) -> str:
    return "".join(_DIGITS[number.removesuffix(".0")] for number in numbers)
