"""Lengths of a veRL run: room for a draft beside the longest question, and what else must grow with it."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from refine_wrapper.core.prompts.builder import find_template
from refine_wrapper.errors import BudgetError, PromptError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

_PROMPT = "actor_rollout_ref.rollout.prompt_length"
_CONTROL_TOKENS = 16
"""More than any known chat template puts around one turn."""

# Host setting -> the switch that makes it count, and the role that computes it. Each must hold a whole sequence, or
# veRL stops in the first update.
_TOKENS_PER_GPU = {
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": (
        "actor_rollout_ref.actor.use_dynamic_bsz",
        "actor_rollout_ref.actor",
    ),
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": (
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz",
        "actor_rollout_ref.actor",
    ),
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": (
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz",
        "actor_rollout_ref.ref",
    ),
    "critic.ppo_max_token_len_per_gpu": ("critic.use_dynamic_bsz", "critic"),
}


def make_room(config: DictConfig, settings: RefineConfig) -> tuple[str, ...]:
    """Raise ``rollout.prompt_length`` where it is the data's, so that a whole draft fits beside the longest question.

    veRL's default is ``data.max_prompt_length``, and longer prompts lose their *beginning* (agent_loop.py,
    ``_cap_text_prompt_length``). It is an upper limit: shorter prompts cost no more than before.

    Returns:
        What was changed, for people.
    """
    rollout, longest_question = config.actor_rollout_ref.rollout, int(config.data.max_prompt_length)
    if int(rollout.prompt_length) > longest_question:
        return ()
    draft, template = settings.draft_tokens or int(rollout.response_length), template_bound(settings)
    wanted = longest_question + draft + template
    if rollout.max_model_len is not None:
        wanted = min(wanted, int(rollout.max_model_len) - int(rollout.response_length))
    if wanted <= longest_question:
        return ()  # check_lengths says what to set
    rollout.prompt_length = wanted
    return (
        f"{_PROMPT} {longest_question} -> {wanted}: question {longest_question}, draft up to {draft}, template up to "
        f"{template}.",
    )


def longest_prompt(rollout: Any, model: Any) -> int:
    """The longest prompt that leaves room for a full answer.

    Args:
        rollout: ``actor_rollout_ref.rollout``.
        model: The model's configuration, as transformers reads it.
    """
    longest, model_length = int(rollout.prompt_length), rollout.max_model_len
    if model_length is None:
        text = model.get_text_config() if hasattr(model, "get_text_config") else model
        model_length = getattr(text, "max_position_embeddings", None)
    return longest if model_length is None else min(longest, int(model_length) - int(rollout.response_length))


def check_lengths(config: DictConfig, settings: RefineConfig, overhead: int = 0, model: Any = None) -> None:
    """Refuse lengths that cannot hold a draft beside the longest question, or a whole sequence.

    Args:
        config: The run's configuration.
        settings: The resolved settings.
        overhead: Tokens the template adds, if known.
        model: The model's configuration, if known: its positions are the limit where ``max_model_len`` is unset.

    Raises:
        BudgetError: With the numbers to set.
    """
    rollout, longest_question = config.actor_rollout_ref.rollout, int(config.data.max_prompt_length)
    prompt, answer = int(rollout.prompt_length), int(rollout.response_length)
    least = longest_question + overhead + (settings.draft_tokens or 1)
    if prompt < least:
        good = longest_question + max(overhead, template_bound(settings)) + (settings.draft_tokens or answer)
        raise BudgetError(
            f"refine: {_PROMPT}={prompt} cannot hold a question of data.max_prompt_length={longest_question} with the "
            f"template ({overhead or 'some'} tokens) and a draft ({settings.draft_tokens or 'at least 1'}). "
            f"Set {_PROMPT}={good}"
            + (f" and actor_rollout_ref.rollout.max_model_len={good + answer}." if rollout.max_model_len else ".")
        )
    positions = prompt if model is None else longest_prompt(rollout, model)
    if positions < least:
        raise BudgetError(
            f"refine: the model holds {positions + answer} tokens, response_length={answer} of them for the answer, so "
            f"that no draft fits beside a question of data.max_prompt_length={longest_question} with the template "
            f"({overhead or 'some'} tokens). Lower data.max_response_length to at most "
            f"{max(0, positions + answer - least)}, or data.max_prompt_length."
        )
    sequence = prompt + answer
    if rollout.max_model_len is not None and int(rollout.max_model_len) < sequence:
        raise BudgetError(
            f"refine: actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is less than {_PROMPT}={prompt} "
            f"+ response_length={answer}, so answers to refined prompts would be cut. Set "
            f"actor_rollout_ref.rollout.max_model_len={sequence}."
        )
    for setting, (switch, role) in _TOKENS_PER_GPU.items():
        tokens: Any = OmegaConf.select(config, setting)
        if tokens is None or not OmegaConf.select(config, switch):
            continue
        parallel = _sequence_parallel_size(config, role)
        if int(tokens) * parallel < sequence:
            raise BudgetError(
                f"refine: {setting}={tokens} cannot hold one sequence of {sequence} tokens ({_PROMPT}={prompt} + "
                f"response_length={answer}). Set {setting}={-(-sequence // parallel)} or more."
            )


def _sequence_parallel_size(config: DictConfig, role: str) -> int:
    """How many GPUs of a role share one sequence: Megatron's context parallelism, or Ulysses."""
    names = ("megatron.context_parallel_size", "ulysses_sequence_parallel_size")
    sizes = [OmegaConf.select(config, f"{role}.{name}") for name in names]
    return next((int(size) for size in sizes if size is not None), 1)


def template_bound(settings: RefineConfig) -> int:
    """At most how many tokens the template adds: one a byte, as no byte-level tokenizer needs more."""
    question = {"role": "user", "content": ""}
    try:
        turns = find_template(settings.template, Plugins(settings.plugin_modules)).render_messages([question], "")
    except PromptError:
        return 0
    return sum(len(str(turn["content"]).encode()) for turn in turns) + _CONTROL_TOKENS * (len(turns) - 1)
