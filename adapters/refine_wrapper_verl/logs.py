"""``refine/...`` beside the trainer's own metrics, whichever logger it writes to, in V1 and V0; and the trace.

Groups finish in the workers, on any node. They are taken note of here, once, in the trainer's process.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import ray
from verl.utils.tracking import Tracking

from refine_wrapper.core.recorder import Recorder
from refine_wrapper.core.types import Group, Purpose
from refine_wrapper.settings.config import RefineConfig

_SECONDS = 60
"""Workers answer between two steps of their event loop. Longer than this, one is stuck: metrics are not worth a run."""

_HOST_METHOD = "_refine_host_method"
_PREFIX: Final[dict[Purpose, str]] = {"train": "", "eval": "val/"}

logger = logging.getLogger(__name__)


class RefineLog:
    """Collects what finished in the workers whenever the trainer logs.

    Args:
        settings: The resolved settings.
        workers: The agent loop workers, once they exist.

    Raises:
        ConfigError: If the trace's folder cannot be written.
    """

    def __init__(self, settings: RefineConfig, workers: Callable[[], Sequence[Any]]) -> None:
        self._workers = workers
        self._recorders: dict[Purpose, Recorder] = {purpose: Recorder(settings) for purpose in _PREFIX}

    def install(self) -> None:
        """Have every ``Tracking.log`` of this process add them, and ``Tracking.finish`` take note of what is left.

        On the class, because V1 and V0 make their logger after the manager, and do not show it. One trainer runs in a
        process; its manager is the last that was made.
        """
        host_log, host_finish = _host_method("log"), _host_method("finish")

        @functools.wraps(host_log)
        def log(tracking: Any, data: Any, step: int, *args: Any, **kwargs: Any) -> Any:
            return host_log(tracking, {**data, **self.collect()}, step, *args, **kwargs)

        @functools.wraps(host_finish)
        def finish(tracking: Any, *args: Any, **kwargs: Any) -> Any:
            if ray.is_initialized():
                self.collect()  # asynchronous trainers end while groups are under way
            return host_finish(tracking, *args, **kwargs)

        for method, host_method in ((log, host_log), (finish, host_finish)):
            setattr(method, _HOST_METHOD, host_method)
        Tracking.log, Tracking.finish = log, finish

    def collect(self) -> dict[str, float]:
        """Metrics of the groups that finished since the last call; those of a refined validation under ``val/``."""
        try:
            asked = [worker.take_finished_groups.remote() for worker in self._workers()]
            taken: list[list[Group]] = ray.get(asked, timeout=_SECONDS)
        except ray.exceptions.RayError as error:
            logger.warning("refine: a worker did not hand over its groups: %s", error)
            return {}
        finished = sorted((group for groups in taken for group in groups), key=lambda group: group.id)
        self._tell_workers(finished)
        metrics: dict[str, float] = {}
        for purpose, prefix in _PREFIX.items():
            groups_P = [group for group in finished if group.id.purpose == purpose]
            if groups_P:
                recorded = self._recorders[purpose].record(groups_P)
                metrics.update({prefix + name: value for name, value in recorded.items()})
        return metrics

    def _tell_workers(self, finished: Sequence[Group]) -> None:
        """Modes that learn are told what came out in all workers, so that each of them decides alike."""
        tried = [group for group in finished if any(planned.ask.arm for planned in group.rounds)]
        if tried:
            for worker in self._workers():
                worker.note_finished_groups.remote(tried)


def _host_method(name: str) -> Any:
    """The host's own method of ``Tracking``, whatever an earlier manager put there."""
    method: Any = getattr(Tracking, name)
    return getattr(method, _HOST_METHOD, method)
