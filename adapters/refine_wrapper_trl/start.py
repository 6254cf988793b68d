"""Before the first step: settings, what cannot work, and one word on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from refine_wrapper.core.planner import Planner
from refine_wrapper.core.types import Prompt, PromptRoom
from refine_wrapper.errors import ConfigError, PromptError, SeamError
from refine_wrapper.hosts.budget import check_room
from refine_wrapper.hosts.budget import prompt_room as tokens_for_prompts
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.hosts.start import HostFacts
from refine_wrapper.hosts.start import announce as say
from refine_wrapper.hosts.start import check_start as check_host
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import resolve
from refine_wrapper_trl.drawing import SAMPLER_LOGPROBS_MAY_MISS
from refine_wrapper_trl.fields import RefineSettings


def resolved_config(trainer: Any, settings: Mapping[str, Any]) -> RefineConfig:
    """The settings of a trainer: flags, ``refine(cls, **settings)``, its config's ``refine_*`` fields, and so on.

    Raises:
        ConfigError: For ``match_budget`` or ``objective`` where the config was already laid out without it.
    """
    args: Any = trainer.args
    ours = isinstance(args, RefineSettings)
    config = args.resolve_refine_config(settings) if ours else resolve(host=settings)
    laid_out = args.refine_config if ours else None
    kind = type(args).__name__
    if config.active and config.match_budget and not (ours and args.refine_plain_generations is not None):
        raise ConfigError(
            f"refine: match_budget must shrink num_generations and the batch before {kind} lays them "
            "out. Use RefineGRPOConfig(refine_match_budget=True) or `refine-wrapper run`, or set both numbers yourself."
        )
    if laid_out is not None and config.match_budget and _beside(config) != _beside(laid_out):
        raise ConfigError(
            f"refine: {kind} was laid out for {_beside(laid_out)}, and the trainer says {_beside(config)}. With "
            "match_budget say both in the config (refine_mode=..., refine_num_drafts=...), not in refine(...)."
        )
    if config.objective is not None and (laid_out is None or config.objective != laid_out.objective):
        raise ConfigError(
            f"refine: objective={config.objective!r} must be set before {kind} lays out the loss. Use "
            f"RefineGRPOConfig(refine_objective={config.objective!r}) or `refine-wrapper run`."
        )
    return config


def _beside(config: RefineConfig) -> str:
    return f"mode={config.mode} num_drafts={config.num_drafts} mode_options={config.mode_options}"


def prompt_room(trainer: Any) -> PromptRoom:
    """How this trainer tokenises prompts, and the longest prompt that leaves room for ``max_completion_length``."""
    processing = trainer.processing_class
    chat_kwargs = {
        "chat_template": getattr(trainer, "chat_template", None),
        "tools": getattr(trainer, "tools", None) or None,
        **(getattr(trainer, "chat_template_kwargs", None) or {}),
    }

    def count_tokens(prompt: Prompt) -> int:
        return len(trainer._tokenize_prompts([prompt])[0][0])

    return PromptRoom(
        tokenizer=getattr(processing, "tokenizer", processing),
        count_tokens=count_tokens,
        max_prompt_tokens=tokens_for_prompts(_model_length(trainer)[0], trainer.args.max_completion_length),
        chat_kwargs={name: value for name, value in chat_kwargs.items() if value is not None},
    )


def check_start(trainer: Any, planner: Planner) -> None:
    """Refuse what cannot be refined, with what to change.

    Raises:
        ConfigError: For ``environment_factory``: its state would leak from drafts into refinements.
        BudgetError: If the model's length cannot hold any q'.
        SeamError: If this TRL lacks what Stage 1 must put back.
    """
    if (
        getattr(trainer, "environments", None) is not None
        or getattr(trainer, "environment_factories", None) is not None
    ):
        raise ConfigError(
            "refine: environment_factory cannot be refined: an environment keeps the state that drafts left in it, and "
            "refinements would start from there. Use stateless tools or a rollout_func, or set refine=False."
            if planner.config.active
            else "refine: dynamic_sampling cannot draw groups with an environment_factory again: an environment keeps "
            "the state that the first draw left in it. Use stateless tools or a rollout_func, or switch it off."
        )
    for name in (
        "_metrics",
        "_pending_extra_logs",
        "_pending_metrics",
        "reward_funcs",
        "reward_weights",
        "num_generations",
    ):
        if not hasattr(trainer, name):
            raise SeamError(
                f"refine: {type(trainer).__name__} has no {name!r}, which refinement must keep apart from Stage 1. "
                "Run `refine-wrapper doctor`; supported is TRL 1.0 to 1.16."
            )
    if not planner.config.active:
        return
    check_host(_facts(trainer), planner.config, planner.plugins)
    _check_draft_ahead(planner)
    sample = _sample_prompt(trainer)
    try:
        overhead = planner.prompts.overhead_tokens(sample)
    except PromptError:
        return  # such prompts stay plain, and are counted as refine/fallbacks/unsupported_prompt
    check_room(
        planner.room.max_prompt_tokens,
        overhead_tokens=overhead,
        draft_tokens=planner.config.draft_tokens,
        answer_tokens=trainer.args.max_completion_length,
        model_setting=_model_length(trainer)[1],
        answer_setting="max_completion_length",
    )


def _facts(trainer: Any) -> HostFacts:
    """What the start-up of all hosts must know of a trainer."""
    size = int(trainer.num_generations)
    return HostFacts(
        host="trl",
        title=type(trainer).__name__,
        group_size=size,
        plain_group_size=getattr(trainer.args, "refine_plain_generations", None) or size,
        group_size_setting="num_generations",
        match_budget="refine_match_budget=True (--refine.match_budget), which shrinks num_generations and "
        "per_device_train_batch_size, at the same prompts per step",
        evaluation_size=int(trainer.num_generations_eval),
        evaluation_setting="num_generations_eval",
        corrections=_corrections(trainer),
    )


def _corrections(trainer: Any) -> dict[str, str]:
    """Settings in use that weigh rows by the sampler's log-probabilities, and what to set instead."""
    found: dict[str, str] = {}
    uses_vllm = getattr(trainer, "use_vllm", False)
    if uses_vllm and getattr(trainer, "vllm_importance_sampling_correction", False) and not SAMPLER_LOGPROBS_MAY_MISS:
        found["vllm_importance_sampling_correction"] = (
            "vllm_importance_sampling_correction=False, or use TRL 1.16 or newer, which can leave such rows out"
        )
    samples_log_probs = uses_vllm or getattr(trainer, "rollout_func", None) is not None
    if samples_log_probs and getattr(trainer, "off_policy_mask_threshold", None) is not None:
        found["off_policy_mask_threshold"] = "off_policy_mask_threshold=None"
    return found


