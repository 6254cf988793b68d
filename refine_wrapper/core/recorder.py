"""Recorder: takes note of finished groups. Metrics, trace, observers, the warning about copying.

It needs no tokenizer, so it runs where the host logs. What fails here costs a warning and a counter, never a group.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from refine_wrapper.core.metrics import CausesSeen, CopyWatch, summarize
from refine_wrapper.core.trace import TraceWriter
from refine_wrapper.core.types import Cause, Group, Outcome
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

_FIRST_BATCHES: Final = 3
"""Batches with groups that the mode wanted refined, after which it is said that none was."""

_BY_CHOICE: Final = (Cause.NOT_CHOSEN, Cause.MODE)
"""Causes that are no failure: they do not count for that warning."""

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
        self._some_refined = False
        self._silent_batches = 0
        self._causes: Counter[str] = Counter()
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
                self._say_failures(group)
                self._watch(group)
        metrics = summarize(groups_P, max_reward=self._config.max_reward, extract_answer=self._extract_answer)
        metrics["refine/observer_failures"] = float(self._failures)
        metrics = self._causes_seen.keep(metrics)
        if self._observe:
            self._copy_watch.note([group for group in groups_P if not group.replaced], metrics)
            self._warn_where_nothing_is_refined(groups_P)
        return metrics

    def _say_failures(self, group: Group) -> None:
        """Say the first failed sample of each kind, with its own message: a count in a log tells nobody why."""
        for sample in group.samples:
            kind = sample.outcome
            if kind in (Outcome.OK, Outcome.EMPTY) or kind.value in self._told:
                continue
            self._told.add(kind.value)
            why = f": {sample.detail}" if sample.detail else ""
            logger.warning(
                "refine: a sample of group %s ended as %s%s. Training goes on; such samples are counted.",
                group.id,
                kind.value,
                why,
            )

    def _warn_where_nothing_is_refined(self, groups_P: Sequence[Group]) -> None:
        """After the first batches without a refined group: a run that says it refines, and does not, must be heard."""
        if self._some_refined or not self._config.active:
            return
        wanted = [group for group in groups_P if group.id.purpose == "train" and group.cause not in _BY_CHOICE]
        self._some_refined = any(group.refined for group in wanted)
        self._causes.update(group.cause.value for group in wanted if group.cause is not None)
        self._silent_batches += bool(wanted)
        if not self._some_refined and self._silent_batches == _FIRST_BATCHES:
            causes = ", ".join(f"{cause} ({count})" for cause, count in self._causes.most_common())
            logger.warning(
                "refine: none of the groups of the first %d batches was refined: %s. They are trained as in the plain "
                "run. See docs/metrics.md for what each cause means.",
                _FIRST_BATCHES,
                causes,
            )

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
