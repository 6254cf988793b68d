"""The reward of held-out completions: found by name, called as TRL calls it, one bad call costs one completion."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from refine_wrapper.core.planner import with_reward
from refine_wrapper.core.types import Outcome, Sample
from refine_wrapper.errors import ConfigError, NoRewardError, RefineError
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.study.evaluation.problems import Problem, ProblemSet

Completions = Sequence[Any]  # of evaluation.engines.interface.Completion


class RewardError(ConfigError, ImportError):
    """A reward cannot be found or imported."""


class Scorer:
    """Scores completions against q and its columns; it is never given q'.

    Args:
        reward: A function in TRL's signature; may be asynchronous.
        plugins: The loaded plugins, for ``normalize_reward``.
    """

    def __init__(self, reward: Callable[..., Any], plugins: Plugins) -> None:
        self._reward = reward
        self._plugins = plugins
        self._wanted = _wanted(reward)
        self._worked = False
        self.name = str(getattr(reward, "__name__", type(reward).__name__))

    def score(self, asked: Sequence[Problem], completions: Completions) -> list[Sample]:
        """One scored completion for each: its reward, or why there is none.

        Args:
            asked: The problem of each completion.
            completions: What was sampled.

        Raises:
            NoRewardError: If the reward has failed on everything so far; with what it raised.
        """
        try:
            rewards = self._call(asked, completions)
            scored = [
                with_reward(_sample_of(completion), reward, self._plugins)
                for completion, reward in zip(completions, rewards, strict=True)
            ]
        except ConfigError:
            raise
        except Exception:  # a reward may raise anything; which completions it was is found one by one
            scored = [self._alone(problem, one) for problem, one in zip(asked, completions, strict=True)]
        self._worked = self._worked or any(sample.usable for sample in scored)
        raised = next((sample for sample in scored if sample.outcome is Outcome.REWARD_EXCEPTION), None)
        if not self._worked and raised is not None:
            raise NoRewardError(f"refine: the reward {self.name!r} failed on every completion so far: {raised.detail}")
        return scored

    def _alone(self, problem: Problem, completion: Any) -> Sample:
        sample = _sample_of(completion)
        try:
            (reward,) = self._call([problem], [completion])
        except RefineError:
            raise
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            return replace(sample, outcome=Outcome.REWARD_EXCEPTION, detail=detail)
        return with_reward(sample, reward, self._plugins)

    def _call(self, asked: Sequence[Problem], completions: Completions) -> list[Any]:
        names = dict.fromkeys(name for problem in asked for name in problem.columns)
        arguments: dict[str, Any] = {name: [problem.columns.get(name) for problem in asked] for name in names}
        arguments["prompts"] = [problem.prompt for problem in asked]
        arguments["completions"] = [
            completion.text if isinstance(problem.prompt, str) else [{"role": "assistant", "content": completion.text}]
            for problem, completion in zip(asked, completions, strict=True)
        ]
        if self._wanted is not None:
            arguments = {name: value for name, value in arguments.items() if name in self._wanted}
        returned = self._reward(**arguments)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
        rewards = list(returned)
        if len(rewards) != len(asked):
            raise ValueError(f"returned {len(rewards)} values for {len(asked)} completions")
        return rewards


def find_reward(name: str | None, problems: ProblemSet, plugins: Plugins) -> tuple[Callable[..., Any], dict[str, str]]:
    """A reward by name, and what tells it from another one of the same name.

    Args:
        name: As in ``EvaluationSettings.reward``.
        problems: Whose own reward is the default, and is what ``reasoning-gym`` means for a task.
        plugins: With the registered rewards.

    Raises:
        RewardError: If there is none; with what there is.
    """
    if problems.reward is not None and name in (None, "reasoning-gym"):
        return problems.reward, {"name": "reasoning-gym"}
    name = name or "math"
    registered = plugins.all("reward")
    if name in registered:
        return registered[name], {"name": name}
    where, colon, function = name.rpartition(":")
    if not colon:
        raise RewardError(
            f"refine: there is no reward {name!r}. {did_you_mean(name, registered)} A function of yours is named "
            "module:function or path/to/file.py:function."
        )
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    found = getattr(module, function, None)
    if not callable(found):
        functions = [
            n for n, value in cast("dict[str, Any]", vars(module)).items() if callable(value) and not n.startswith("_")
        ]
        raise RewardError(f"refine: {where} has no function {function!r}. {did_you_mean(function, functions)}")
    source = Path(str(module.__file__ or ""))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16] if source.is_file() else ""
    return found, {"name": name, "digest": digest}


def _load_file(path: Path) -> Any:
    path = path.expanduser()
    spec = importlib.util.spec_from_file_location(f"refine_wrapper_reward_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RewardError(f"refine: there is no reward file {str(path)!r}.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a function's module up by name; files beside it import as in `python file.py`.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise RewardError(f"refine: the reward file {path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise RewardError(
            f"refine: the reward module {name!r} cannot be imported: {type(error).__name__}: {error}. Write "
            "path/to/file.py:function for a file."
        ) from error


def _sample_of(completion: Any) -> Sample:
    return Sample(completion.text, num_tokens=completion.num_tokens, finished=completion.finished)


def _wanted(reward: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords a reward takes; None where it takes all."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


async def _awaited(returned: Any) -> Any:
    return await cast("Awaitable[Any]", returned)
