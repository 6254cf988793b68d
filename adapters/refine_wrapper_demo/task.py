"""The task: palindromes from reasoning-gym, whose own generator makes the problems and whose own verifier scores them.

A problem is a set of letters that must be arranged to a palindrome. The generator words it as English text; a model of
a few hundred thousand parameters gets it as ``letters:`` instead, from the entry's own metadata. Scoring is untouched:
``score_answer(answer, entry)``, and an answer counts as right when the verifier gives it full marks.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import reasoning_gym

GENERATOR = "palindrome_generation"
_HELD_OUT_SEED, _WARM_START_SEED, _TRAINING_SEED = 7, 1_000_000, 10_000_000


@dataclass(frozen=True)
class Task:
    """Problems of a fixed number of letters.

    Attributes:
        letters: Length of the palindromes.
        num_held_out: Problems that are never trained on.
    """

    letters: int = 6
    num_held_out: int = 500

    def held_out(self) -> list[dict[str, Any]]:
        """The same held-out problems for every seed and arm."""
        return self._entries(_HELD_OUT_SEED, self.num_held_out, frozenset())

    def training(self, seed: int, count: int) -> list[dict[str, Any]]:
        """Training problems of one seed; none of them is held out."""
        return self._entries(_TRAINING_SEED + seed, count, frozenset(map(self.question, self.held_out())))

    def warm_start(self, seed: int, count: int) -> list[dict[str, Any]]:
        """Problems of the supervised warm start; none of them is held out."""
        return self._entries(_WARM_START_SEED + seed, count, frozenset(map(self.question, self.held_out())))

    def question(self, entry: dict[str, Any]) -> str:
        """How the model reads a problem."""
        return "".join(entry["metadata"]["letters"]) + ":"

    def score(self, answer: str, entry: dict[str, Any]) -> float:
        """1.0 if reasoning-gym's verifier gives the answer full marks, else 0.0."""
        return float(self._generator(0, 1).score_answer(answer, entry) >= 1.0)

    def reward(self, prompts: Sequence[str], completions: Sequence[str], entry: Sequence[str], **_: Any) -> list[float]:
        """The training reward, in TRL's signature; ``entry`` is the problem as JSON."""
        scorer = self._generator(0, 1)
        return [
            float(scorer.score_answer(answer, json.loads(problem)) >= 1.0)
            for answer, problem in zip(completions, entry, strict=True)
        ]

    def rows(self, entries: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
        """Data set rows for TRL."""
        return [{"prompt": self.question(entry), "entry": json.dumps(entry)} for entry in entries]

    def _entries(self, seed: int, count: int, avoid: frozenset[str]) -> list[dict[str, Any]]:
        generator = self._generator(seed, 10**9)
        found: list[dict[str, Any]] = []
        position = 0
        while len(found) < count:
            entry = generator[position]
            position += 1
            if self.question(entry) not in avoid:
                found.append(entry)
        return found

    def _generator(self, seed: int, size: int) -> Any:
        return reasoning_gym.create_dataset(
            GENERATOR, seed=seed, size=size, min_length=self.letters, max_length=self.letters
        )


ALPHABET = string.ascii_lowercase
REFINE_TEMPLATE = "{question}{draft}#{question}"
"""q' of the demo: repeating the question after the draft matters for so small a model."""
