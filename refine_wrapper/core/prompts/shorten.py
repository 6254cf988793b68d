"""Cutting a draft to a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from refine_wrapper.core.types import Tokenizer

GAP = "\n[...]\n"
"""Stands for what was left out of the middle."""

Shorten = Literal["keep_tail", "keep_head", "drop_middle"]


def shorten(
    text: str, max_tokens: int, how: Shorten, tokenizer: Tokenizer, token_ids: Sequence[int] | None = None
) -> str:
    """At most ``max_tokens`` tokens of a text (``drop_middle`` adds the gap mark to them); the text itself if it fits.

    The tail of a solution has its answer, the head its plan; ``drop_middle`` keeps half of both.

    Args:
        text: What is cut.
        max_tokens: Tokens that stay.
        how: Which of them.
        tokenizer: What counts as a token.
        token_ids: The text's tokens as the host has them. They save encoding the text where what they say is in it.
    """
    if max_tokens <= 0:
        return ""
    if token_ids is not None and len(token_ids) > max_tokens:
        cut = _cut(text, token_ids, max_tokens, how, tokenizer)
        if cut is not None:
            return cut
    if token_ids is not None and len(token_ids) <= max_tokens and spells(token_ids, text, tokenizer):
        return text
    encoded = tokenizer.encode(text, add_special_tokens=False)
    if len(encoded) <= max_tokens:
        return text
    head, tail = _shares(max_tokens, how)
    pieces = (_decode(encoded[:head], tokenizer), _decode(encoded[len(encoded) - tail :], tokenizer))
    return (GAP if how == "drop_middle" else "").join(pieces)


def spells(token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> bool:
    """Whether these are the text's tokens, up to space around it and special tokens (hosts strip both)."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True).strip() == text.strip()


def _cut(text: str, token_ids: Sequence[int], max_tokens: int, how: Shorten, tokenizer: Tokenizer) -> str | None:
    """The cut by the host's tokens; None where they do not spell the text's ends."""
    head, tail = _shares(max_tokens, how)
    # The tokenizer below transformers decodes in half the time; what it says is compared with the text in any case.
    decoder: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder = decoder if hasattr(decoder, "decode") else tokenizer
    first = _decode(token_ids[:head], decoder).lstrip()
    last = _decode(token_ids[len(token_ids) - tail :], decoder).rstrip()
    # Decoding may drop a space, and texts of hosts are stripped: the ends are compared without them.
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if not (text.startswith(first, start) and text.endswith(last, 0, end)) or len(first) + len(last) >= end - start:
        return None
    if not (first or not head) or not (last or not tail):
        return None
    pieces = (text[: start + len(first)] if head else "", text[end - len(last) :] if tail else "")
    return (GAP if how == "drop_middle" else "").join(pieces)


def _shares(max_tokens: int, how: Shorten) -> tuple[int, int]:
    """Tokens that stay of the head and of the tail."""
    if how == "drop_middle":
        return (max_tokens + 1) // 2, max_tokens // 2
    return (max_tokens, 0) if how == "keep_head" else (0, max_tokens)


def _decode(token_ids: Sequence[int], tokenizer: Any) -> str:
    # A cut inside a multi-byte character leaves a replacement mark at the edge.
    return tokenizer.decode(list(token_ids), skip_special_tokens=True).strip("�") if token_ids else ""
