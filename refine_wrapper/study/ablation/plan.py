"""A plan: which cells an ablation runs. docs/ablation.md explains the file with an example."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Literal, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from refine_wrapper.core.planner import make_mode, make_rules
from refine_wrapper.core.prompts.builder import find_template
from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import Adapter, Launch
from refine_wrapper.hosts.budget import matched_group_size
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig, explain, field_names
from refine_wrapper.study.evaluation.settings import EvaluationSettings

VALUES: Final = ("completions", "prompts", "seed", "steps", "output", "tensorboard", "run")
"""What ``{name}`` in a command may stand for, beside the fields of the tasks."""
# Set from cell to cell by the ablation itself.
_NOT_VARIED: Final = ("enabled", "objective", "match_budget", "trace_dir", "seed", "plugin_modules")


def _as_list(value: Any) -> Any:
    return value if type(value) in (list, tuple) else [value]


def _as_seeds(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) else value


def _as_arguments(value: Any) -> Any:
    return shlex.split(value) if isinstance(value, str) else value


Arguments = Annotated[tuple[str, ...], BeforeValidator(_as_arguments), Field(min_length=1)]


class HostPlan(BaseModel):
    """How one host is launched.

    Its command is the one that trains without this package; ``refine-wrapper run`` is put in front of it. ``{seed}``
    and the like are replaced; values that the command does not place are appended in the host's own words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: Arguments = Field(description="The host's own launch command, as text or as a list.")
    python: str = Field(
        sys.executable, description="Python of the host's environment, in which refine-wrapper is installed too."
    )
    variables: dict[str, str] = Field(default_factory=dict[str, str], description="Environment variables.")


