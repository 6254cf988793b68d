"""What an adapter tells the core about its host, without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """How a host's own launch command takes what an ablation varies from cell to cell.

    ``{completions}``, ``{seed}``, ``{steps}``, ``{output}`` and ``{tensorboard}`` stand for the values: completions per
    prompt, a whole number each for seed and optimizer steps, and two folders.

    Attributes:
        arguments: Name of a value -> what is appended to the command, unless the command places that value itself.
            ``completions`` is the group size of the plain run; ``match_budget`` takes the drafts out of it.
        variables: Environment variables of the command.
        models: Where below ``{output}`` the trained model is, as glob patterns of folders, best first. The newest
            match that holds a ``config.json`` or an ``adapter_config.json`` is taken.
        train_prefix: What stands before the names of training metrics in TensorBoard.
        metrics: ``reward``, ``entropy``, ``loss``, ``completion_length`` -> the host's tag
            in TensorBoard, where it has one.
    """

    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    models: tuple[str, ...] = (".",)
    train_prefix: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict[str, str])


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
        launch: What ``refine-wrapper ablate`` adds to the host's launch command; None where it cannot be ablated.
    """

    host: str
    distribution: str
    supported: tuple[str, str | None]
    patches: Mapping[str, str] = field(default_factory=dict[str, str])
    seam: tuple[str, ...] = ()
    group_size_flag: str = ""
    launch: Launch | None = None


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """How one host trains one named objective.

    Attributes:
        settings: Host settings by name; None where the host cannot train it at all, and ``missing`` says why.
        missing: What of the objective the host does not have, in a sentence; empty if complete.
        trainer: Which of the host's trainers it needs, where the host has several; empty if any.
        dynamic_sampling: Most rounds a batch of this package's own dynamic sampling, where the objective needs it and
            the host has none.
    """

    settings: Mapping[str, Any] | None
    missing: str = ""
    trainer: str = ""
    dynamic_sampling: int = 0
