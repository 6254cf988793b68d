"""Prompts that arrive already rendered by a chat template: find the template's own pieces with sentinels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refine_wrapper.core.types import Tokenizer

_FIRST, _ANSWER, _SECOND = "REFINEWRAPPERQONE", "REFINEWRAPPERDRAFT", "REFINEWRAPPERQTWO"


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """What a chat template writes around the contents of turns.

    Attributes:
        open_question: Written right before a user's words, in every turn.
        before_answer: Between a user's words and an earlier answer.
        after_answer: Between an earlier answer and the user's next words.
        post: From the last user's words to where generation starts.
    """

    open_question: str
    before_answer: str
    after_answer: str
    post: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, chat_kwargs: Mapping[str, Any]) -> ChatFrame | None:
        """Render sentinels through the tokenizer's chat template; None if there is none or it hides a turn."""
        if not (chat_kwargs.get("chat_template") or getattr(tokenizer, "chat_template", None)):
            return None
        kwargs = {name: value for name, value in chat_kwargs.items() if name != "tools"}
        conversation = [
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _SECOND},
        ]
        try:
            rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **kwargs)
        except (
            Exception
        ):  # a template may refuse any conversation, with any exception; then prompts are plain text to us
            return None
        if not isinstance(rendered, str) or any(rendered.count(s) != 1 for s in (_FIRST, _ANSWER, _SECOND)):
            return None
        pre, rest = rendered.split(_FIRST)
        before_answer, rest = rest.split(_ANSWER)
        after_answer, post = rest.split(_SECOND)
        # The opener of a user turn is what the first and the second one have in common.
        open_question = _common_suffix(pre, after_answer)
        return cls(open_question, before_answer, after_answer, post)

    def wraps(self, prompt: str) -> bool:
        """Whether a text prompt was rendered by this chat template, ready for generation."""
        return bool(self.post.strip()) and prompt.endswith(self.post)

    def split(self, prompt: str) -> tuple[str, str, str]:
        """A rendered prompt as (everything before the question, the question, everything after it)."""
        body = prompt[: len(prompt) - len(self.post)]
        opened = bool(self.open_question) and self.open_question in body
        start = body.rfind(self.open_question) + len(self.open_question) if opened else 0
        return body[:start], body[start:], self.post

    def turn_markers(self) -> tuple[str, ...]:
        """The pieces that open or close a turn, for neutralising."""
        return (self.before_answer, self.after_answer, self.post)


def _common_suffix(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[-length - 1] == second[-length - 1]:
        length += 1
    return first[len(first) - length :]
