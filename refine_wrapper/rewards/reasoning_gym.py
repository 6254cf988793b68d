"""The verifier of the reasoning-gym task that a problem comes from."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from refine_wrapper.errors import ConfigError
from refine_wrapper.messages import Message
from refine_wrapper.rewards.answers import last_boxed
from refine_wrapper.rewards.text import completion_text

Scorer = Callable[[str, dict[str, Any]], float]
_INSTALL = "pip install 'reasoning-gym>=0.1.20'"


class ReasoningGymReward:
    r"""What reasoning-gym's own ``score_answer`` pays, from 0.0 to 1.0.

    The answer is what stands in the last ``<answer>`` tag after any ``</think>``, else in the last ``\boxed{}``, else
    all of the text. The column ``entry`` has the problem as reasoning-gym made it, as a mapping or as JSON text (Arrow
    tables spoil nested mappings: use ``json.dumps(entry)``).

    Args:
        score: ``score_answer`` of a data set; by default that of the task named in each entry, with its default
            settings.
        name: The name under which hosts log it.
    """

    def __init__(self, score: Scorer | None = None, *, name: str = "reasoning-gym") -> None:
        self.__name__ = name
        self._score = score
        self._scorers: dict[str, Scorer] = {}

    def __call__(
        self, *, completions: Sequence[str | Sequence[Message]], prompts: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        """One number per completion.

        Raises:
            ConfigError: If there is no column ``entry``, or an entry is none of reasoning-gym's.
        """
        if "entry" not in columns:
            raise ConfigError(
                f"refine: reward {self.__name__!r} needs the column 'entry' with reasoning-gym's own problems (as JSON "
                f"text). Columns present: {', '.join(sorted(columns)) or 'none'}."
            )
        return [
            self._scored(answer_of(completion_text(completion)), _entry_of(entry))
            for completion, entry in zip(completions, columns["entry"], strict=True)
        ]

    def __repr__(self) -> str:
        return "ReasoningGymReward()"

    def _scored(self, answer: str, entry: dict[str, Any]) -> float:
        score = self._score or self._scorer_of(entry)
        return float(score(answer, entry))

    def _scorer_of(self, entry: Mapping[str, Any]) -> Scorer:
        metadata: Any = entry.get("metadata")
        task = cast("Any", metadata).get("source_dataset") if isinstance(metadata, Mapping) else None
        if not isinstance(task, str):
            raise ConfigError(
                f"refine: reward {self.__name__!r}: metadata.source_dataset of an entry must name its "
                f"task: {entry!r:.80}"
            )
        if task not in self._scorers:
            self._scorers[task] = require_reasoning_gym().get_score_answer_fn(task)
        return self._scorers[task]


def answer_of(text: str) -> str:
    """The answer in a completion. Not the package's usual rule: rows of ``####`` are walls in some of these puzzles."""
    said = text.rpartition("</think>")[2]
    _, opened, tagged = said.rpartition("<answer>")
    if opened:
        return tagged.partition("</answer>")[0].strip()
    boxed = last_boxed(said)
    return said.strip() if boxed is None else boxed.strip()


def require_reasoning_gym() -> Any:
    """The module, imported now.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise ConfigError(f"refine: reasoning-gym is not installed: {_INSTALL}") from None


def _entry_of(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"refine: the column 'entry' holds text that is not JSON ({error}): {entry!r:.80}"
            ) from None
    if not isinstance(entry, Mapping):
        raise ConfigError(f"refine: the column 'entry' must hold mappings or JSON text, not {entry!r:.80}")
    return dict(cast("Mapping[str, Any]", entry))
