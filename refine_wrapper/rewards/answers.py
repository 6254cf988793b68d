"""The final answer in a completion, by the conventions that data sets and prompts use."""

from __future__ import annotations

import re

# A policy that repeats itself writes thousands of these and closes none: everything here takes linear time.
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_HASHES = re.compile(r"####\s*(.+)")


def extract_answer(text: str) -> str:
    r"""The last ``\boxed{...}``, else the last ``<answer>`` tag, else after the last ``####``, else all.

    Whitespace at the ends does not count. A last box that was cut off holds no answer: it is empty, whatever was in
    an earlier one.
    """
    marked = marked_answer(text)
    return text.strip() if marked is None else marked


def marked_answer(text: str) -> str | None:
    """What :func:`extract_answer` finds, but None where nothing marks the answer."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    ends = [match.end() for match in _TAG_END.finditer(text)]
    found = _TAG.findall(text, 0, ends[-1]) if ends else []
    found = found or _HASHES.findall(text)
    return str(found[-1]).strip() if found else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\fbox{...}``, nested braces included; empty if it was cut off."""
    boxes = _boxes(text)
    if not boxes:
        return None
    start, end = max(boxes)
    return text[start:end]


def boxed_spans(text: str) -> list[tuple[int, int]]:
    r"""Where the content of every complete ``\boxed{...}`` or ``\fbox{...}`` starts and ends."""
    return [(start, end) for start, end in _boxes(text) if end >= start]


def _boxes(text: str) -> list[tuple[int, int]]:
    """Start and end of every box's content; of one that is never closed the end is 0, so that it is empty."""
    spans: list[tuple[int, int]] = []
    open_braces: list[int | None] = []  # for a box where its content starts, for any other brace None
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                spans.append((start, brace.start()))
        else:
            open_braces.append(brace.end() if len(brace[0]) > 1 else None)
    return spans + [(start, 0) for start in open_braces if start is not None]
