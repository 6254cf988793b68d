"""q' from q and a draft: neutralised, fitted to the room there is, the question untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refine_wrapper.core.prompts.chat_frame import ChatFrame
from refine_wrapper.core.prompts.controls import ControlTexts
from refine_wrapper.core.prompts.files import read_template
from refine_wrapper.core.prompts.interface import Template
from refine_wrapper.core.prompts.shorten import shorten
from refine_wrapper.core.prompts.thinking import strip_thinking
from refine_wrapper.core.types import Prompt, PromptRoom
from refine_wrapper.errors import PluginError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """q', and the draft as it stands in it."""

    prompt: Prompt
    draft_text: str
    shortened: bool


class PromptBuilder:
    """Builds q' for one tokenizer and one configuration; all hosts build through it."""

    def __init__(self, config: RefineConfig, plugins: Plugins, room: PromptRoom) -> None:
        self._config = config
        self._plugins = plugins
        self._room = room
        self._template = find_template(config.template, plugins)
        self._frame = ChatFrame.of(room.tokenizer, room.chat_kwargs)
        self._controls = ControlTexts.of(room.tokenizer, self._frame)

    def question_fits(self, question: Prompt, *, extra_tokens: int = 0) -> bool:
        """Whether q alone leaves room for a full answer."""
        limit = self._room.max_prompt_tokens
        return limit is None or self._room.count_tokens(question) + extra_tokens <= limit

    def visible(
        self, prompt: Prompt, text: str, *, token_ids: Sequence[int] | None = None, finished: bool = True
    ) -> str:
        """A sample's text without its reasoning, if so configured."""
        return strip_thinking(text) if self._config.strip_thinking else text

    def build(
        self, question: Prompt, draft: str, *, token_ids: Sequence[int] | None = None, extra_tokens: int = 0
    ) -> BuiltPrompt | None:
        """q' that fits, by shortening the draft only; None if not even one token of the draft fits.

        Raises:
            PromptError: If the prompt has no place for a draft.
        """
        tokenizer, limit = self._room.tokenizer, self._room.max_prompt_tokens
        draft = self._controls.neutralise(draft, tokenizer)
        num_tokens = len(tokenizer.encode(draft, add_special_tokens=False))
        keep = num_tokens if self._config.draft_tokens is None else min(num_tokens, self._config.draft_tokens)
        while keep > 0:
            # Cutting can join what was apart, so what is left is neutralised again.
            cut = self._controls.neutralise(shorten(draft, keep, self._config.shorten, tokenizer), tokenizer)
            if not cut.strip():
                return None
            prompt = self._render(question, cut)
            over = 0 if limit is None else self._room.count_tokens(prompt) + extra_tokens - limit
            if over <= 0:
                return BuiltPrompt(prompt, cut, shortened=cut != draft)
            keep -= over
        return None

    def overhead_tokens(self, question: Prompt) -> int:
        """Tokens the template itself adds to a question, for checks before anything is sampled."""
        return self._room.count_tokens(self._render(question, "")) - self._room.count_tokens(question)

    def is_rendered_chat(self, prompt: Prompt) -> bool:
        """Whether a text prompt is a conversation that a chat template has already rendered."""
        return isinstance(prompt, str) and self._frame is not None and self._frame.wraps(prompt)

    def _render(self, question: Prompt, draft: str) -> Prompt:
        if not isinstance(question, str):
            return self._template.render_messages(question, draft)
        if self._frame is not None and self._frame.wraps(question):
            return self._template.render_chat_text(question, draft, self._frame)
        return self._template.render_text(question, draft)


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
