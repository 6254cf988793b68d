"""What an author of a refinement template writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from refine_wrapper.messages import Message

if TYPE_CHECKING:
    from refine_wrapper.core.prompts.chat_frame import RenderedChat


class Template(Protocol):
    """Builds q' from q and a draft, for the three shapes in which prompts arrive.

    Most authors need no class: a template file, or :class:`~refine_wrapper.core.prompts.turns.TurnTemplate` with other
    turns, is enough. ``draft`` is inserted as data, never evaluated. Return the object from ``register_templates``.
    """

    def render_messages(self, messages: Sequence[Message], draft: str) -> list[Message]:
        """q' for a conversation. Raises PromptError where there is no place for a draft."""
        ...

    def render_text(self, question: str, draft: str) -> str:
        """q' for text without turns."""
        ...

    def render_chat_text(self, prompt: str, draft: str, chat: RenderedChat) -> str:
        """q' for a text with turns in it, such as a chat template writes; ``chat`` is the prompt taken apart."""
        ...
