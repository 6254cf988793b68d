"""q' from q and a draft: neutralised, fitted to the room there is, the question untouched."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from refine_wrapper.core.prompts.chat_frame import RenderedChat
from refine_wrapper.core.prompts.controls import ControlTexts
from refine_wrapper.core.prompts.files import read_template
from refine_wrapper.core.prompts.finder import PromptFinder, open_thought
from refine_wrapper.core.prompts.interface import Template
from refine_wrapper.core.prompts.shorten import GAP, Shorten, shorten, spells
from refine_wrapper.core.prompts.thinking import ThinkingTokens, closes_thinking, strip_thinking, thinking_is_open
from refine_wrapper.core.prompts.turns import is_prefill
from refine_wrapper.core.types import Prompt, PromptRoom, Tokenizer
from refine_wrapper.errors import PluginError, PromptError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

_QUESTIONS_KEPT: Final = 4096
"""Questions whose number of tokens is remembered: more than are under way at once."""
_PROMPTS_KEPT: Final = 512
"""Text prompts that are remembered taken apart."""
_NEAR: Final = 512
"""A draft that is this far from the limit is not measured before q' is built and counted."""
_TURN_TOKENS: Final = 32
"""More tokens than a chat template puts around one turn."""


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """q', and the draft as it stands in it.

    Attributes:
        prompt: q'.
        draft_text: The draft in it: neutralised, perhaps shortened.
        shortened: Whether the draft was cut.
        num_tokens: What ``room.count_tokens`` gave for q', or None where it was not counted (a host without a limit).
    """

    prompt: Prompt
    draft_text: str
    shortened: bool
    num_tokens: int | None = None


