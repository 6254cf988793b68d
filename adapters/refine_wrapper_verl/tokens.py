"""How a veRL worker tokenises prompts, and the longest prompt that leaves room for a full answer."""

from __future__ import annotations

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
from refine_wrapper_verl.running import running


def prompt_room(config: DictConfig, model: Any) -> PromptRoom:
    """The room of a run: its ``rollout`` and ``data`` settings, and its model (``HFModelConfig``)."""
    given: Any = config.data.get("apply_chat_template_kwargs") or {}
    chat_kwargs: dict[str, Any] = dict(
        OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    )
    if model.get("custom_chat_template", None) is not None:
        model.tokenizer.chat_template = model.custom_chat_template  # as AgentLoopWorker does
    # The builder that agent loops tokenise with. Without a processor: what images and tools add is measured instead.
    builder = create_continuous_token_builder(model.tokenizer, chat_template_kwargs=chat_kwargs, **_family(model))

    def count_tokens(prompt: Prompt) -> int:
        messages = [{**message, "content": _text(message.get("content"))} for message in _conversation(prompt)]
        loop = running()
        return len(builder.build_initial_tokens(messages)) + (loop.group.overhead if loop is not None else 0)

    return PromptRoom(
        tokenizer=model.tokenizer,
        count_tokens=count_tokens,
        max_prompt_tokens=_longest_prompt(config.actor_rollout_ref.rollout, model),
        chat_kwargs=chat_kwargs,
    )


def template_tokens(config: DictConfig, settings: RefineConfig, model: Any) -> int:
    """Tokens that the template adds to a question of one user turn; 0 where it has no place for a draft."""
    prompts = PromptBuilder(settings, Plugins(settings.plugin_modules), prompt_room(config, model))
    try:
        return prompts.overhead_tokens([{"role": "user", "content": "?"}])
    except PromptError:
        return 0


def _family(model: Any) -> dict[str, Any]:
    """What names the model's family to veRL's builder: 0.9.0 asks for another thing than 0.9.1. Can go with 0.9.0."""
    if "hf_model_type" in inspect.signature(create_continuous_token_builder).parameters:
        return {"hf_model_type": getattr(model.hf_config, "model_type", None)}
    return {"model_family": "auto", "model_path": model.path, "tokenizer_name_or_path": model.tokenizer_path}


def _longest_prompt(rollout: Any, model: Any) -> int:
    longest, model_length = int(rollout.prompt_length), rollout.max_model_len
    if model_length is None:
        text: Any = model.hf_config
        text = text.get_text_config() if hasattr(text, "get_text_config") else text
        model_length = getattr(text, "max_position_embeddings", None)
    return longest if model_length is None else min(longest, int(model_length) - int(rollout.response_length))


def _conversation(prompt: Prompt) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts: list[Any] = content  # pyright: ignore[reportUnknownVariableType]
    return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in parts)  # pyright: ignore[reportUnknownMemberType]
