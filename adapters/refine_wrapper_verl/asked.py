"""Whether the trainer of a run that the driver announced as refined has asked for our manager.

A recipe may make a manager of its own, whatever the configuration names; then everything would be trained plain, with
the group size halved by ``match_budget``. The manager and the driver meet in Ray's own key-value store.
"""

from __future__ import annotations

import logging
import sys

_NAMESPACE = b"refine_wrapper_verl"

logger = logging.getLogger(__name__)


def note_asked(run: str) -> None:
    """Called by the manager, in the trainer's process. Never raises: the note is not worth a run."""
    try:
        from ray.experimental.internal_kv import _internal_kv_put  # pyright: ignore[reportPrivateUsage]

        _internal_kv_put(run.encode(), b"1", namespace=_NAMESPACE)
    except Exception as error:  # whatever a Ray of another version says
        logger.warning("refine: the driver could not be told that refinement is on: %s", error)


def nobody_asked(run: str) -> bool:
    """Called by the driver after the job; False where it cannot know."""
    try:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return False
        from ray.experimental.internal_kv import _internal_kv_get  # pyright: ignore[reportPrivateUsage]

        return _internal_kv_get(run.encode(), namespace=_NAMESPACE) is None
    except Exception as error:  # as above
        logger.warning("refine: it cannot be told whether the trainer refined: %s", error)
        return False
