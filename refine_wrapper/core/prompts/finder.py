"""Finding the turns of a text prompt: of the tokenizer's chat template, of other families, of base models."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from refine_wrapper.core.prompts.chat_frame import ChatFrame, RenderedChat
from refine_wrapper.core.prompts.controls import MARK
from refine_wrapper.core.types import PromptRoom
from refine_wrapper.errors import PromptError

_TEMPLATES: Final = (("trl", "chat_templates"), ("vllm", "transformers_utils/chat_templates"))
"""Folders of installed packages with the chat templates of many families."""
_CHAT_MARKS: Final = re.compile(
    r"<\|?(?:im_start|im_end|start_header_id|end_header_id|eot_id|user|assistant|system|start|message|end|turn|eot|"
    r"USER_TOKEN|CHATBOT_TOKEN|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|start_of_turn|end_of_turn|end_of_utterance)\|?>"
    r"|<turn\|>|\[/?INST\]|<\uff5c(?:User|Assistant)\uff5c>"
)
_SPEAKERS: Final = (
    # A user's name and an assistant's, as base models are asked; a prefill may follow the second.
    (r"(?:(?<=\s)|^)(?:User|Human):", r"(?:(?<=\s)|^)(?:Assistant|AI):", ".*"),
    (r"^### (?:Instruction|Input):", r"^### Response:", ".*"),
    # Words that a question may hold itself: only where the prompt ends with the second.
    (r"^(?:Question|Problem|Q):", r"^(?:Answer|Solution|A):", r"\s*(?:<think>\s*)?\Z"),
)
_ANY_SPEAKER: Final = re.compile(r"(?:User|Human|Question|Problem|Q|### Instruction|### Input):")
"""What a prompt without turns lacks: looked for first, because most have none."""
_OPEN_THOUGHT: Final = re.compile(r"\s*(?:<think>|\[THINK\])\s*\Z")


class PromptFinder:
    """Takes text prompts apart at their last user turn, for one tokenizer."""

    def __init__(self, room: PromptRoom) -> None:
        self._room = room
        self.frame = ChatFrame.of(room.tokenizer, room.chat_kwargs)
        self._families: tuple[ChatFrame, ...] | None = None

    def find(self, prompt: str) -> RenderedChat | None:
        """Where a draft goes in a text prompt; None if it is plain text without turns.

        Raises:
            PromptError: If it has marks of a chat and no user turn can be found in it.
        """
        found = self.frame.find(prompt) if self.frame is not None else None
        if found is not None:
            return found
        marks = self._chat_marks(prompt)
        if marks is not None:
            others = [chat for family in self._other_families() if (chat := family.find(prompt)) is not None]
            if others:
                # Of families that open a turn alike, the one that knows where it ends.
                return min(others, key=lambda chat: len(chat.question))
        found = _find_speakers(prompt)
        if found is not None or marks is None:
            return found
        raise PromptError(
            f"refine: the prompt has marks of a chat ({marks!r}), but no user turn is found, so there is no place for "
            f"a draft: {prompt[-120:]!r}. Hand over conversations (messages) instead of text, or text that the "
            "tokenizer's own chat template has rendered."
        )

    def find_or_error(self, prompt: str) -> RenderedChat | PromptError | None:
        """The same, with the error as a value."""
        try:
            return self.find(prompt)
        except PromptError as error:
            return error.with_traceback(None)

    def _chat_marks(self, prompt: str) -> str | None:
        known = _CHAT_MARKS.search(prompt)
        if known is not None:
            return known.group()
        own = () if self.frame is None else (self.frame.open_question.strip(), self.frame.close_question.strip())
        return next((mark for mark in own if MARK.search(mark) and mark in prompt), None)

    def _other_families(self) -> tuple[ChatFrame, ...]:
        """Frames of the installed chat templates, those with the longest marks first; read when they are needed."""
        if self._families is None:
            frames: dict[tuple[str, str, str], ChatFrame] = {}
            for path in _installed_templates():
                kwargs = {**self._room.chat_kwargs, "chat_template": path.read_text(encoding="utf-8")}
                frame = ChatFrame.of(self._room.tokenizer, kwargs, family=path.stem)
                if frame is not None:
                    frames.setdefault((frame.open_question, frame.close_question, frame.header), frame)
            longest = sorted(frames.values(), key=lambda frame: -len(frame.open_question + frame.close_question))
            self._families = tuple(longest)
        return self._families


def open_thought(prompt: str) -> tuple[str, str]:
    """A text without turns as the text and the opening of a thought at its end, which belongs to the answer."""
    match = _OPEN_THOUGHT.search(prompt)
    return (prompt[: match.start()], prompt[match.start() :]) if match is not None else (prompt, "")


def _installed_templates() -> list[Path]:
    found: list[Path] = []
    for package, folder in _TEMPLATES:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            found += sorted(Path(place, folder).glob("*.jinja"))
    return found


def _find_speakers(prompt: str) -> RenderedChat | None:
    if _ANY_SPEAKER.search(prompt) is None:
        return None
    for user, assistant, prefill in _SPEAKERS:
        turns = list(re.finditer(user, prompt, re.MULTILINE))
        if not turns:
            continue
        asked = turns[-1]
        closing = re.compile(assistant + f"(?P<prefill>{prefill})", re.MULTILINE | re.DOTALL)
        answered = closing.search(prompt, asked.end())
        if answered is None:
            continue
        start = asked.end() + len(prompt[asked.end() :]) - len(prompt[asked.end() :].lstrip())
        question = prompt[start : answered.start()].rstrip()
        between = prompt[start + len(question) : answered.start()]
        name = answered.group()[: answered.start("prefill") - answered.start()]
        space = prompt[asked.end() : start] or " "
        return RenderedChat(
            family=f"text with {asked.group()!r} and {name!r}",
            before=prompt[:start],
            question=question,
            between=between,
            ending=prompt[answered.start() :],
            prefill=answered.group("prefill").lstrip(),
            open_answer=name + space,
            after_answer=(between or "\n") + asked.group() + space,
            close_question=between or "\n",
            markers=(asked.group(), name),
            rendered=False,
        )
    return None
