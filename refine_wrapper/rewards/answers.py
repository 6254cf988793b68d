"""The final answer in a completion, by the conventions that data sets and prompts use."""

from __future__ import annotations

import re

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####\s*(.+)")


def extract_answer(text: str) -> str:
    r"""The last ``\boxed{...}``, else the last ``<answer>`` tag, else what follows the last ``####``, else the whole text.

    Whitespace at the ends does not count.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    for pattern in (_TAG, _HASHES):
        found = pattern.findall(text)
        if found:
            return str(found[-1]).strip()
    return text.strip()


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` or ``\fbox{...}``, nested braces included; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None
