"""Leaving the reasoning of a draft out of the prompt."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"<think>.*?</think>", re.DOTALL)


def strip_thinking(text: str) -> str:
    """The text without ``<think>`` blocks. One that was never closed hides all that follows it.

    Chat templates that open the block themselves leave only ``</think>`` in the completion: what precedes it goes too.
    """
    text = _BLOCK.sub("", text)
    text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()
