"""TurnTemplate: a template as a list of chat turns. ``append`` is one turn, ``turns`` is three; files make others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refine_wrapper.core.prompts.chat_frame import RenderedChat
from refine_wrapper.core.prompts.thinking import begun_answer
from refine_wrapper.core.prompts.variables import VARIABLES, VariableText
from refine_wrapper.errors import PromptError, TemplateError
from refine_wrapper.messages import Message

_ROLES = ("user", "assistant", "user")


@dataclass(frozen=True, slots=True)
class TurnTemplate:
    """Chat turns that take the place of the question's turn, and their form for plain text.

    Attributes:
        name: For error messages.
        turns: Contents of one turn (user) or of three (user, assistant, user).
        text: The form for prompts that are plain text.
    """

    name: str
    turns: tuple[VariableText, ...]
    text: VariableText

    @classmethod
    def build(cls, name: str, turns: Sequence[str], text: str) -> TurnTemplate:
        """Parse and check a template.

        Raises:
            TemplateError: Naming a missing or unknown variable, or a wrong number of turns.
        """
        parsed = tuple(
            VariableText.parse(turn, f"template {name!r}, turn {number}") for number, turn in enumerate(turns, 1)
        )
        plain = VariableText.parse(text, f"template {name!r}, text")
        if len(parsed) not in (1, 3):
            raise TemplateError(
                f"refine: template {name!r} has {len(parsed)} turns; write one (user) or three (user, assistant, user)."
            )
        for what, used in (("turns", [v for turn in parsed for v in turn.variables]), ("text", plain.variables)):
            for variable in VARIABLES:
                if variable not in used:
                    raise TemplateError(f"refine: template {name!r} lacks the variable {{{variable}}} in its {what}.")
        if "question" not in parsed[0].variables:
            raise TemplateError(f"refine: template {name!r} must have {{question}} in its first turn.")
        return cls(name, parsed, plain)

    def render_text(self, question: str, draft: str) -> str:
        return self.text.fill(question=question, draft=draft)

    def render_messages(self, messages: Sequence[Message], draft: str) -> list[Message]:
        """q': the turns in place of the last user turn; what follows that turn (tool results, a prefill) is kept.

        Raises:
            PromptError: If there is no user turn.
        """
        position = _last_user_turn(messages)
        asked = messages[position]
        after = list(messages[position + 1 :])
        content = asked.get("content")
        question = _text_of(content)
        as_parts = not isinstance(content, str | None)
        rendered: list[Message] = [
            *messages[:position],
            {**asked, "content": self._question_turn(content, question, draft)},
        ]
        if len(self.turns) == 1:
            return [*rendered, *after]
        # Three turns: the draft answers everything asked so far. A prefill that the answer must start with opens the
        # draft's turn, and the refinement's too.
        prefill = after.pop() if after and is_prefill(after[-1]) else None
        answer = self.turns[1].fill(question=question, draft=draft)
        if prefill is not None:
            answer = begun_answer(_text_of(prefill["content"]), draft) + answer
        for role, content in zip(_ROLES[1:], (answer, self.turns[2].fill(question=question, draft=draft)), strict=True):
            after.append({"role": role, "content": [{"type": "text", "text": content}] if as_parts else content})
        return [*rendered, *after, *([prefill] if prefill is not None else [])]

    def render_chat_text(self, prompt: str, draft: str, chat: RenderedChat) -> str:
        """q' for a text with turns: what stands between them comes from ``chat``."""
        contents = [turn.fill(question=chat.question, draft=draft) for turn in self.turns]
        if len(contents) == 1:
            return chat.with_turn(contents[0])
        return chat.with_turns(contents[0], begun_answer(chat.prefill, draft) + contents[1], contents[2])

    def _question_turn(self, content: Any, question: str, draft: str) -> Any:
        if isinstance(content, str | None):  # None: a turn without words, as some data sets have it
            return self.turns[0].fill(question=question, draft=draft)
        # A list of parts: images and texts of the question stay as they are, in place of the first {question}.
        around = self.turns[0].split_at_question()
        assert around is not None, "build() checked that the first turn has {question}"
        before, after = (piece.fill(question=question, draft=draft) for piece in around)
        texts: list[list[Any]] = [[{"type": "text", "text": text}] if text else [] for text in (before, after)]
        return [*texts[0], *content, *texts[1]]


def is_prefill(message: Message) -> bool:
    """Whether a last message is the beginning of the answer to be written."""
    return message.get("role") == "assistant" and bool(message.get("content")) and not message.get("tool_calls")


def _last_user_turn(messages: Sequence[Message]) -> int:
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].get("role") == "user":
            return position
    raise PromptError("refine: the conversation has no user turn, so there is no question to put a draft beside.")


def _text_of(content: Any) -> str:
    """The words of a content. Data sets with nested columns fill in the keys that a part lacks with None."""
    if isinstance(content, str):
        return content
    parts: list[Mapping[str, Any]] = [part for part in content or () if isinstance(part, Mapping)]
    return "\n".join(
        str(part["text"]) for part in parts if part.get("type") in ("text", None) and part.get("text") is not None
    )
