"""Where turns begin and end in a conversation rendered to text: learned from chat templates, with sentinels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from refine_wrapper.core.prompts.controls import MARK
from refine_wrapper.core.types import Message, Tokenizer

_FIRST, _ANSWER, _SECOND, _RESULT = "REFINEWRAPPERQONE", "REFINEWRAPPERDRAFT", "REFINEWRAPPERQTWO", "REFINEWRAPPERTOOL"
_SWITCH: Final = "/nothink"
_THINKING: Final = re.compile(r"\s*(?:</?think|\[THINK|<\|START_THINKING).*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """One text prompt, taken apart at its last user turn: ``before + question + between + ending`` is the prompt.

    Attributes:
        family: Whose turns these are, for people.
        before: Everything before the last user's words.
        question: The last user's words.
        between: What closes them, and what follows up to where the answer begins (tool results).
        ending: From the header of the answer to the end: a prefill is its tail.
        prefill: What of the answer is already in the prompt (``<think>``, first words); the end of ``ending``.
        open_answer: Written before an earlier answer, from its header on.
        after_answer: From the end of an earlier answer to the user's next words.
        close_question: From the end of the user's words to the header of the answer.
        markers: Texts that open or close a turn here, which a draft must not contain.
        strips: Whether the chat template strips the contents of turns.
        rendered: A chat template wrote it; else a base model is asked so ("User: ... Assistant:").
    """

    family: str
    before: str
    question: str
    between: str
    ending: str
    prefill: str
    open_answer: str
    after_answer: str
    close_question: str
    markers: tuple[str, ...]
    strips: bool = False
    rendered: bool = True

    def with_turn(self, content: str) -> str:
        """The prompt with other words in its last user turn."""
        return self.before + content + self.between + self.ending

    def with_turns(self, question: str, answer: str, follow_up: str) -> str:
        """The prompt with an answer to it and a next user turn; a prefill opens the new answer again."""
        if self.strips:
            answer, follow_up = answer.strip(), follow_up.strip()
        asked = self.before + question + self.between + self.open_answer + answer
        return asked + self.after_answer + follow_up + self.close_question + self.ending


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """What a chat template writes around the contents of turns.

    Attributes:
        family: Name of the template, for people.
        open_question: What opens a user's turn, as little of it as no other turn has.
        close_question: What ends a user's words, its first mark.
        header: What opens an answer.
        before_answer: Between a user's words and an earlier answer.
        after_answer: Between an earlier answer and the user's next words.
        post: From the last user's words to where generation starts.
        open_result: What opens a tool's result where it stands in a user's turn.
        strips: Whether contents are stripped.
    """

    family: str
    open_question: str
    close_question: str
    header: str
    before_answer: str
    after_answer: str
    post: str
    open_result: str = ""
    strips: bool = False

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, chat_kwargs: Mapping[str, Any], family: str = "the tokenizer's chat template"
    ) -> ChatFrame | None:
        """Render sentinels through a chat template; None if there is none or it hides a turn.

        Args:
            tokenizer: The policy's.
            chat_kwargs: Passed to the template; ``chat_template`` is another one than the tokenizer's.
            family: For people.
        """
        if not (chat_kwargs.get("chat_template") or getattr(tokenizer, "chat_template", None)):
            return None
        kwargs = {name: value for name, value in chat_kwargs.items() if name != "tools"}

        def render(messages: Sequence[Message]) -> str | None:
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs)
            except Exception:  # a template may refuse any conversation, with any exception
                return None
            return text if isinstance(text, str) else None

        for content in (_as_text, _as_parts):
            rendered = render(_conversation(content))
            if rendered is not None and all(rendered.count(word) == 1 for word in (_FIRST, _ANSWER, _SECOND)):
                break
        else:
            return None
        pre, rest = rendered.split(_FIRST)
        before_answer, rest = rest.split(_ANSWER)
        after_answer, post = rest.split(_SECOND)
        opened = _shortest_opening(_common_suffix(pre, after_answer), (before_answer, post))
        closed = _without_cut_mark(_common_prefix(before_answer, post))
        close = _shortest_closing(closed)
        if not opened or not close:
            return None
        header = _THINKING.sub("", closed[len(close) :]).strip() or close.strip()
        spaced = render(_conversation(lambda word: content(f" {word} ")))
        return cls(
            family,
            opened,
            close,
            header,
            before_answer,
            after_answer,
            post,
            open_result=_opening_of_results(render(_with_result(content)), opened),
            strips=spaced is not None and f" {_ANSWER} " not in spaced,
        )

    def find(self, prompt: str) -> RenderedChat | None:
        """The last user turn of a rendered prompt; None if it has none of this kind."""
        opening = self.open_question if self.open_question in prompt else self.open_question.rstrip()
        position, start = len(prompt), -1
        while start < 0:
            position = prompt.rfind(opening, 0, position)
            if position < 0:
                return None
            if not self._is_result(prompt, position, position + len(opening)):
                start = position + len(opening)
        close = self.close_question.strip()
        end = prompt.find(close, start)
        if end < 0:
            return None
        space = self.close_question[: self.close_question.index(close)]
        end -= len(space) if space and prompt.endswith(space, start, end) else 0
        # GLM's switch stands behind the user's words.
        switch = _SWITCH if prompt.endswith(_SWITCH, start, end) else ""
        end -= len(switch)
        rest = prompt[end:]
        at = rest.rfind(self.header)
        prefill = rest[at + len(self.header) :]
        if at < 0 or (self.header != close and close in prefill):
            # No answer is begun: the conversation ends with the user's turn.
            return RenderedChat(
                self.family, prompt[:start], prompt[start:end], "", rest, "", self.before_answer, self.after_answer, "",
                self.turn_markers(), self.strips,
            )  # fmt: skip
        if "tool" in prefill.lower() and MARK.search(prefill):
            # Tool calls and their results, which the answer goes on from without a header of its own.
            return RenderedChat(
                self.family, prompt[:start], prompt[start:end], rest, "", "", "", self.after_answer, self.post,
                self.turn_markers(), self.strips,
            )  # fmt: skip
        space = self.post[self.post.index(self.header) + len(self.header) :]
        space = space[: len(space) - len(space.lstrip())]
        return RenderedChat(
            self.family,
            prompt[:start],
            prompt[start:end],
            rest[:at],
            rest[at:],
            prefill.removeprefix(space),
            self.before_answer[self.before_answer.index(self.header) :],
            self.after_answer,
            switch + self.post[: self.post.index(self.header)].removeprefix(switch),
            self.turn_markers(),
            self.strips,
        )

    def turn_markers(self) -> tuple[str, ...]:
        """The pieces that open or close a turn, for neutralising."""
        return (self.open_question, self.before_answer, self.after_answer, self.post)

    def _is_result(self, prompt: str, position: int, start: int) -> bool:
        known = bool(self.open_result) and prompt.startswith(self.open_result, position)
        return known or prompt[start : start + 40].lstrip().startswith("<tool_response>")


def _as_text(word: str) -> Any:
    return word


def _as_parts(word: str) -> Any:
    return [{"type": "text", "text": word}]


def _conversation(content: Callable[[str], Any]) -> list[Message]:
    turns = (("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND))
    return [{"role": role, "content": content(word)} for role, word in turns]


def _with_result(content: Callable[[str], Any]) -> list[Message]:
    call = {"type": "function", "id": "call00001", "function": {"name": "search", "arguments": {"text": "x"}}}
    return [
        {"role": "user", "content": content(_FIRST)},
        {"role": "assistant", "content": content(""), "tool_calls": [call]},
        {"role": "tool", "name": "search", "tool_call_id": "call00001", "content": content(_RESULT)},
    ]


def _opening_of_results(rendered: str | None, open_question: str) -> str:
    """What stands before a tool's result, if that begins as a user's turn does."""
    if rendered is None or rendered.count(_RESULT) != 1 or _FIRST not in rendered:
        return ""
    before = rendered[rendered.index(_FIRST) + len(_FIRST) : rendered.index(_RESULT)]
    return before[before.rindex(open_question) :].rstrip() if open_question in before else ""


def _pieces(text: str) -> list[tuple[int, int, bool]]:
    """Start, end and whether it is a mark, of the marks of a text and of what stands between them."""
    pieces: list[tuple[int, int, bool]] = []
    position = 0
    for match in MARK.finditer(text):
        if match.start() > position:
            pieces.append((position, match.start(), False))
        pieces.append((match.start(), match.end(), True))
        position = match.end()
    return [*pieces, (position, len(text), False)] if position < len(text) else pieces


def _shortest_opening(text: str, others: Sequence[str]) -> str:
    for start, end, is_mark in reversed(_pieces(text)):
        opening = text[start:]
        marks = is_mark or re.search(r"[^\w\s]", text[start:end])
        if marks and not any(other.rstrip().endswith(opening.rstrip()) for other in others):
            return opening
    return ""


def _shortest_closing(text: str) -> str:
    for start, end, is_mark in _pieces(text):
        if is_mark or re.search(r"[^\w\s]", text[start:end]):
            return text[:end]
    return ""


def _without_cut_mark(text: str) -> str:
    """The text without the beginning of a mark at its end, where two texts part in the middle of one."""
    return re.sub(r"(?:<[^<>\n]{0,60}|\[[^\]\n]{0,20})$", "", text)


def _common_suffix(first: str, second: str) -> str:
    return _common_prefix(first[::-1], second[::-1])[::-1]


def _common_prefix(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return first[:length]