def _check_draft_ahead(planner: Planner) -> None:
    config = planner.config
    if config.draft_ahead and not planner.mode.context_first(planner.rules):
        raise ConfigError(
            f"refine: draft_ahead samples the next batch's first round with older weights, and mode {config.mode!r} "
            "trains what it samples first. Leave draft_ahead out, or use mode=paper."
        )


def announce(trainer: Any, planner: Planner, dynamic_sampling: str | None) -> None:
    """Say on screen, once per run, that refinement is on and what it costs, and what dynamic sampling does, if on."""
    if not trainer.accelerator.is_main_process:
        return
    config = planner.config
    if not config.active:
        objective = [] if config.objective is None else [_objective(config.objective, planner)]
        click.echo("\n".join([f"refine-wrapper: {dynamic_sampling}.", *objective]), err=True)
        return
    notes = [] if dynamic_sampling is None else [dynamic_sampling]
    if planner.prompts.is_rendered_chat(_sample_prompt(trainer)):
        notes.append("Prompts are chats already rendered as text: the draft goes before the turn of the answer.")
    if getattr(trainer, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
        notes.append("multi_objective_aggregation has no single raw reward: drafts are chosen by the weighted sum.")
    say(_facts(trainer), config, planner.plugins, *notes)


def _objective(name: str, planner: Planner) -> str:
    missing = settings_on("trl", name, planner.plugins).missing
    return f"  objective={name}" + (f"; not set: {missing}" if missing else "")


def _model_length(trainer: Any) -> tuple[int | None, str]:
    """The longest sequence of prompt and answer, and the setting that says so."""
    if getattr(trainer.args, "use_vllm", False) and getattr(trainer.args, "vllm_max_model_length", None):
        return int(trainer.args.vllm_max_model_length), "vllm_max_model_length"
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    length = getattr(config, "max_position_embeddings", None)
    return (int(length) if isinstance(length, int) and length > 0 else None), "the model's max_position_embeddings"


def _sample_prompt(trainer: Any) -> Prompt:
    """The first prompt of a data set that can be indexed, else a question of one word."""
    dataset = trainer.train_dataset
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset):
        return dataset[0]["prompt"]
    return "?"
