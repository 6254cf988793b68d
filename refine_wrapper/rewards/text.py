"""The text of a completion, whichever form the host hands it over in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from refine_wrapper.errors import ConfigError
from refine_wrapper.messages import Message


def completion_text(completion: str | Sequence[Message]) -> str:
    """A text as it is; of a conversation the last assistant message, its text parts joined.

    A conversation without an assistant message, or whose last one only calls tools, has the text ``""``.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(completion, str):
        return completion
    # Hosts are not type-checked, hence the tests that the signature makes look superfluous.
    messages = cast("Any", completion)
    if not isinstance(messages, (list, tuple)) or not all(isinstance(m, Mapping) for m in cast("list[Any]", messages)):
        raise ConfigError(f"refine: a completion must be a string or a list of messages, not {completion!r:.80}")
    said = [message for message in completion if message.get("role") == "assistant"]
    return _content_text(said[-1].get("content")) if said else ""


def _content_text(content: Any) -> str:
    if content is None:  # a message that only calls tools
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        return "".join(_part_text(part) for part in cast("list[Any]", content))
    raise ConfigError(f"refine: the content of a message must be text or a list of parts, not {content!r:.80}")


def _part_text(part: Any) -> str:
    text = cast("Mapping[str, Any]", part).get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""  # images and the like say nothing
