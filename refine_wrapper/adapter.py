"""What an adapter tells the core about its host, without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Adapter:
    """One host, as ``refine-wrapper run``, ``doctor`` and ``objectives`` know it.

    Attributes:
        host: Name of the host, as in ``pip install refine-wrapper[HOST]``.
        distribution: The host's distribution on the package index.
        supported: Oldest version and first version that was not tried, ``(">=", "<")``; the second may be None.
        patches: Host module -> ``module:function`` of the adapter, called with the host module right after it was
            executed, in a process that ``refine-wrapper run`` started.
        seam: Host names the adapter stands on, ``module:Class.method(arguments)``, which ``doctor`` verifies.
        group_size_flag: The host's own setting that holds G, for messages.
    """

    host: str
    distribution: str
    supported: tuple[str, str | None]
    patches: Mapping[str, str] = field(default_factory=dict[str, str])
    seam: tuple[str, ...] = ()
    group_size_flag: str = ""


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """How one host trains one named objective.

    Attributes:
        settings: Host settings by name; None where the host cannot train it at all, and ``missing`` says why.
        missing: What of the objective the host does not have, in a sentence; empty if complete.
        trainer: Which of the host's trainers it needs, where the host has several; empty if any.
    """

    settings: Mapping[str, Any] | None
    missing: str = ""
    trainer: str = ""
