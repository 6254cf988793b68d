"""RefineConfig: every setting, validated. Where values come from is in ``settings.sources``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refine_wrapper.errors import ConfigError
from refine_wrapper.nearest import did_you_mean


class RefineConfig(BaseModel):
    """Settings of refinement; the same names on every host.

    As flags they read ``--refine.num_drafts 4``, in the environment ``REFINE_WRAPPER_NUM_DRAFTS=4``, in YAML
    ``num_drafts: 4``, in a TRL config ``refine_num_drafts=4``.

    Raises:
        ConfigError: For an unknown name (with the nearest valid one) or a bad value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    enabled: bool = Field(True, description="Switch refinement on. Off is the plain host, bit for bit.")
    mode: str = Field(
        "paper",
        description="How the slots of a group are filled, round by round: `paper`, `joint`, `on_failure` ...; see "
        "`refine-wrapper plugins`.",
    )
    mode_options: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="Options of the mode, e.g. rounds=3 for the mode rounds."
    )
    num_drafts: int = Field(
        4,
        ge=0,
        description="N, samples of a group's first round, on the question itself. 0 switches refinement off.",
    )
    train_under: Literal["sampled", "question", "question_if_right"] | None = Field(
        None,
        description="Prompt that refinements are trained under: the one they were sampled on, the question, or the "
        "question where they are right. Unset: what the mode says.",
    )
    match_budget: bool = Field(
        False,
        description="Take the N drafts out of the host's group size, so that N + G equals what the plain run samples.",
    )
    objective: str | None = Field(
        None,
        description="Base objective by name (`refine-wrapper objectives`), refined or not: sets the host's own "
        "settings. Unset: what the host's configuration says.",
    )
    selector: str = Field("best", description="Which draft goes into the prompt; see `refine-wrapper plugins`.")
    selector_options: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="Options of the selector, e.g. a format pattern for worst_formatted.",
    )
    template: str = Field(
        "append", description="How the draft is put into the prompt: `append`, `turns`, a plugin's, or a template file."
    )
    draft_tokens: int | None = Field(
        None, ge=1, description="Most tokens of a draft that are put into the prompt. Unset: what fits."
    )
    shorten: Literal["keep_tail", "keep_head", "drop_middle"] = Field(
        "keep_tail", description="What stays of a draft that does not fit. The question is never cut."
    )
    strip_thinking: bool = Field(True, description="Leave <think> blocks out of the draft that goes into the prompt.")
    on_no_draft: Literal["plain", "skip", "error"] = Field(
        "plain", description="No usable draft: train the group on q itself, leave it untrained, or stop the run."
    )
    refine_share: float = Field(
        1.0, ge=0.0, le=1.0, description="Share of prompt groups that are refined; the rest stays plain."
    )
    plan: str | None = Field(None, description="Old name of `mode`; `paper` is the only value it had.")
    evaluation: Literal["single_shot", "refine"] = Field(
        "single_shot", description="Evaluate as the plain host does (the method's definition), or with refinement."
    )
    max_reward: float = Field(
        1.0, description="The highest reward there is; tells `already right` drafts apart in selection and metrics."
    )
    draft_timeout: float | None = Field(
        None,
        gt=0,
        description="Seconds one draft may take, sampling and scoring (asynchronous hosts and async rewards).",
    )
    draft_ahead: bool = Field(
        False,
        description="Sample the next batch's drafts in the same generation call as this batch's refinements: no second "
        "decoding pass; drafts are then one generation batch old. For hosts that work on whole batches (TRL).",
    )
    dynamic_sampling: int | None = Field(
        None,
        ge=0,
        description="Dynamic sampling, refined or not: most rounds a batch in which groups without a gradient (all "
        "rewards equal) are drawn again. 0 is off. Unset: what the objective needs. For hosts without their own (TRL).",
    )
    dynamic_sampling_prompts: Literal["new", "same"] = Field(
        "new", description="Draw such groups again on other prompts of the data set, as DAPO does, or on their own."
    )
    seed: int = Field(
        0, description="Seed of every random choice made here (selector `random`, `refine_share`, `dynamic_sampling`)."
    )
    trace_dir: Path | None = Field(
        None, description="Folder for groups.jsonl: one line per finished group. Unset: none."
    )
    trace_texts: bool = Field(
        False, description="Write questions, drafts and refinements into the trace, not only numbers."
    )
    plugin_modules: tuple[str, ...] = Field(
        (), description="Python modules to load as plugins, beside installed ones (flag: --plugin)."
    )

    def __init__(self, **values: Any) -> None:
        if values.get("plan") is not None and values.get("mode") in (None, "paper"):
            values["mode"] = values["plan"]
        values["plan"] = None
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, field_names())) from None

    @property
    def active(self) -> bool:
        """Whether anything is refined at all."""
        return self.enabled and self.num_drafts > 0

    def check_pipelined(self, host: str) -> None:
        """Refuse what only hosts that work on whole batches can do, on a host that starts refinements per prompt.

        Raises:
            ConfigError: For ``draft_ahead``.
        """
        if self.draft_ahead:
            raise ConfigError(
                f"refine: draft_ahead is for hosts that generate whole batches (TRL). {host} starts the refinements of "
                "each prompt as soon as its drafts are scored, so there is nothing to gain; leave it out."
            )

    def without_refinement(self) -> RefineConfig:
        """What these settings say beside refinement, with refinement off: its own need not be valid then."""
        kept = ("objective", "dynamic_sampling", "dynamic_sampling_prompts", "seed", "plugin_modules")
        return RefineConfig(enabled=False, **{name: getattr(self, name) for name in kept})

    def refuse_dynamic_sampling(self, host: str, setting: str) -> None:
        """Refuse ``dynamic_sampling`` on a host that has its own, with refinement on or off.

        Raises:
            ConfigError: With the host's ``setting`` to use instead.
        """
        if self.dynamic_sampling:
            raise ConfigError(
                f"refine: dynamic_sampling is for hosts that have none (TRL). {host} has its own: use {setting}."
            )

    def replace(self, **changes: Any) -> RefineConfig:
        """A validated copy with some settings changed."""
        return RefineConfig(**{**self.model_dump(), **changes})

    def to_yaml(self) -> str:
        """The resolved settings as YAML that :func:`refine_wrapper.settings.sources.read_yaml` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def field_names() -> tuple[str, ...]:
    """All settings, in their documented order."""
    return tuple(RefineConfig.model_fields)


def explain(error: ValidationError, names: Iterable[str]) -> str:
    """pydantic's findings as sentences: which setting, what is wrong with it, what to write instead.

    Args:
        error: The findings.
        names: The settings there are.
    """
    names = tuple(names)
    lines: list[str] = []
    for finding in error.errors():
        name = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name!r}. {did_you_mean(name, names)}")
        else:
            lines.append(f"{name} = {finding['input']!r}: {finding['msg'][:1].lower()}{finding['msg'][1:]}.")
    return "refine: " + " ".join(lines)
