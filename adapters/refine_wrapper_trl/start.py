"""Before the first step: settings, what cannot work, and one word on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import Prompt, PromptRoom
from refine_wrapper.errors import ConfigError, PromptError, SeamError
from refine_wrapper.hosts.budget import CompletionBudget, check_room
from refine_wrapper.hosts.budget import prompt_room as tokens_for_prompts
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import resolve
from refine_wrapper_trl.fields import RefineFields


def resolved_config(trainer: Any, settings: Mapping[str, Any]) -> RefineConfig:
    """The settings of a trainer: its config's ``refine_*`` fields, and those given to ``refine(cls, **settings)``.

    Raises:
        ConfigError: For ``match_budget`` where the batch was already laid out without it.
    """
    args = trainer.args
    if isinstance(args, RefineFields):
        return args.refine_config.replace(**settings) if settings else args.refine_config
    config = resolve(host=settings)
    if config.active and config.match_budget:
        raise ConfigError(
            f"refine: match_budget must shrink num_generations and the batch before {type(args).__name__} lays them "
            f"out. Use "
            "RefineGRPOConfig(refine_match_budget=True) or `refine-wrapper run`, or set both numbers yourself."
        )
    return config


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


def check_start(trainer: Any, refiner: Refiner) -> None:
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
            if refiner.config.active
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
    if not refiner.config.active:
        return
    sample = _sample_prompt(trainer)
    try:
        overhead = refiner.prompts.overhead_tokens(sample)
    except PromptError:
        return  # such prompts stay plain, and are counted as refine/fallbacks/unsupported_prompt
    check_room(
        refiner.room.max_prompt_tokens,
        overhead_tokens=overhead,
        draft_tokens=refiner.config.draft_tokens,
        answer_tokens=trainer.args.max_completion_length,
        model_setting=_model_length(trainer)[1],
        answer_setting="max_completion_length",
    )


def announce(trainer: Any, refiner: Refiner, dynamic_sampling: str | None) -> None:
    """Say on screen, once per run, that refinement is on and what it costs, and what dynamic sampling does, if on."""
    if not trainer.accelerator.is_main_process:
        return
    config, args = refiner.config, trainer.args
    objective = [] if config.objective is None else [_objective(config.objective, refiner)]
    if not config.active:
        click.echo("\n".join([f"refine-wrapper: {dynamic_sampling}.", *objective]), err=True)
        return
    plain = getattr(args, "refine_plain_generations", None) or trainer.num_generations
    budget = CompletionBudget(config.num_drafts, trainer.num_generations, plain)
    lines = [f"refine-wrapper: on for {type(trainer).__name__}. {budget.describe()}."]
    lines.append(
        f"  selector={config.selector} template={config.template} evaluation={config.evaluation} plan={config.plan}"
    )
    lines += objective
    if dynamic_sampling is not None:
        lines.append(f"  {dynamic_sampling}")
    if not budget.matched:
        lines.append(
            f"  To match the plain run's {plain} completions at the same prompts per step: refine_match_budget=True "
            "(--refine.match_budget), which shrinks num_generations and per_device_train_batch_size."
        )
    if refiner.prompts.is_rendered_chat(_sample_prompt(trainer)):
        lines.append(
            "  Prompts are chats already rendered as text: the draft goes before the turn the answer is written in."
        )
    if getattr(trainer, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
        lines.append("  multi_objective_aggregation has no single raw reward: drafts are chosen by the weighted sum.")
    click.echo("\n".join(lines), err=True)


def _objective(name: str, refiner: Refiner) -> str:
    missing = settings_on("trl", name, refiner.plugins).missing
    return f"  objective={name}" + (f"; not in TRL: {missing}" if missing else "")


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
