"""Whether the final answer of a completion equals the right one, as mathematics and not as text."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any

from refine_wrapper.errors import ConfigError
from refine_wrapper.messages import Message
from refine_wrapper.rewards.math_gold import right_answers
from refine_wrapper.rewards.math_notation import final_answer, is_plain_number, normalized
from refine_wrapper.rewards.math_process import Failure, MathProcess
from refine_wrapper.rewards.text import completion_text

_log = logging.getLogger(__name__)
_REMEMBERED = 8192


class MathReward:
    r"""1.0 if the final answer of a completion equals the right one, else 0.0; None where the row has none.

    The answer is what stands in the last ``\boxed{}``, else in the last ``<answer>`` tag, else after the last
    ``####``, else what math-verify finds at the end of the text; reasoning before ``</think>`` does not
    count. Equality is math-verify's: ``\frac{1}{2}`` is ``0.5`` and ``50\%``, ``(1, 2)`` is not ``(2, 1)``;
    what it cannot read as mathematics is compared as text.

    Answers are compared in another process, which is started when first needed: an answer on which sympy
    hangs (``9^{9^{9^{9}}}``) scores 0.0 after ``timeout`` and is counted in :attr:`timeouts`. Safe to call
    from threads, to pickle and to fork.

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
        self._prepare()

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
            ConfigError: If no column has the right answers, or math-verify is not installed.
            RefineError: If the process that compares answers cannot be started.
        """
        golds = right_answers(columns, self.answer_column, len(completions), self.__name__)
        _require_math_verify(self.__name__)
        before = self.timeouts
        rewards = [
            None if gold is None else self._score(gold, final_answer(completion_text(completion)))
            for gold, completion in zip(golds, completions, strict=True)
        ]
        if log_metric is not None:  # TRL passes it
            log_metric(f"{self.__name__}/timeouts", float(self.timeouts - before))
        return rewards

    @property
    def timeouts(self) -> int:
        """Comparisons so far that were given up, because they took too long or ended their process."""
        return self._process.failures

    def close(self) -> None:
        """End the other process now, not with the interpreter. Calling the reward again starts another."""
        self._process.close()

    def _score(self, gold: str, answer: str) -> float | None:
        gold, answer = normalized(gold), normalized(answer)
        if not is_plain_number(gold) and not self._ask(gold=gold):
            return None
        if not answer:
            return 0.0
        return 1.0 if answer == gold else float(self._ask(gold=gold, answer=answer))

    def _ask(self, **question: str) -> bool:
        # Answers repeat within a group. Remembered, one that hangs costs its time once. There is no lock here, for a
        # fork could inherit it locked: two threads that ask the same at once get the same answer twice.
        key = tuple(question.values())
        known = self._known.get(key)
        if known is not None:
            return known
        result = self._process.ask(**question)
        if isinstance(result, str):
            self._given_up(result, question)
            result = False
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = result
        return result

    def _given_up(self, why: Failure, question: dict[str, str]) -> None:
        if self._warned:  # once: the count is in the metrics
            return
        self._warned = True
        what = f"took more than {self.timeout:g} s" if why == "timeout" else "ended its process"
        message = "refine: reward %r: a comparison %s and counts as unequal: %.200r"
        _log.warning(message, self.__name__, what, question)

    def _prepare(self) -> None:
        self._process = MathProcess(self.timeout)
        self._known: dict[tuple[str, ...], bool] = {}
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {"__name__": self.__name__, "answer_column": self.answer_column, "timeout": self.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __repr__(self) -> str:
        return f"MathReward({self.answer_column!r}, timeout={self.timeout:g}, name={self.__name__!r})"


def _require_math_verify(reward: str) -> None:
    # Found, not imported: that happens in the other process only.
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(f"refine: reward {reward!r} needs math-verify: pip install 'refine-wrapper[math]'")
