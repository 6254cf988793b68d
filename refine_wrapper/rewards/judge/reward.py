"""The judge as a reward: rows in, one number or None for each out."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.messages import Message
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.rewards.judge.failures import JudgeError
from refine_wrapper.rewards.judge.prompts import Case, JudgePrompt, prompt_text
from refine_wrapper.rewards.judge.runtime import COUNTS, Runtime, Verdict
from refine_wrapper.rewards.judge.settings import JudgeSettings
from refine_wrapper.rewards.text import completion_text
from refine_wrapper.settings.sources import JUDGE_VARIABLE

_LABELS: Final = ("answer", "solution", "ground_truth")
_instances: weakref.WeakSet[JudgeReward] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which place of which case each row is."""

    cases: list[Case]
    places: list[tuple[int, int]]


class JudgeReward:
    """What a generative judge thinks of a completion, from 0.0 to 1.0; None where it gave no score.

    It sees the question, the completion and, if asked, the label. Calls go to an OpenAI-compatible endpoint, bounded,
    retried, cached on disk and counted; see :class:`JudgeSettings`. Safe to call from threads, to pickle and to fork.

    Args:
        settings: Settings, or their YAML file. Without them and without ``values`` the file that the environment
            variable ``REFINE_WRAPPER_JUDGE`` names, read at the first call.
        name: The name under which hosts log it.
        values: Settings by name, instead of the file.

    Attributes:
        none_is_failure: For weighted sums: None means that it failed, not that it does not apply.

    Raises:
        ConfigError: If a setting is wrong, or both are given.
        TemplateError: If the prompt's file is wrong.
    """

    none_is_failure: Final = True

    def __init__(
        self, settings: JudgeSettings | Path | str | None = None, *, name: str = "judge", **values: Any
    ) -> None:
        self.__name__ = name
        if settings is not None and values:
            raise ConfigError(f"refine: reward {name!r}: give a file or settings by name, not both.")
        if values:
            settings = JudgeSettings(**values)
        elif settings is not None and not isinstance(settings, JudgeSettings):
            settings = JudgeSettings.read_file(settings)
        self._given = settings
        self._forget()
        if settings is not None:
            self._prepare()

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[str | Sequence[Message]],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One number or None per completion.

        Args:
            prompts: The questions; in the same call equal ones are one group.
            completions: What is judged.
            log_metric: Gets what was counted in this process so far, as ``judge/calls``. TRL passes it.
            log_extra: Gets why each completion has no score, as ``judge_failure``. TRL passes it.
            columns: Of the data set; the label is one of them.

        Raises:
            JudgeError: If nothing was ever judged.
            JudgeLimitError: If the run has spent what it may.
            ConfigError: If a setting, a column, the key or the address is wrong.
        """
        rows = self._rows(prompts, completions, columns)
        return self._rewards(rows, self._submit(rows).result(), log_metric, log_extra)

    @property
    def needs_group(self) -> bool:
        """Whether it compares the completions of a group, so that hosts which score them one by one cannot use it."""
        return self._prepare()[0].together

    def counts(self) -> dict[str, int]:
        """What this process has counted so far: calls paid, tokens, cache hits, failures by kind."""
        runtime = self._runtime
        return runtime.counts() if runtime is not None else dict.fromkeys(COUNTS, 0)

    def close(self) -> None:
        """Close connections and the cache now, not with the interpreter. Calling the reward again opens them."""
        with self._lock:
            if self._runtime is not None and self._finalizer is not None:
                self._finalizer.detach()
                self._runtime.close()
            self._runtime = self._finalizer = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._given!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.__name__, "settings": self._given}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__name__, self._given = state["name"], state["settings"]
        self._forget()

    def _rows(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> _Rows:
        settings, prompt = self._prepare()
        count = len(completions)
        asked = prompts if settings.question_column is None else self._column(columns, (settings.question_column,))
        labels: Sequence[Any] = [None] * count
        if prompt.shows_label:
            named = settings.label_column
            labels = self._column(columns, _LABELS if named is None else (named,))
        if not len(asked) == len(labels) == count:
            raise ConfigError(
                f"refine: reward {self.__name__!r} needs one question and one label per completion ({count}), not "
                f"{len(asked)} and {len(labels)}."
            )
        keys: list[tuple[str, str | None]] = [
            (prompt_text(question, self.__name__), None if label is None else str(label))
            for question, label in zip(asked, labels, strict=True)
        ]
        shown = [self._shown(completion, settings) for completion in completions]
        # Equal completions to a question are judged once, and a group is what has one question (and label).
        several: dict[tuple[str, str | None, str], dict[str, int]] = {}
        groups = [(*key, "" if settings.together else text) for key, text in zip(keys, shown, strict=True)]
        for group, text in zip(groups, shown, strict=True):
            places = several.setdefault(group, {})
            places.setdefault(text, len(places))
        numbers = {group: number for number, group in enumerate(several)}
        cases = [Case(question, tuple(texts), label) for (question, label, _), texts in several.items()]
        return _Rows(cases, [(numbers[group], several[group][text]) for group, text in zip(groups, shown, strict=True)])

    def _rewards(
        self,
        rows: _Rows,
        verdicts: list[list[Verdict]],
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[Any]], None] | None,
    ) -> list[float | None]:
        rewards: list[float | None] = []
        reasons: list[str] = []
        for case, place in rows.places:
            scores = [verdict[place] for verdict in verdicts[case] if not isinstance(verdict, JudgeError)]
            failed = [verdict for verdict in verdicts[case] if isinstance(verdict, JudgeError)]
            rewards.append(fmean(scores) if scores else None)
            reasons.append("" if scores else str(failed[0]))
        if log_metric is not None:
            for name, value in self.counts().items():
                log_metric(f"{self.__name__}/{name}", float(value))
        if log_extra is not None:
            log_extra(f"{self.__name__}_failure", reasons)
        return rewards

    def _shown(self, completion: Any, settings: JudgeSettings) -> str:
        text = completion_text(completion)
        return text.rpartition("</think>")[2].strip() if settings.strip_thinking else text

    def _column(self, columns: Mapping[str, Any], wanted: Sequence[str]) -> Sequence[Any]:
        for name in wanted:
            if name in columns:
                return columns[name]
        raise ConfigError(
            f"refine: reward {self.__name__!r} finds no column {' or '.join(map(repr, wanted))}. "
            f"{did_you_mean(wanted[0], columns)}"
        )

    def _submit(self, rows: _Rows) -> Future[list[list[Verdict]]]:
        with self._lock:
            if self._runtime is None:
                self._runtime = Runtime(*self._prepare())
                self._finalizer = weakref.finalize(self, self._runtime.stop)
            return self._runtime.submit(rows.cases)

    def _prepare(self) -> tuple[JudgeSettings, JudgePrompt]:
        if self._prepared is None:
            settings = self._given if self._given is not None else _settings_of_environment(self.__name__)
            self._prepared = settings, JudgePrompt(settings)
        return self._prepared

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._prepared: tuple[JudgeSettings, JudgePrompt] | None = None
        self._runtime: Runtime | None = None
        self._finalizer: weakref.finalize[..., JudgeReward] | None = None
        _instances.add(self)

    def _after_fork(self) -> None:
        # The thread of the judge is not in the child, and neither connections nor SQLite may be shared with the parent.
        if self._finalizer is not None:
            self._finalizer.detach()
        self._forget()


class AsyncJudgeReward(JudgeReward):
    """The same as an asynchronous reward function: TRL then runs it beside other asynchronous ones."""

    async def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[str | Sequence[Message]],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One number or None per completion; see :meth:`JudgeReward.__call__`."""
        rows = self._rows(prompts, completions, columns)
        return self._rewards(rows, await asyncio.wrap_future(self._submit(rows)), log_metric, log_extra)


def _settings_of_environment(name: str) -> JudgeSettings:
    path = os.environ.get(JUDGE_VARIABLE)
    if not path:
        raise ConfigError(
            f"refine: the reward {name!r} has no settings. Write them to a YAML file (model, base_url, ...) and set "
            f"{JUDGE_VARIABLE} to its path, or make one in Python: JudgeReward('judge.yaml')."
        )
    return JudgeSettings.read_file(path)


def _forget_in_child() -> None:
    for instance in list(_instances):
        instance._after_fork()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
