"""Recorder: takes note of finished groups. Metrics, trace, observers, the warning about copying.

It needs no tokenizer, so it runs where the host logs. What fails here costs a warning and a counter, never a group.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from refine_wrapper.core.metrics import CausesSeen, CopyWatch, summarize
from refine_wrapper.core.trace import TraceWriter
from refine_wrapper.core.types import Group
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

logger = logging.getLogger(__name__)


class Recorder:
    """For one run.

    Args:
        config: The resolved settings.
        plugins: The loaded plugins; by default the installed ones and those the configuration names.
        observe: False on all but one of several processes that see the same groups: no trace, no observers, no warning.

    Raises:
        ConfigError: If the trace's folder cannot be written when the run starts.
    """

    def __init__(self, config: RefineConfig, plugins: Plugins | None = None, *, observe: bool = True) -> None:
        self._config = config
        self._plugins = Plugins(config.plugin_modules) if plugins is None else plugins
        self._observe = observe
        self._copy_watch = CopyWatch()
        self._causes_seen = CausesSeen()
        self._told: set[str] = set()
        self._failures = 0
        self._trace = (
            TraceWriter(config.trace_dir, texts=config.trace_texts)
            if config.trace_dir is not None and observe
            else None
        )

    def record(self, groups_P: Sequence[Group]) -> dict[str, float]:
        """Take note of the finished groups of a batch; returns its metrics."""
        self._failures = 0
        if self._observe:
            for group in groups_P:
                self._watch(group)
        metrics = summarize(groups_P, max_reward=self._config.max_reward, extract_answer=self._extract_answer)
        metrics["refine/observer_failures"] = float(self._failures)
        metrics = self._causes_seen.keep(metrics)
        if self._observe:
            self._copy_watch.note([group for group in groups_P if not group.replaced], metrics)
        return metrics

    def _watch(self, group: Group) -> None:
        try:
            if self._trace is not None:
                self._trace.write(group)
        except OSError as error:
            self._tell("trace", f"the trace could not be written: {error}")
        for implementation in self._plugins.hook.group_finished.get_hookimpls():
            try:
                arguments = {"group": group, "config": self._config}
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:  # an observer's own trouble, whatever it is
                self._tell(
                    implementation.plugin_name,
                    f"plugin {implementation.plugin_name!r} failed in group_finished: {type(error).__name__}: {error}",
                )

    def _tell(self, who: str, what: str) -> None:
        """Count a failure, and say the first of each kind on the screen."""
        self._failures += 1
        if who not in self._told:
            self._told.add(who)
            logger.warning(
                "refine: %s. Training goes on; further failures are counted in refine/observer_failures.", what
            )

    def _extract_answer(self, text: str) -> str:
        answer: Any = self._plugins.hook.extract_answer(text=text)
        return str(answer)
