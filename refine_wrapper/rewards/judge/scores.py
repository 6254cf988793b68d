"""From a judge's reply to numbers from 0 to 1."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, cast

from refine_wrapper.rewards.judge.failures import FailureKind, JudgeError
from refine_wrapper.rewards.judge.settings import JudgeSettings


def reply_schema(settings: JudgeSettings, count: int) -> dict[str, Any]:
    """JSON schema of a reply about ``count`` completions."""
    low, high = settings.scale
    whole = low == int(low) and high == int(high)
    number: dict[str, Any] = (
        {"type": "integer", "minimum": int(low), "maximum": int(high)}
        if whole
        else {"type": "number", "minimum": low, "maximum": high}
    )
    several = {"scores": {"type": "array", "items": number, "minItems": count, "maxItems": count}}
    properties: dict[str, Any] = several if settings.together else {"score": number}
    if settings.reasons:
        properties = {"reason": {"type": "string"}, **properties}  # before the score: what is written first leads
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_scores(reply: str, settings: JudgeSettings, count: int) -> list[float]:
    """The scores of ``count`` completions, from 0 to 1.

    Raises:
        JudgeError: If the reply has none, not as many, or one outside of the scale.
    """
    said = reply.rpartition("</think>")[2]
    found = _by_json(said, settings.together) if settings.read == "json" else _by_pattern(said, settings, count)
    if found is None or len(found) != count:
        what = "no score" if found is None else f"{len(found)} scores for {count} answers"
        raise JudgeError(FailureKind.NO_SCORE, f"the judge gave {what}: {_end(said)}")
    low, high = settings.scale
    for score in found:
        if not low <= score <= high:
            raise JudgeError(FailureKind.OUT_OF_SCALE, f"{score:g} is not from {low:g} to {high:g}: {_end(said)}")
    return [(score - low) / (high - low) for score in found]


def _by_json(said: str, together: bool) -> list[float] | None:
    key = "scores" if together else "score"
    content = _last_object(said, key)
    if content is None:
        return None
    scores: Sequence[Any] = content[key] if together else [content[key]]
    if not isinstance(scores, list):
        return None
    numbers = [_number(score) for score in scores]
    return None if None in numbers else cast("list[float]", numbers)


def _last_object(said: str, key: str) -> dict[str, Any] | None:
    """The whole reply, or the last object in it that has the key: some endpoints cannot be held to a schema."""
    decoder = json.JSONDecoder()
    last, position = None, said.find("{")
    while position >= 0:
        try:
            content, end = decoder.raw_decode(said, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if isinstance(content, dict) and key in content:
                last = cast("dict[str, Any]", content)
        position = said.find("{", end)
    return last


def _by_pattern(said: str, settings: JudgeSettings, count: int) -> list[float] | None:
    found = [_number(match.group(1)) for match in re.finditer(settings.pattern, said)]
    if not settings.together:
        found = found[-1:]  # the verdict comes last; before it the judge may have quoted what the answer says of itself
    return None if not found or None in found else cast("list[float]", found)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _end(said: str) -> str:
    said = " ".join(said.split())
    return repr(said if len(said) <= 200 else "..." + said[-200:])
