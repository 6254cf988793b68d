"""Held-out problems: what is asked, and the columns that the reward gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from refine_wrapper.core.types import Prompt
from refine_wrapper.errors import ConfigError
from refine_wrapper.messages import Message
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.rewards.interface import Reward
from refine_wrapper.study.evaluation.files import SUFFIXES, read_rows
from refine_wrapper.study.evaluation.gym import PREFIX, read_task
from refine_wrapper.study.evaluation.settings import EvaluationSettings

# What the data of the supported hosts, and of common sets, call these.
_PROMPTS: Final = ("prompt", "question", "problem", "input", "messages")
_ANSWERS: Final = ("answer", "solution", "ground_truth", "label", "reward_model.ground_truth")


@dataclass(frozen=True, slots=True)
class Problem:
    """One held-out problem.

    Attributes:
        id: Identity within the set: its position there.
        prompt: q, as text or as messages.
        columns: What the reward gets beside the completion, one value for each name, the right answer as ``answer``.
    """

    id: str
    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Problems and where they are from.

    Attributes:
        source: For people.
        problems: In order.
        reward: The set's own reward, if it has one.
        digest: Changes when any problem changes.
    """

    source: str
    problems: tuple[Problem, ...]
    reward: Reward | None = None
    digest: str = ""


def problem_set(source: str, problems: Sequence[Problem], reward: Reward | None = None) -> ProblemSet:
    """A set with its digest.

    Raises:
        ConfigError: If there is no problem, or two have one id.
    """
    if not problems:
        raise ConfigError(f"refine: {source} has no problems.")
    if len({problem.id for problem in problems}) < len(problems):
        raise ConfigError(f"refine: two problems of {source} have the same id.")
    content = [[problem.id, problem.prompt, problem.columns] for problem in problems]
    text = json.dumps(content, sort_keys=True, default=str)
    return ProblemSet(source, tuple(problems), reward, hashlib.sha256(text.encode()).hexdigest()[:16])


def read_problems(settings: EvaluationSettings) -> ProblemSet:
    """The problems that the settings name, with the system message and as messages where they ask for chat.

    Raises:
        ConfigError: Naming the file, line and field, or the nearest task.
    """
    if settings.data.startswith(PREFIX):
        entries, reward = read_task(settings.data, settings.limit)
        problems = [
            Problem(str(number), _prompt(entry["question"], settings, f"entry {number}"), {**entry, "entry": entry})
            for number, entry in enumerate(entries)
        ]
        return problem_set(settings.data, problems, reward)
    path = Path(settings.data).expanduser()
    if not settings.data or not path.is_file():
        known = ", ".join(SUFFIXES)
        raise ConfigError(
            f"refine: there is no problem file {settings.data!r}. Give a file ({known}), or a task as in "
            f"'{PREFIX}simple_equations?seed=1&size=200'."
        )
    rows = read_rows(path, settings.limit)
    if not rows:
        raise ConfigError(f"refine: {path} has no problems.")
    prompt_field = _field(rows, settings.prompt_field, _PROMPTS, "prompt", path)
    answer_field = _field(rows, settings.answer_field, _ANSWERS, "answer", path)
    if prompt_field is None:
        present = ", ".join(sorted(rows[0])) or "none"
        raise ConfigError(
            f"refine: {path}: no field {' or '.join(map(repr, _PROMPTS))} with the questions. Name it with "
            f"--prompt-field; fields present: {present}."
        )
    problems: list[Problem] = []
    for number, row in enumerate(rows):
        where = f"{path}, problem {number + 1}"
        columns = {name: value for name, value in row.items() if name != prompt_field}
        if answer_field is not None:
            columns["answer"] = _look_up(row, answer_field)
        problems.append(Problem(str(number), _prompt(_look_up(row, prompt_field), settings, where), columns))
    return problem_set(str(path), problems)


def _field(
    rows: Sequence[Mapping[str, Any]], named: str | None, usual: Sequence[str], what: str, path: Path
) -> str | None:
    """The field that holds something, by name or the first usual one that the first problem has."""
    if named is None:
        return next((name for name in usual if _look_up(rows[0], name) is not None), None)
    if _look_up(rows[0], named) is None:
        raise ConfigError(f"refine: {path}: no {what} field {named!r}. {did_you_mean(named, rows[0])}")
    return named


def _look_up(row: Mapping[str, Any], name: str) -> Any:
    """A field, or with dots one inside another: veRL keeps answers in ``reward_model.ground_truth``."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, Any]", found).get(part)
    return found


def _prompt(value: Any, settings: EvaluationSettings, where: str) -> Prompt:
    if isinstance(value, str):
        if not value.strip():
            raise ConfigError(f"refine: {where}: the question is empty.")
        if settings.chat != "always" and settings.system is None:
            return value
        prompt: list[Message] = [{"role": "user", "content": value}]
    else:
        prompt = _messages(value, where)
        if settings.chat == "never":
            raise ConfigError(f"refine: {where}: the question is a list of messages, which needs the chat template.")
    if settings.system is None:
        return prompt
    if prompt[0]["role"] == "system":
        raise ConfigError(f"refine: {where}: the question has a system message already; leave out --system.")
    return [{"role": "system", "content": settings.system}, *prompt]


def _messages(value: Any, where: str) -> list[Message]:
    turns = [cast("Any", turn) for turn in value] if isinstance(value, (list, tuple)) else []  # pyright: ignore[reportUnknownVariableType]
    if not turns or not all(isinstance(turn, Mapping) and "role" in turn and "content" in turn for turn in turns):
        raise ConfigError(
            f"refine: {where}: a question is text, or a list of messages with 'role' and 'content', not {value!r:.80}"
        )
    messages: list[Message] = [dict(cast("Message", turn)) for turn in turns]
    # Chat data often has the answer as the last turn; asking with it in the prompt would give it away.
    if messages[-1]["role"] == "assistant":
        raise ConfigError(
            f"refine: {where}: the last message is the assistant's, so the question would hold an answer. Leave it out."
        )
    return messages
