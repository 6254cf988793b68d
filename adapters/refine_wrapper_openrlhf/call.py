"""One call of OpenRLHF's executor, and how its prompts are tokenised."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from refine_wrapper.core.types import Prompt, PromptRoom
from refine_wrapper.hosts.budget import prompt_room

Response = dict[str, Any]
"""What upstream's ``execute`` returns: one sample with tokens, action ranges, reward, logs."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of ``AgentExecutor.execute``: one member of a group.

    Attributes:
        params: The sampling parameters; one object for all members of a group, another one for every other group.
        host: What newer versions of the host hand over beside (``images``).
    """

    prompt: str
    label: Any
    params: Any
    max_length: int
    tokenizer: Any
    engine: Any
    host: Mapping[str, Any]

    async def run(self, executor: Any, prompt: Prompt, params: Any) -> Response:
        """Let an upstream executor answer a prompt."""
        assert isinstance(prompt, str), "OpenRLHF renders prompts as text"
        response = await executor.execute(
            prompt=prompt,
            label=self.label,
            sampling_params=params,
            max_length=self.max_length,
            hf_tokenizer=self.tokenizer,
            llm_engine=self.engine,
            **self.host,
        )
        response["prompt"] = self.prompt
        return response

    def answer_tokens(self) -> int:
        """The longest answer. Where the host leaves it open (the rest of the context), half of the context."""
        return self.params.max_tokens or max(1, self.max_length // 2)

    def image_tokens(self) -> int:
        """Tokens that the images of the prompt take beside its text."""
        images = self.host.get("images")
        if not images or not hasattr(self.tokenizer, "image_processor"):
            return 0
        from openrlhf.utils.vlm_utils import process_prompt_with_images

        with_images = process_prompt_with_images(self.tokenizer, self.prompt, images)[0]
        return len(with_images) - count_tokens(text_tokenizer(self.tokenizer), self.prompt)


def make_room(tokenizer: Any, max_length: int, answer_tokens: int) -> PromptRoom:
    """How upstream's executor tokenises prompts, and the longest one that leaves room for a full answer.

    With a tokenizer of its own: it is used in the planner's thread, and fast tokenizers are not safe to share.
    """
    own = deepcopy(text_tokenizer(tokenizer))
    return PromptRoom(
        tokenizer=own,
        count_tokens=lambda prompt: count_tokens(own, prompt),
        max_prompt_tokens=prompt_room(max_length, answer_tokens),
    )


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, where the host hands over a processor of text and images."""
    return tokenizer.tokenizer if hasattr(tokenizer, "image_processor") else tokenizer


def count_tokens(tokenizer: Any, prompt: Prompt) -> int:
    """Tokens of a text prompt, as upstream's executor tokenises it."""
    return len(tokenizer(text=prompt, add_special_tokens=False)["input_ids"])
