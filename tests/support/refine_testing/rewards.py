"""Rewards that write down what they were asked, and pay by rules that a test can recompute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def text_of(completion: Any) -> str:
    """The text of a plain or conversational completion."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def checksum(text: str) -> float:
    """A reward in [0, 1) that differs between random texts and is the same everywhere."""
    return (sum((i + 1) * ord(c) for i, c in enumerate(text)) % 97) / 97


@dataclass
class RecordingReward:
    """Pays :func:`checksum` and keeps every call: prompts, completions, data set columns."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    __name__: str = "recording_reward"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        columns = {k: v for k, v in columns.items() if isinstance(v, list)}
        self.calls.append({"prompts": list(prompts), "completions": list(completions), **columns})
        return [checksum(text_of(completion)) for completion in completions]