class PromptBuilder:
    """Builds q' for one tokenizer and one configuration; all hosts build through it.

    Tokenising is what it costs. Where the host has a limit, q' is counted once; where the draft must be cut, it is cut
    by the tokens that the host has of it.
    """

    def __init__(self, config: RefineConfig, plugins: Plugins, room: PromptRoom) -> None:
        self._config = config
        self._room = room
        self._template = find_template(config.template, plugins)
        self._finder = PromptFinder(room)
        self._found: dict[str, RenderedChat | PromptError | None] = {}
        own = self._finder.frame.turn_markers() if self._finder.frame is not None else ()
        self._controls = {own: ControlTexts.of(room.tokenizer, own)}
        self._own_markers = own
        self._thinking = ThinkingTokens(room.tokenizer)
        self._questions = _QuestionTokens(room)
        self._overhead: dict[str, int] = {}
        self._gap_tokens = len(room.tokenizer.encode(GAP, add_special_tokens=False))

    def question_fits(self, prompt: Prompt, *, extra_tokens: int = 0) -> bool:
        """Whether q alone leaves room for a full answer, and the host does not cut it.

        Args:
            prompt: q.
            extra_tokens: What the host adds to it besides the text that it counts (images, tools).
        """
        limits = [n for n in (self._room.max_prompt_tokens, self._room.max_question_tokens) if n is not None]
        limit = min(limits, default=None)
        return limit is None or self._questions.at_most(prompt, limit - extra_tokens) + extra_tokens <= limit

    def question_tokens(self, prompt: Prompt) -> int:
        """Tokens of q as the host counts them."""
        return self._questions.of(prompt)

    def visible(
        self, prompt: Prompt, text: str, *, token_ids: Sequence[int] | None = None, finished: bool = True
    ) -> str:
        """A sample's text without its reasoning, if ``strip_thinking`` says so; empty where nothing else is left.

        Args:
            prompt: What it was sampled on. Where that opens a thought, a sample cut within it is all reasoning.
            text: Its text as the host decodes it.
            token_ids: Its tokens as the host has them: marks of reasoning that are special tokens are found on them.
            finished: It ended by itself, not at the length limit.
        """
        if not self._config.strip_thinking:
            return text
        opened = self._opens_thinking(prompt)
        said = self._thinking.visible(token_ids, opened=opened) if token_ids is not None else None
        if said is not None:
            return strip_thinking(said)
        if opened and not finished and not closes_thinking(text):
            return ""
        return strip_thinking(text)

    def build(
        self, prompt: Prompt, text: str, *, token_ids: Sequence[int] | None = None, extra_tokens: int = 0
    ) -> BuiltPrompt | None:
        """q' that fits, by shortening the draft only; None if not even one token of the draft fits.

        Args:
            prompt: q.
            text: The draft as it is shown, without its reasoning.
            token_ids: The sample's tokens as the host has them. They save encoding the text where they spell it.
            extra_tokens: What the host adds to q and q' besides the text that it counts (images, tools).

        Raises:
            PromptError: If the prompt has no place for a draft.
        """
        limit = None if self._room.max_prompt_tokens is None else self._room.max_prompt_tokens - extra_tokens
        chat = self._find(prompt)
        draft = _Draft(self._controls_for(chat), self._config.shorten, text, token_ids, self._room.tokenizer)
        keep = self._config.draft_tokens
        if limit is not None and draft.may_exceed(limit - self._questions.at_most(prompt, limit) - _NEAR):
            # It may well be too long: cut it once, to what the question and the template leave.
            left = limit - self._questions.of(prompt) - self._template_overhead(prompt, chat)
            if draft.may_exceed(left):
                # A cut reads differently at its ends: leave a few of a thousand, rather than count q' twice.
                left = max(1, left - left // 1024 - (self._gap_tokens if self._config.shorten == "drop_middle" else 0))
                keep = left if keep is None else min(keep, left)
        while keep is None or keep > 0:
            shown, whole = draft.shown(keep)
            if not shown.strip():
                return None
            built = self._render(prompt, shown, chat)
            num_tokens = None if limit is None else self._room.count_tokens(built)
            over = 0 if num_tokens is None or limit is None else num_tokens - limit
            if over <= 0:
                return BuiltPrompt(built, shown, not whole, num_tokens)
            if keep is None or whole:
                keep = min(draft.num_tokens, keep or draft.num_tokens)
            keep -= over
        return None

    def overhead_tokens(self, prompt: Prompt) -> int:
        """Tokens the template itself adds to a question, for checks before anything is sampled."""
        return self._room.count_tokens(self._render(prompt, "", self._find(prompt))) - self._questions.of(prompt)

    def is_rendered_chat(self, prompt: Prompt) -> bool:
        """Whether a text prompt is a conversation that a chat template has already rendered."""
        chat = self._find(prompt)
        return isinstance(chat, RenderedChat) and chat.rendered

    def describe(self, prompt: Prompt) -> str:
        """How a prompt is seen, for the start message: what kind of turns, and what the answer already begins with."""
        chat = self._find(prompt)
        if isinstance(chat, PromptError):
            return "no place for a draft"
        if chat is None:
            return "text without turns" if isinstance(prompt, str) else "conversation"
        seen = f"rendered chat of {chat.family}" if chat.rendered else chat.family
        return f"{seen}, prefill {chat.prefill!r}" if chat.prefill else seen

    def _find(self, prompt: Prompt) -> RenderedChat | PromptError | None:
        """A text prompt taken apart; None where there is nothing to take apart, the error where there is no place."""
        if not isinstance(prompt, str):
            return None
        if prompt not in self._found:  # asked for each sample of a group and again for q'
            if len(self._found) >= _PROMPTS_KEPT:
                self._found.clear()
            self._found[prompt] = self._finder.find_or_error(prompt)
        return self._found[prompt]

    def _controls_for(self, chat: RenderedChat | PromptError | None) -> ControlTexts:
        """What a draft must not contain: of the tokenizer, its chat template, and the turns that the prompt has."""
        markers = self._own_markers
        if isinstance(chat, RenderedChat) and chat.markers != markers:
            markers = (*markers, *chat.markers)
        if markers not in self._controls:
            self._controls[markers] = ControlTexts.of(self._room.tokenizer, markers)
        return self._controls[markers]

    def _opens_thinking(self, prompt: Prompt) -> bool:
        """Whether generation starts within a thought."""
        if isinstance(prompt, str):
            chat = self._find(prompt)
            return thinking_is_open(
                chat.between + chat.ending if isinstance(chat, RenderedChat) else open_thought(prompt)[1]
            )
        if prompt and is_prefill(prompt[-1]):
            return thinking_is_open(str(prompt[-1]["content"]))
        return self._finder.frame is not None and thinking_is_open(self._finder.frame.post)

    def _template_overhead(self, prompt: Prompt, chat: RenderedChat | PromptError | None) -> int:
        """What the template adds, measured on the first question of a kind: q' itself is counted in any case."""
        kind = chat.family if isinstance(chat, RenderedChat) else type(prompt).__name__
        if kind not in self._overhead:
            one = len(self._room.tokenizer.encode("x", add_special_tokens=False))
            with_one = self._room.count_tokens(self._render(prompt, "x", chat))
            self._overhead[kind] = with_one - one - self._questions.of(prompt)
        return self._overhead[kind]

    def _render(self, question: Prompt, draft: str, chat: RenderedChat | PromptError | None) -> Prompt:
        if not isinstance(question, str):
            return self._template.render_messages(question, draft)
        if isinstance(chat, PromptError):
            raise PromptError(*chat.args)  # a new one: this one may be raised again
        if chat is not None:
            return self._template.render_chat_text(question, draft, chat)
        asked, thought = open_thought(question)
        return self._template.render_text(asked, draft) + thought


class _Draft:
    """One draft while it is being fitted: neutralised, and cut to any number of tokens."""

    def __init__(
        self, controls: ControlTexts, how: Shorten, text: str, token_ids: Sequence[int] | None, tokenizer: Tokenizer
    ) -> None:
        self._controls, self._tokenizer = controls, tokenizer
        self._how: Shorten = how
        self.text = controls.broken(text)
        # Tokens of another text than the one that is shown say nothing about where to cut it.
        self._token_ids = _without_end(token_ids, tokenizer) if token_ids is not None and self.text == text else None
        self._checked = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the draft: the host's if they spell it, else encoded once."""
        if not self._checked:
            self._checked = True
            if self._token_ids is None or not spells(self._token_ids, self.text, self._tokenizer):
                self._token_ids = self._tokenizer.encode(self.text, add_special_tokens=False)
        assert self._token_ids is not None, "encoded above"
        return len(self._token_ids)

    def may_exceed(self, max_tokens: int) -> bool:
        """Whether it may have more tokens than that: by the host's tokens, without looking at what they spell."""
        if len(self.text) <= max_tokens and len(self.text.encode("utf-8", "replace")) <= max_tokens:
            return False
        return (self.num_tokens if self._token_ids is None else len(self._token_ids)) > max_tokens

    def shown(self, keep: int | None) -> tuple[str, bool]:
        """At most so many tokens of it, neutralised (cutting can join what was apart), and whether it is whole."""
        if keep is None or (self._checked and self.num_tokens <= keep):
            return self._controls.neutralise(self.text), True
        cut = shorten(self.text, keep, self._how, self._tokenizer, self._token_ids)
        return self._controls.neutralise(cut), cut == self.text


def _without_end(token_ids: Sequence[int], tokenizer: Tokenizer) -> Sequence[int]:
    """The tokens of the text alone: the end-of-sequence token that a host hands over with them is not shown."""
    special, end = set(tokenizer.all_special_ids), len(token_ids)
    while end and token_ids[end - 1] in special:
        end -= 1
    return token_ids[:end]


class _QuestionTokens:
    """The number of tokens of each question under way: asked before sampling, and again where q' may be too long."""

    def __init__(self, room: PromptRoom) -> None:
        self._room = room
        self._most_around: int | None = None
        # The prompt is kept with its number: an id alone would be used again.
        self._known: OrderedDict[str | int, tuple[Prompt, int, int]] = OrderedDict()

    def of(self, prompt: Prompt) -> int:
        """Counted once."""
        key = prompt if isinstance(prompt, str) else id(prompt)
        known = self._known.get(key)
        if known is not None and known[1] == len(prompt):
            return known[2]
        num_tokens = self._room.count_tokens(prompt)
        self._known[key] = (prompt, len(prompt), num_tokens)
        while len(self._known) > _QUESTIONS_KEPT:
            self._known.popitem(last=False)
        return num_tokens

    def at_most(self, prompt: Prompt, limit: int) -> int:
        """A number that the tokens do not exceed: that of bytes if it is below the limit, else counted.

        What the host puts around a conversation (its chat template, tools) is measured once.
        """
        num_bytes = _bytes_of(prompt)
        if num_bytes is None or num_bytes > limit:
            return self.of(prompt)
        if self._most_around is None:
            self._most_around = self.of(prompt)
        most = num_bytes + self._most_around
        return most if most <= limit else self.of(prompt)


def _bytes_of(prompt: Prompt) -> int | None:
    """Bytes of a prompt, with room for what opens and closes each turn; None where not all of it is plain text."""
    if isinstance(prompt, str):
        return len(prompt.encode("utf-8", "replace"))
    num_bytes = 0
    for message in prompt:
        if message.keys() > {"role", "content"} or not isinstance(message.get("content"), str):
            return None
        num_bytes += len(message["content"].encode("utf-8", "replace")) + _TURN_TOKENS
    return num_bytes


def find_template(name: str, plugins: Plugins) -> Template:
    """A registered template by name, or one read from a file.

    Raises:
        PluginError: If it is neither a registered name nor an existing file.
        TemplateError: If the file is no template.
    """
    known = plugins.all("template")
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.is_file():
        return read_template(path)
    looks_like_a_file = path.suffix in (".txt", ".yaml", ".yml") or len(path.parts) > 1
    if looks_like_a_file:
        raise PluginError(f"refine: there is no template file {name!r} (looked in {str(path.absolute().parent)!r}).")
    return plugins.get("template", name)
