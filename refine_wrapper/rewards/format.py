"""Whether a completion has the form it was asked for, by a regular expression or by the usual conventions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from refine_wrapper.errors import ConfigError
from refine_wrapper.messages import Message
from refine_wrapper.rewards.answers import boxed_spans
from refine_wrapper.rewards.text import completion_text

_OPEN, _CLOSE = "<answer>", "</answer>"
# What may stand on the lines after the answer: it only closes what was opened before it.
_CLOSERS = re.compile(r"(?:[\s$.*})\]]|\\[\])]|\\end\{[a-z]+\*?\})*")


class FormatReward:
    r"""1.0 for a completion of the right form, else 0.0.

    Without a pattern the form is: exactly one final answer, which is not empty and ends the completion, in
    ``\boxed{}`` or in ``<answer></answer>``. Only the rest of its line and closing delimiters may follow a
    boxed answer, nothing may follow a tagged one (a box inside the tag is fine). One ``<think>`` block may
    come first; it must be closed, and neither answers nor boxes in it count.

    Args:
        pattern: A regular expression for the whole text (``re.fullmatch``; ``.`` matches line ends too)
        instead. name: The name under which hosts log it.

    Raises:
        ConfigError: If the pattern is no regular expression.
    """

    def __init__(self, pattern: str | None = None, *, name: str = "format") -> None:
        self.__name__ = name
        try:
            self._pattern = None if pattern is None else re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(f"refine: reward {name!r}: {pattern!r} is no regular expression: {error}") from error

    def __call__(
        self, *, completions: Sequence[str | Sequence[Message]], prompts: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        """One number per completion; prompts and columns do not matter."""
        return [float(self._fits(completion_text(completion))) for completion in completions]

    def __repr__(self) -> str:
        return f"FormatReward({self._pattern.pattern!r})" if self._pattern else "FormatReward()"

    def _fits(self, text: str) -> bool:
        return self._pattern.fullmatch(text) is not None if self._pattern else has_one_final_answer(text)


def has_one_final_answer(text: str) -> bool:
    """The form that :class:`FormatReward` describes."""
    thoughts, closed, said = text.rpartition("</think>")
    # Chat templates may open the block in the prompt, so that a completion has the closing tag alone.
    if "<think>" in said or "</think>" in thoughts or thoughts.count("<think>") > 1:
        return False
    if closed and "<think>" in thoughts and thoughts.partition("<think>")[0].strip():
        return False
    if _OPEN in said or _CLOSE in said:
        return _is_one_tag(said)
    boxes = boxed_spans(said)
    if len(boxes) != 1:
        return False
    ((start, end),) = boxes
    rest = said[end:].partition("\n")[2]
    return bool(said[start:end].strip()) and _CLOSERS.fullmatch(rest) is not None


def _is_one_tag(said: str) -> bool:
    before, _, after = said.partition(_OPEN)
    answer, _, rest = after.partition(_CLOSE)
    one = said.count(_OPEN) == 1 and said.count(_CLOSE) == 1 and _CLOSE not in before
    return one and bool(answer.strip()) and not rest.strip() and not boxed_spans(before)
