"""What an author of a reward writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from refine_wrapper.messages import Message


class Reward(Protocol):
    """A reward function in TRL's signature; the adapters of other hosts call it the same way.

    ``completions`` are texts, or conversations whose last message is the answer; every column of the data set
    comes as a keyword with one value per completion. Returns one number per completion, or None where it does
    not apply. Must be safe to call from several threads. Return the object from ``register_rewards``.
    """

    __name__: str

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[str | Sequence[Message]], **columns: Any
    ) -> list[float | None]: ...
