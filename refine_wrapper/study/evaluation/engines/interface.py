"""What an engine of the evaluation does, and what is the same for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from refine_wrapper.core.types import Prompt, Tokenizer
from refine_wrapper.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are sampled; nothing of the model's own generation config beside its end tokens applies."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: its text without special tokens, its tokens with the end token, and if it ended by itself."""

    text: str
    num_tokens: int
    finished: bool


class Engine(Protocol):
    """Samples completions of token ids.

    Attributes:
        tokenizer: The policy's.
        max_model_tokens: Longest prompt and completion together, None if there is no limit.
        batch_size: Completions that are sampled together unless the settings say otherwise.
        end_ids: Tokens that end a completion.
    """

    tokenizer: Any
    max_model_tokens: int | None
    batch_size: int
    end_ids: frozenset[int]

    def describe(self) -> dict[str, str]:
        """Name, device and dtype, for the report."""
        ...

    def sample(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        """One completion per prompt, up to and with its end token. The same arguments give the same completions."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class PromptCodec:
    """Prompts to token ids, the same for every engine: the chat template for messages, plain encoding for text."""

    def __init__(self, tokenizer: Any, chat_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self.chat_kwargs = dict(chat_kwargs)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids as the hosts feed them to the policy.

        Raises:
            ConfigError: If messages are to be asked of a tokenizer without a chat template.
        """
        if isinstance(prompt, str):
            # Text that a chat template rendered may begin with the token that encoding would put there again.
            begin = getattr(self._tokenizer, "bos_token", None)
            return list(self._tokenizer.encode(prompt, add_special_tokens=not (begin and prompt.startswith(begin))))
        if not (self._tokenizer.chat_template or self.chat_kwargs.get("chat_template")):
            raise ConfigError(
                "refine: the questions are messages, but this model's tokenizer has no chat template. Use questions "
                "that are text, or leave out --chat and --system."
            )
        encoded: Any = self._tokenizer.apply_chat_template(
            list(prompt), tokenize=True, add_generation_prompt=True, return_dict=True, **self.chat_kwargs
        )
        return list(encoded["input_ids"] if isinstance(encoded, Mapping) else encoded)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def end_ids(tokenizer: Tokenizer, *configs: Any) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's, and those of generation configs (chat models have several)."""
    found: set[int] = set()
    for value in (getattr(tokenizer, "eos_token_id", None), *(getattr(c, "eos_token_id", None) for c in configs)):
        found.update(value if isinstance(value, Iterable) else () if value is None else (value,))
    return frozenset(int(token) for token in found)


def derived_seed(seed: int, *parts: object) -> int:
    """A seed of 31 bits that depends on all arguments, for one call of an engine."""
    digest = hashlib.sha256("\x1f".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
