"""Leaving the reasoning of a sample out of what is shown of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from refine_wrapper.core.prompts.controls import any_of, special_texts
from refine_wrapper.core.types import Tokenizer

_MARKS: Final = (
    # How families open and close a thought.
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>", "<channel|>"),
)
_ANSWER_CHANNEL: Final = ("<|channel|>", "<|message|>")
_OPEN: Final = re.compile("|".join(re.escape(opening) for opening, _ in _MARKS))
_CLOSE: Final = re.compile("|".join(re.escape(closing) for _, closing in _MARKS))


def strip_thinking(text: str) -> str:
    """The text without thoughts (``<think>`` blocks and the like). One that was never closed hides all that follows it.

    Chat templates that open the thought themselves leave only ``</think>`` in the completion: what precedes it goes
    too.
    """
    for opening, closing in _MARKS:
        # Blocks are looked for before the last closing mark only: a policy that repeats itself writes thousands of
        # opening marks and closes none, and searching from each of them to the end would take minutes.
        head, close, tail = text.rpartition(closing)
        if close:
            block = re.escape(opening) + ".*?" + re.escape(closing)
            text = re.sub(block, "", head + close, flags=re.DOTALL).rpartition(closing)[2] + tail
        text = text.partition(opening)[0]
    return text.strip()


def begun_answer(prefill: str, draft: str) -> str:
    """What an earlier answer begins with where this one is prefilled: without a thought that the draft does not end."""
    if "<|" in prefill:
        return ""  # a channel's header, not words
    if not _OPEN.search(prefill) and not _CLOSE.search(prefill):
        return prefill
    if thinking_is_open(prefill) and closes_thinking(draft):
        return prefill
    words = strip_thinking(prefill)
    return words + "\n" if words else ""


def thinking_is_open(text: str) -> bool:
    """Whether a text ends within a thought."""
    opened = [match.end() for match in _OPEN.finditer(text)]
    closed = [match.end() for match in _CLOSE.finditer(text)]
    return bool(opened) and (not closed or opened[-1] > closed[-1])


def closes_thinking(text: str) -> bool:
    """Whether a thought ends in a text."""
    return _CLOSE.search(text) is not None


class ThinkingTokens:
    """Thoughts that are marked by special tokens, which decoding drops while the thoughts stay."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = special_texts(tokenizer)
        self._specials = any_of(special)
        self._marks = [pair for pair in _MARKS if special.issuperset(pair)]
        self._channels = special.issuperset(_ANSWER_CHANNEL)

    def visible(self, token_ids: Sequence[int], *, opened: bool) -> str | None:
        """What is said outside of thoughts; None where no special token marks one.

        Args:
            token_ids: The sample's tokens as the host has them.
            opened: The prompt ends within a thought.
        """
        if not self._marks and not self._channels:
            return None
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        cut = text
        for opening, closing in self._marks:
            if opened and closing in cut:
                cut = cut[cut.index(closing) + len(closing) :]
            cut = re.sub(re.escape(opening) + ".*?(?:" + re.escape(closing) + r"|\Z)", "", cut, flags=re.DOTALL)
        if self._channels and _ANSWER_CHANNEL[0] in cut:
            # Each message names its channel; the answer is the last one in `final`.
            channel, _, answer = cut.rpartition(_ANSWER_CHANNEL[0])[2].partition(_ANSWER_CHANNEL[1])
            cut = answer if channel.strip().startswith("final") else ""
        if cut == text:
            return None
        return self._specials.sub("", cut).strip() if self._specials is not None else cut.strip()
