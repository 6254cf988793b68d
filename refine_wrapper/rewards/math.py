"""Whether the final answer of a completion equals the right one, as mathematics and not as text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from refine_wrapper.errors import ConfigError
from refine_wrapper.messages import Message
from refine_wrapper.rewards.math_gold import right_answers
from refine_wrapper.rewards.math_notation import final_answer
from refine_wrapper.rewards.math_process import PROCESSES, Failure, MathProcesses
from refine_wrapper.rewards.text import completion_text

_log = logging.getLogger(__name__)


class MathReward:
    r"""1.0 if the final answer of a completion equals the right one, else 0.0; None where the row has none.

    The answer is what stands in the last ``\boxed{}``, else in the last ``<answer>`` tag, else after the last
    ``####``, else after the last "answer is", else what math-verify finds at the end of the text; reasoning
    before ``</think>`` does not count, and a last box that was cut off is no answer. Equality is math-verify's:
    ``\frac{1}{2}`` is ``0.5`` and ``50\%``, ``(1, 2)`` is not ``(2, 1)``; what it cannot read as mathematics is
    compared as text. docs/rewards.md says what is read and compared beside it.

    Answers are compared in other processes, which are started when first needed: an answer on which sympy
    hangs (``9^{9^{9^{9}}}``) scores 0.0 after ``timeout`` and is counted in :attr:`timeouts`; a right answer on
    which it hangs gives None. Safe to call from threads, to pickle and to fork.

    Args:
        answer_column: Column of the data set with the right answers, as answers or as solutions that mark
        one.
            By default the first of ``answer``, ``solution`` and ``ground_truth`` that there is.
        timeout: Seconds that one comparison may take. Usual ones take milliseconds.
        name: The name under which hosts log it.

    Raises:
        ConfigError: If the timeout is not positive.
    """

    def __init__(self, answer_column: str | None = None, *, timeout: float = 5.0, name: str = "math") -> None:
        if not timeout > 0:
            raise ConfigError(f"refine: reward {name!r}: timeout must be above 0 seconds, not {timeout!r}")
        self.__name__ = name
        self.answer_column = answer_column
        self.timeout = timeout
        self._failures: list[Failure] = []  # which threads append to
        self._processes = MathProcesses(timeout)

    def __call__(
        self,
        *,
        completions: Sequence[str | Sequence[Message]],
        prompts: Sequence[Any] = (),
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One number or None per completion.

        Raises:
            ConfigError: If no column has the right answers.
            RefineError: If the process that compares answers cannot be started: math-verify is not installed.
        """
        golds = right_answers(columns, self.answer_column, len(completions), self.__name__)
        before = self.timeouts
        answers = [final_answer(completion_text(completion)) for completion in completions]
        # Answers repeat within a group; one that hangs costs its time once a call, and is not remembered for longer.
        rows = list(zip(golds, answers, strict=True))
        asked = [(gold, answer) for gold, answer in dict.fromkeys(rows) if gold is not None]
        with ThreadPoolExecutor(PROCESSES) as pool:
            scores = dict(zip(asked, pool.map(self._score, *zip(*asked, strict=True)), strict=True))
        if log_metric is not None:  # TRL passes it
            log_metric(f"{self.__name__}/timeouts", float(self.timeouts - before))
        return [None if gold is None else scores[gold, answer] for gold, answer in rows]

    @property
    def timeouts(self) -> int:
        """Comparisons so far that were given up, because they took too long or ended their process."""
        return len(self._failures)

    def close(self) -> None:
        """End the other processes now, not with the interpreter. Calling the reward again starts others."""
        self._processes.close()

    def _score(self, gold: str, answer: str) -> float | None:
        equal = self._processes.ask(gold, answer)
        if isinstance(equal, str):
            self._failures.append(equal)
            if self.timeouts.bit_count() == 1:  # the first, second, fourth ... : all are in the metrics
                what = f"took more than {self.timeout:g} s" if equal == "timeout" else "ended its process"
                message = "refine: reward %r: a comparison %s and counts as unequal (%d so far): %.200r"
                _log.warning(message, self.__name__, what, self.timeouts, {"gold": gold, "answer": answer})
            equal = False if self._processes.ask(gold, "") is False else None
        return None if equal is None else float(equal)

    def __repr__(self) -> str:
        return f"MathReward({self.answer_column!r}, timeout={self.timeout:g}, name={self.__name__!r})"
