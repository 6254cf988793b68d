"""``refine/...`` beside the trainer's own metrics, whichever logger it writes to, in V1 and V0."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from verl.utils.tracking import Tracking

from refine_wrapper.core.metrics import CausesSeen, summarize
from refine_wrapper.core.types import GroupOutcome
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

_SECONDS = 60
"""Workers answer between two steps of their event loop. Longer than this, one is stuck: metrics are not worth a run."""

_HOST_LOG = "_refine_host_log"

logger = logging.getLogger(__name__)


class RefineLog:
    """Collects what finished in the workers whenever the trainer logs.

    Args:
        settings: The resolved settings.
        workers: The agent loop workers, once they exist.
    """

    def __init__(self, settings: RefineConfig, workers: Callable[[], Sequence[Any]]) -> None:
        self._settings = settings
        self._workers = workers
        self._plugins = Plugins(settings.plugin_modules)
        self._seen = {"train": CausesSeen(), "eval": CausesSeen()}

    def install(self) -> None:
        """Have every ``Tracking.log`` of this process add them.

        On the class, because V1 and V0 make their logger after the manager, and do not show it. One trainer runs in a
        process; its manager is the last that was made.
        """
        host_log: Any = getattr(Tracking.log, _HOST_LOG, Tracking.log)

        @functools.wraps(host_log)
        def log(tracking: Any, data: Any, step: int, *args: Any, **kwargs: Any) -> Any:
            return host_log(tracking, {**data, **self.collect()}, step, *args, **kwargs)

        setattr(log, _HOST_LOG, host_log)
        Tracking.log = log

    def collect(self) -> dict[str, float]:
        """Metrics of the groups that finished since the last call; those of a refined validation under ``val/``."""
        try:
            asked = [worker.take_finished_groups.remote() for worker in self._workers()]
            taken: list[list[GroupOutcome]] = ray.get(asked, timeout=_SECONDS)
        except ray.exceptions.RayError as error:
            logger.warning("refine: a worker did not hand over its metrics: %s", error)
            return {}
        finished = sorted((outcome for outcomes in taken for outcome in outcomes), key=lambda o: o.plan.group_id)
        metrics: dict[str, float] = {}
        for mode, prefix in (("train", ""), ("eval", "val/")):
            outcomes_P = [outcome for outcome in finished if outcome.plan.group_id.startswith(f"{mode}-")]
            if outcomes_P:
                values = summarize(
                    outcomes_P, max_reward=self._settings.max_reward, extract_answer=self._extract_answer
                )
                metrics.update({prefix + name: value for name, value in self._seen[mode].keep(values).items()})
        return metrics

    def _extract_answer(self, text: str) -> str:
        answer: str = self._plugins.hook.extract_answer(text=text)
        return answer
