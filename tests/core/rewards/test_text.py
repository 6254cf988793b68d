"""The text of a completion in every form that hosts hand over."""

from __future__ import annotations

from typing import Any

import pytest

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.text import completion_text


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("4", "4"),
        ("", ""),
        ([], ""),
        ([{"role": "assistant", "content": "4"}], "4"),
        ([{"role": "assistant", "content": "3"}, {"role": "assistant", "content": "4"}], "4"),
        ([{"role": "assistant", "content": "4"}, {"role": "tool", "content": "5"}], "4"),
        ([{"role": "user", "content": "4"}], ""),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant"}], ""),
        (
            [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image"},
                        {"type": "text", "text": "b"},
                    ],
                }
            ],
            "ab",
        ),
        ([{"role": "assistant", "content": ["a", "b"]}], "ab"),
        (({"role": "assistant", "content": "4"},), "4"),
    ],
)
def test_text(completion: Any, text: str) -> None:
    assert completion_text(completion) == text


@pytest.mark.parametrize(
    "completion", [None, 4, b"4", ["4"], {"role": "assistant"}, [{"role": "assistant", "content": 4}]]
)
def test_anything_else_is_refused(completion: Any) -> None:
    with pytest.raises(ConfigError, match="must be"):
        completion_text(completion)
