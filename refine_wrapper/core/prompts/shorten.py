"""Cutting a draft to a number of tokens."""

from __future__ import annotations

from typing import Literal

from refine_wrapper.core.types import Tokenizer

GAP = "\n[...]\n"
"""Stands for what was left out of the middle."""

Shorten = Literal["keep_tail", "keep_head", "drop_middle"]


def shorten(text: str, max_tokens: int, how: Shorten, tokenizer: Tokenizer) -> str:
    """At most ``max_tokens`` tokens of a text (``drop_middle`` adds the gap mark to them); the text itself if it fits.

    The tail of a solution has its answer, the head its plan; ``drop_middle`` keeps half of both.
    """
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    if len(token_ids) <= max_tokens:
        return text
    if max_tokens <= 0:
        return ""
    if how == "keep_head":
        return _decode(token_ids[:max_tokens], tokenizer)
    if how == "keep_tail":
        return _decode(token_ids[-max_tokens:], tokenizer)
    head = (max_tokens + 1) // 2
    tail = max_tokens - head
    return _decode(token_ids[:head], tokenizer) + GAP + (_decode(token_ids[-tail:], tokenizer) if tail else "")


def _decode(token_ids: list[int], tokenizer: Tokenizer) -> str:
    # A cut inside a multi-byte character leaves a replacement mark at the edge.
    return tokenizer.decode(token_ids, skip_special_tokens=True).strip("�")
