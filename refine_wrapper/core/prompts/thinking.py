"""Leaving the reasoning of a draft out of the prompt."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"<think>.*?</think>", re.DOTALL)


def strip_thinking(text: str) -> str:
    """The text without ``<think>`` blocks. One that was never closed hides all that follows it.

    Chat templates that open the block themselves leave only ``</think>`` in the completion: what precedes it goes too.
    """
    # Blocks are looked for before the last closing tag only: a policy that repeats itself writes thousands of opening
    # tags and closes none, and searching from each of them to the end would take minutes.
    head, close, tail = text.rpartition("</think>")
    text = _BLOCK.sub("", head + close).rpartition("</think>")[2] + tail
    return text.partition("<think>")[0].strip()
