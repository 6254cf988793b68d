"""How a veRL worker tokenises prompts, and the longest prompt that leaves room for a full answer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from refine_wrapper.core.prompts.builder import PromptBuilder
from refine_wrapper.core.types import Prompt, PromptRoom
from refine_wrapper.errors import PromptError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_verl.lengths import longest_prompt
from refine_wrapper_verl.settings import plain_prompt_length


class PromptEncoder:
    """Makes the token ids of a prompt as agent loops do, without what images and tools add: that is measured instead.

    With a tokenizer of its own, because prompts are planned in a thread and fast tokenizers are not safe to share.

    Args:
        config: The run's configuration.
        model: Its model (``HFModelConfig``).
    """

    def __init__(self, config: DictConfig, model: Any) -> None:
        self.tokenizer: Any = copy.deepcopy(model.tokenizer)
        if model.get("custom_chat_template", None) is not None:
            self.tokenizer.chat_template = model.custom_chat_template  # as AgentLoopWorker does
        given: Any = config.data.get("apply_chat_template_kwargs") or {}
        self.chat_kwargs: dict[str, Any] = dict(
            OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
        )
        # The builder that agent loops tokenise with.
        self._builder = create_continuous_token_builder(
            self.tokenizer, chat_template_kwargs=self.chat_kwargs, **_family(model)
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt."""
        messages = [{**message, "content": _text(message.get("content"))} for message in _conversation(prompt)]
        return list(self._builder.build_initial_tokens(messages))

    def count(self, prompt: Prompt) -> int:
        """Their number."""
        return len(self.encode(prompt))


def prompt_room(config: DictConfig, model: Any, encoder: PromptEncoder) -> PromptRoom:
    """The room of a run: its ``rollout`` and ``data`` settings, and its model (``HFModelConfig``)."""
    return PromptRoom(
        tokenizer=encoder.tokenizer,
        count_tokens=encoder.count,
        max_prompt_tokens=longest_prompt(config.actor_rollout_ref.rollout, model.hf_config),
        chat_kwargs=encoder.chat_kwargs,
        max_question_tokens=plain_prompt_length(config),
    )


def template_tokens(config: DictConfig, settings: RefineConfig, model: Any) -> int:
    """Tokens that the template adds to a question of one user turn; 0 where it has no place for a draft."""
    room = prompt_room(config, model, PromptEncoder(config, model))
    try:
        return PromptBuilder(settings, Plugins(settings.plugin_modules), room).overhead_tokens(
            [{"role": "user", "content": "?"}]
        )
    except PromptError:
        return 0


def _family(model: Any) -> dict[str, Any]:
    """What names the model's family to veRL's builder: 0.9.0 asks for another thing than 0.9.1. Can go with 0.9.0."""
    if "hf_model_type" in inspect.signature(create_continuous_token_builder).parameters:
        return {"hf_model_type": getattr(model.hf_config, "model_type", None)}
    return {"model_family": "auto", "model_path": model.path, "tokenizer_name_or_path": model.tokenizer_path}


def _conversation(prompt: Prompt) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts: list[Any] = content  # pyright: ignore[reportUnknownVariableType]
    return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in parts)  # pyright: ignore[reportUnknownMemberType]