class Plan(BaseModel):
    """Everything about an ablation; the grid is hosts x tasks x objectives x (plain and ``refine``) x seeds.

    Raises:
        ConfigError: For an unknown name (with the nearest valid one), a bad value, or a cell that cannot be trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    hosts: dict[str, HostPlan] = Field(min_length=1, description="Host -> how it is launched.")
    tasks: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: {"task": dict[str, Any]()},
        min_length=1,
        description="Task -> fields that {name} in commands and in `evaluate` stands for.",
    )
    objectives: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        ("grpo",), min_length=1, description="Objectives by name; see `refine-wrapper objectives`."
    )
    only_on: dict[str, tuple[str, ...]] = Field(
        default_factory=dict[str, tuple[str, ...]],
        description="Objective -> the hosts it is trained on, where it is not to be trained on all.",
    )
    plain: bool = Field(True, description="Also train each objective unrefined, for comparison.")
    refine: dict[str, Annotated[tuple[Any, ...], BeforeValidator(_as_list)]] = Field(
        default_factory=lambda: {"num_drafts": (4,)},
        description="Refinement settings to vary: name -> value or list of values. Their grid is trained.",
    )
    with_objective: dict[str, dict[str, Any]] = Field(
        default_factory=dict[str, dict[str, Any]],
        description="Objective -> settings of all its cells, also of plain ones where they mean something there: "
        "{dapo: {dynamic_sampling: 3}}.",
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(_as_seeds)] = Field(
        (0, 1, 2), min_length=1, description="Seeds, or how many. Plain and refined cells are paired by seed."
    )
    completions: int = Field(
        8,
        ge=2,
        description="Completions per prompt in every cell: the group of a plain one; of a refined one the group and "
        "what its mode samples beside it at most (paper: N + G; joint, on_failure: the group alone).",
    )
    prompts: int | None = Field(
        None,
        ge=1,
        description="Prompts per optimizer step, {prompts} in commands. A refined cell that samples fewer fails. "
        "Unset: plain cells are taken to have as many as the refined ones.",
    )
    match: Literal["completions", "tokens"] = Field(
        "completions",
        description="What both arms spend alike. tokens: a refined cell trains as many steps as generate the tokens of "
        "its plain cell, counted in a pilot.",
    )
    steps: int | None = Field(None, ge=1, description="Optimizer steps. Unset: as the command says.")
    pilot_steps: int = Field(8, ge=1, description="Steps of the pilot of match: tokens.")
    evaluate: EvaluationSettings | None = Field(
        None, description="Held-out measure of each trained model: the settings of `refine-wrapper eval`."
    )
    start: str = Field(
        "",
        description="Model that the commands start from: measured too, as `before training`. {run}: the run folder.",
    )
    plugins: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        (), description="Python modules to load as plugins."
    )
    prepare: Annotated[tuple[str, ...], BeforeValidator(_as_arguments)] = Field(
        (), description="A command that is run once before all cells; {run} is the run folder."
    )
    folder: Path = Field(Path(), description="Where commands start. Filled in with the folder of the plan's file.")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).model_fields)) from None
        keys = ((f"with_objective.{objective}", names) for objective, names in self.with_objective.items())
        for key, names in (("refine", self.refine), *keys):
            for name in names:
                if name not in field_names():
                    nearest = did_you_mean(name, field_names())
                    raise ConfigError(f"refine: unknown setting {key}.{name} in the plan. {nearest}")
                if name in _NOT_VARIED:
                    raise ConfigError(f"refine: {key}.{name} cannot be set: an ablation sets it in each cell itself.")
        if self.match == "tokens" and (self.steps is None or not self.plain):
            raise ConfigError(
                "refine: match: tokens changes the steps of refined cells to fit the plain cell's tokens. Say how many "
                "`steps` a plain cell takes, and leave `plain` on."
            )

    def settings(self, objective: str = "") -> list[RefineConfig | None]:
        """The refined settings of the grid for one objective, after None for the plain one."""
        grid = [dict(zip(self.refine, values, strict=True)) for values in itertools.product(*self.refine.values())]
        own = self.with_objective.get(objective, {})
        plain: list[RefineConfig | None] = [None] if self.plain else []
        return plain + [RefineConfig(**{"match_budget": True, **own, **values}) for values in grid]

    def varied(self, config: RefineConfig) -> dict[str, str]:
        """What tells refined settings of this plan apart beside mode and number of drafts: ``selector`` -> ``best``."""
        names = [name for name, values in self.refine.items() if len(values) > 1 and name not in ("num_drafts", "mode")]
        return {name: _in_words(getattr(config, name)) for name in names}

    def group_size(self, config: RefineConfig, plugins: Plugins) -> int:
        """Slots of a refined cell: its completions without those that the mode samples beside them.

        Raises:
            BudgetError, ConfigError, PluginError: If the mode cannot work with these settings; with what to set.
        """
        mode, rules = make_mode(config, plugins), make_rules(config, plugins)
        slots = matched_group_size(self.completions, mode.num_context(self.completions, rules))
        mode.check(slots, rules)
        return slots

    def fields(self, task: str) -> dict[str, Any]:
        """What ``{name}`` stands for in a task, beside the values of the cell."""
        return {"task": task, **self.tasks[task]}

    def evaluation(self, task: str, run: Path) -> EvaluationSettings | None:
        """The held-out measure of a task."""
        if self.evaluate is None:
            return None
        fields = {**self.fields(task), "run": str(run)}
        data = fill(self.evaluate.data, fields, "evaluate.data")
        reward = self.evaluate.reward and fill(self.evaluate.reward, fields, "evaluate.reward")
        return self.evaluate.replace(data=data, reward=reward)

    def check(self, plugins: Plugins) -> None:
        """Refuse, before anything runs, what would fail in a cell.

        Raises:
            ConfigError: With what to write instead.
        """
        for host, launched in self.hosts.items():
            for task in self.tasks:
                values = {**dict.fromkeys(VALUES, "0"), **self.fields(task)}
                for argument in (*launched.command, *launched.variables.values()):
                    fill(argument, values, f"hosts.{host}")
            known = {*placed((*launched.command, *launched.variables.values())), *launch_of(host, plugins).arguments}
            if self.steps is not None and "steps" not in known:
                raise ConfigError(
                    f"refine: {host} has no setting for optimizer steps. Place {{steps}} in its command, or leave "
                    "`steps` out: data and episodes then say how long it trains."
                )
            for objective in self.objectives_on(host):
                settings_on(host, objective, plugins)
            if not self.objectives_on(host):
                raise ConfigError(f"refine: the plan trains no objective on {host}; see `only_on`.")
        for config in filter(None, itertools.chain.from_iterable(map(self.settings, self.objectives))):
            self.group_size(config, plugins)
            known = config.template in plugins.all("template")
            find_template(config.template if known else str(self.folder / config.template), plugins)
        for argument in self.prepare:
            fill(argument, {"run": ""}, "prepare")
        if self.start and self.evaluate is None:
            raise ConfigError(
                "refine: `start` names a model to measure, and the plan does not say how: add `evaluate`."
            )

    def objectives_on(self, host: str) -> list[str]:
        """The objectives that are trained on one host."""
        return [name for name in self.objectives if host in self.only_on.get(name, (host,))]


def _in_words(value: Any) -> str:
    """``rounds=3`` for options, any other value as it is."""
    if isinstance(value, Mapping):
        options = cast("Mapping[str, Any]", value)
        return ", ".join(f"{name}={option}" for name, option in options.items()) or "none"
    return str(value)


def read_plan(path: Path) -> Plan:
    """A plan from its YAML file.

    Raises:
        ConfigError: If the file cannot be read, or says something wrong.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"refine: cannot read the plan {str(path)!r}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"refine: {str(path)!r} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"refine: {str(path)!r} must hold a mapping with at least `hosts`; see docs/ablation.md.")
    # PyYAML reads a bare `off` or `on` as a truth value, and keys are names here.
    return Plan(
        **{"folder": path.absolute().parent, **{str(key): value for key, value in cast("Any", content).items()}}
    )


def launch_of(host: str, plugins: Plugins) -> Launch:
    """How a host's launch command takes values.

    Raises:
        ConfigError: If no adapter has that name, or its host cannot be ablated.
    """
    adapters: Mapping[str, Adapter] = plugins.all("adapter")
    if host not in adapters:
        raise ConfigError(f"refine: no host is called {host!r}. {did_you_mean(host, adapters)}")
    launch = adapters[host].launch
    if launch is None:
        raise ConfigError(f"refine: the adapter of {host} does not say how its launch command takes settings.")
    return launch


def fill(text: str, values: Mapping[str, Any], where: str) -> str:
    """``text`` with its ``{name}`` replaced; ``{{`` is a brace.

    Raises:
        ConfigError: Naming what is unknown, and the names that there are.
    """
    parts: list[str] = []
    try:
        for literal, name, spec, conversion in Formatter().parse(text):
            parts.append(literal)
            if name is None:
                continue
            if name not in values or spec or conversion:
                raise ConfigError(
                    f"refine: {where} holds {{{name}}} in {text!r}, which is nothing. {did_you_mean(name, values)} A "
                    "brace itself is written twice: {{ or }}."
                )
            parts.append(str(values[name]))
    except ValueError as error:
        raise ConfigError(
            f"refine: {where}: {text!r}: {error}. A brace itself is written twice: {{{{ or }}}}."
        ) from None
    return "".join(parts)


def placed(texts: tuple[str, ...]) -> set[str]:
    """The names that stand in braces in any of some texts."""
    return {name for text in texts for _, name, _, _ in Formatter().parse(text) if name}
