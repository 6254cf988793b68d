"""Problems that reasoning-gym makes: ``reasoning-gym:TASK?seed=1&size=200&key=value``."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any, Final

import yaml

from refine_wrapper.errors import ConfigError
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.rewards.interface import Reward
from refine_wrapper.rewards.reasoning_gym import ReasoningGymReward, require_reasoning_gym

PREFIX: Final = "reasoning-gym:"
_DEFAULTS: Final = {"seed": 0, "size": 200}


def read_task(source: str, limit: int | None = None) -> tuple[list[dict[str, Any]], Reward]:
    """The entries of a task, and its own verifier as a reward.

    Values are YAML (``max_terms=3``, ``operators=[+,-]``). Without a seed reasoning-gym would draw one, and no two
    evaluations would have the same problems; here it is 0, and the size 200.

    Raises:
        ConfigError: For an unknown task or setting, with the nearest there is, or settings that the task refuses.
    """
    task, _, query = source.removeprefix(PREFIX).partition("?")
    gym = require_reasoning_gym()
    tasks: dict[str, tuple[Any, Any]] = importlib.import_module("reasoning_gym.factory").DATASETS
    if task not in tasks:
        raise ConfigError(f"refine: reasoning-gym has no task {task!r}. {did_you_mean(task, tasks)}")
    names = [field.name for field in fields(tasks[task][1])]
    given: dict[str, Any] = {}
    for part in query.split("&") if query else ():  # not parse_qsl: it reads + as a space
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"refine: {source!r}: write settings as key=value, joined with &; {part!r} is not.")
        if name not in names:
            raise ConfigError(f"refine: reasoning-gym's {task} has no setting {name!r}. {did_you_mean(name, names)}")
        given[name] = yaml.safe_load(value)
    try:
        dataset = gym.create_dataset(task, **{**_DEFAULTS, **given})
        entries = [dataset[index] for index in range(min(len(dataset), limit or len(dataset)))]
    except Exception as error:  # tasks check with assert, and some fail while they generate
        raise ConfigError(f"refine: reasoning-gym's {task} refuses {given}: {type(error).__name__}: {error}") from None
    return entries, ReasoningGymReward(dataset.score_answer)
