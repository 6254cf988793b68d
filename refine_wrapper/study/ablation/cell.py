"""A cell: one setting at one seed. What its folder holds, and the command that trains it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from refine_wrapper.core.planner import make_mode
from refine_wrapper.errors import ConfigError
from refine_wrapper.files import read_json
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.study.ablation.plan import Plan, fill, launch_of, placed

FINISHED, FAILED = "finished", "failed"
START: Final = "(start)"
"""Objective of the cells that only measure the model that all others start from."""
_COLUMNS: Final = ("selector", "template", "refine_share")
"""Settings that have a column of their own in the results, beside mode and number of drafts."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One training command of an ablation, with all that it needs but its folder.

    Attributes:
        name: Of its folder.
        host: Where it trains.
        objective: What is wrapped, or not.
        task: Name of the task in the plan.
        seed: Of the host and of refinement.
        completions: Per prompt, with what the mode of a refined cell samples beside its group at most; 0 where nothing
            is trained.
        prompts: Per optimizer step, if the plan says so.
        refine: Refinement settings that differ from the defaults; None for a plain cell.
        common: Settings of a plain cell.
        command: The host's command with ``{seed}``, ``{output}`` and the like in it.
        variables: Its environment variables, the same.
        values: What those stand for, but the folders and the steps.
        python: Python of the host's environment.
        directory: Where it starts.
        steps: Optimizer steps; None as the command says.
        plain_cell: Name of the cell whose generated tokens this one must match; empty if budgets match by completions.
        pilot_steps: Steps of the pilot that counts tokens.
        evaluate: Settings of the held-out measure; None for none.
        drafts: Refinement settings of the held-out measure with drafts; of a plain cell those of the plan's first
            refined one, because it is measured in the same prompts.
        model: What is measured where nothing is trained.
        num_drafts: N of its mode; 0 of a plain cell.
        group_size: Slots of a group.
        options: Other settings that tell it from refined cells of its plan, in words.
    """

    name: str
    host: str
    objective: str
    task: str
    seed: int
    completions: int
    prompts: int | None
    refine: Mapping[str, Any] | None
    common: Mapping[str, Any]
    command: tuple[str, ...]
    variables: Mapping[str, str]
    values: Mapping[str, Any]
    python: str
    directory: str
    steps: int | None = None
    plain_cell: str = ""
    pilot_steps: int = 0
    evaluate: Mapping[str, Any] | None = None
    drafts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str = ""
    num_drafts: int = 0
    group_size: int = 0
    options: str = ""
    plugin_modules: tuple[str, ...] = field(default=())

    @property
    def refined(self) -> bool:
        """Whether drafts are sampled at all."""
        return self.refine is not None

    @property
    def config(self) -> RefineConfig:
        """The refinement settings; the defaults for a plain cell."""
        return RefineConfig(**(self.refine or {}))

    @property
    def columns(self) -> dict[str, Any]:
        """What the results table says of each value of this cell."""
        config = self.config
        return {
            "cell": self.name,
            "host": self.host,
            "objective": self.objective,
            "refined": self.refined,
            "mode": config.mode if self.refined else None,
            "num_drafts": self.num_drafts,
            "group_size": self.group_size,
            "selector": config.selector if self.refined else None,
            "template": config.template if self.refined else None,
            "share": config.refine_share if self.refined else None,
            "options": self.options or None,
            "task": self.task,
            "seed": self.seed,
        }

    def arguments(self, folder: Path, steps: int | None) -> list[str]:
        """The whole command, in front of which nothing is missing.

        Args:
            folder: Of the cell or of its pilot.
            steps: Replaces ``{steps}``.
        """
        values = self._values(folder, steps)
        flags = {"objective": self.objective}
        if self.refine is None:
            flags |= {"enabled": "false", **{name: _as_text(value) for name, value in self.common.items()}}
        else:
            flags |= {name: _as_text(value) for name, value in self.refine.items()}
            flags |= {"trace_dir": str(folder / "trace"), "seed": str(self.seed)}
            flags.setdefault("trace_texts", "true")
        return [
            *(self.python, "-m", "refine_wrapper.cli", "run"),
            *(part for module in self.plugin_modules for part in ("--plugin", module)),
            *(f"--refine.{name}={value}" for name, value in flags.items()),
            "--",
            *(fill(argument, values, f"the command of {self.name}") for argument in self.command),
        ]

    def environment(self, folder: Path, steps: int | None) -> dict[str, str]:
        """The environment of the command: its ``python`` is the host's, also where the command says just ``python``."""
        values = self._values(folder, steps)
        found = {name: fill(text, values, f"variables of {self.name}") for name, text in self.variables.items()}
        path = os.pathsep.join([str(Path(self.python).parent), os.environ.get("PATH", os.defpath)])
        return {**os.environ, "PATH": path, **found}

    def _values(self, folder: Path, steps: int | None) -> dict[str, Any]:
        folders = {name: folder / name for name in ("output", "tensorboard")}
        whole = {"seed": self.seed, "completions": self.completions, "prompts": self.prompts}
        return {**self.values, **folders, **whole, "steps": steps}

    def to_json(self) -> str:
        """For ``cell.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class CellFolder:
    """Where a cell leaves what it did. A cell is finished when ``status.json`` says so."""

    path: Path

    @property
    def status(self) -> dict[str, Any] | None:
        """How it ended; None while it has not."""
        return read_json(self.path / "status.json")

    @property
    def log(self) -> Path:
        """What its commands printed."""
        return self.path / "log.txt"

    def cell(self) -> Cell:
        """The cell that this folder is of.

        Raises:
            ConfigError: If there is none.
        """
        content = read_json(self.path / "cell.json")
        if content is None:
            raise ConfigError(f"refine: {str(self.path)!r} is no cell of an ablation: it holds no cell.json.")
        lists: dict[str, Any] = {name: tuple(content[name]) for name in ("command", "plugin_modules")}
        return Cell(**{**content, **lists})


def cells_of(plan: Plan, run: Path, plugins: Plugins) -> list[Cell]:
    """All cells of a plan, seed by seed, plain before refined: half a run can be compared already.

    Raises:
        ConfigError: If two of them would have one name, or one cannot be trained.
    """
    starts = [_start_cell(plan, task, run) for task in plan.tasks] if plan.start else []
    cells = starts + [
        cell
        for seed in plan.seeds
        for task in plan.tasks
        for host in plan.hosts
        for objective in plan.objectives_on(host)
        for cell in _pair(plan, host, objective, task, seed, run, plugins)
    ]
    twice = next((name for name, count in Counter(cell.name for cell in cells).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"refine: the plan makes two cells called {twice!r}. Leave out one of two equal settings.")
    return cells


def _pair(plan: Plan, host: str, objective: str, task: str, seed: int, run: Path, plugins: Plugins) -> Iterator[Cell]:
    """The plain cell, if there is one, and all refined ones that are compared with it."""
    command, variables = _command(plan, host, plugins)
    evaluation = plan.evaluation(task, run)
    plain_name = _slug(host, objective, task, "plain", f"seed{seed}")
    for config in plan.settings(objective):
        name, num_drafts, group_size, options = plain_name, 0, plan.completions, ""
        if config is not None:
            num_drafts = getattr(make_mode(config, plugins), "num_drafts", config.num_drafts)
            group_size = plan.group_size(config, plugins)
            paper = config.mode == "paper"
            split = f"{num_drafts}+{group_size}" if paper else f"{config.mode}-N{num_drafts}-S{group_size}"
            varied = plan.varied(config)
            others = [f"{setting}_{text}" for setting, text in varied.items()]
            name = _slug(host, objective, task, split, *others, f"seed{seed}")
            options = _options(config, varied)
        yield Cell(
            name=name,
            host=host,
            objective=objective,
            task=task,
            seed=seed,
            completions=plan.completions,
            prompts=plan.prompts,
            refine=None if config is None else _stated(config),
            common=plan.with_objective.get(objective, {}),
            command=command,
            variables=variables,
            values={**plan.fields(task), "run": str(run)},
            python=plan.hosts[host].python,
            directory=str(plan.folder),
            steps=plan.steps,
            plain_cell=plain_name if config is not None and plan.match == "tokens" else "",
            pilot_steps=plan.pilot_steps,
            evaluate=evaluation.model_dump(mode="json") if evaluation else None,
            drafts=_drafts(plan, config),
            num_drafts=num_drafts,
            group_size=group_size,
            options=options,
            plugin_modules=plan.plugins,
        )


def _start_cell(plan: Plan, task: str, run: Path) -> Cell:
    """Trains nothing: the held-out measure of the model that all cells start from."""
    evaluation = plan.evaluation(task, run)
    return Cell(
        name=_slug("start", task),
        host="",
        objective=START,
        task=task,
        seed=0,
        completions=0,
        prompts=None,
        refine=None,
        common={},
        command=(),
        variables={},
        values={},
        python=next(iter(plan.hosts.values())).python,
        directory=str(plan.folder),
        evaluate=evaluation.model_dump(mode="json") if evaluation else None,
        drafts=_drafts(plan, None),
        model=fill(plan.start, {**plan.fields(task), "run": str(run)}, "start"),
        plugin_modules=plan.plugins,
    )


def _command(plan: Plan, host: str, plugins: Plugins) -> tuple[tuple[str, ...], dict[str, str]]:
    """The host's command and variables, with what the command does not place itself appended."""
    launch, launched = launch_of(host, plugins), plan.hosts[host]
    own = placed((*launched.command, *launched.variables.values()))
    wanted = {name: more for name, more in launch.arguments.items() if name != "steps" or plan.steps is not None}
    added = [argument for name, more in wanted.items() if name not in own for argument in more]
    return (*launched.command, *added), {**launch.variables, **launched.variables}


def _drafts(plan: Plan, config: RefineConfig | None) -> dict[str, Any]:
    first = next(filter(None, (config, *plan.settings())), None)
    return _stated(first) if first else {}


def _stated(config: RefineConfig) -> dict[str, Any]:
    """The settings that differ from the defaults; the number of drafts always."""
    stated = config.model_dump(mode="json", exclude_defaults=True)
    return {"num_drafts": config.num_drafts, **stated}


def _options(config: RefineConfig, varied: Mapping[str, str]) -> str:
    """What of a refined setting no other column of the results says: options of its mode, and all that is varied."""
    options = {name: text for name, text in varied.items() if name not in (*_COLUMNS, "mode_options")}
    of_mode = [f"{name}={value}" for name, value in config.mode_options.items() if name != "num_drafts"]
    return ", ".join([*of_mode, *(f"{name}={text}" for name, text in options.items())])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(*parts: str) -> str:
    return "--".join(re.sub(r"[^A-Za-z0-9_.+]+", "-", part) for part in parts)
