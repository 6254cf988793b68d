"""Objective names in veRL's keys."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ESTIMATOR = "algorithm.adv_estimator"
_ACTOR = "actor_rollout_ref.actor"
_MEAN, _LOSS = f"{_ACTOR}.loss_agg_mode", f"{_ACTOR}.policy_loss.loss_mode"
_FILTER = "algorithm.filter_groups"

OWN_DYNAMIC_SAMPLING: Final = ("veRL", "algorithm.filter_groups.enable=True")
"""The host and its own setting, where it is asked for this package's ``dynamic_sampling``."""

_PLAIN: Final[Mapping[str, Any]] = {
    "algorithm.norm_adv_by_std_in_grpo": True,
    _LOSS: "vanilla",
    _MEAN: "token-mean",
    f"{_ACTOR}.clip_ratio_low": 0.2,
    f"{_ACTOR}.clip_ratio_high": 0.2,
    f"{_FILTER}.enable": False,
}
"""All that tells objectives apart: a name sets the whole of it, whatever the command said before."""


def _objective(estimator: str, changes: Mapping[str, Any] | None = None, *, missing: str = "") -> ObjectiveSettings:
    """An objective by its estimator, and where it differs from the plain one."""
    return ObjectiveSettings({_ESTIMATOR: estimator, **_PLAIN, **(changes or {})}, missing=missing)


def _clip(low: float, high: float) -> dict[str, Any]:
    return {f"{_ACTOR}.clip_ratio_low": low, f"{_ACTOR}.clip_ratio_high": high}


OBJECTIVES: Final[Mapping[str, ObjectiveSettings]] = {
    "grpo": _objective("grpo", {_MEAN: "seq-mean-token-mean"}),
    "dapo": _objective(
        "grpo",
        {**_clip(0.2, 0.28), f"{_FILTER}.enable": True, f"{_FILTER}.metric": "reward"},
        missing="the overlong penalty, whose lengths are yours: veRL's reward manager dapo",
    ),
    "dr_grpo": _objective("grpo", {"algorithm.norm_adv_by_std_in_grpo": False, _MEAN: "seq-mean-token-sum-norm"}),
    "gspo": _objective("grpo", {_LOSS: "gspo", _MEAN: "seq-mean-token-mean", **_clip(3e-4, 4e-4)}),
    "sapo": _objective("grpo", {_LOSS: "sapo", _MEAN: "seq-mean-token-mean"}),
    "cispo": _objective("grpo", {_LOSS: "cispo"}),
    "rloo": _objective("rloo"),
    "reinforce++": _objective("reinforce_plus_plus"),
    "reinforce++-baseline": _objective("reinforce_plus_plus_baseline"),
    "gpg": _objective("gpg", {_LOSS: "gpg"}),
    "opo": _objective("opo"),
    "ppo": _objective("gae", missing="a critic, whose model and sizes are yours: critic.*"),
}


def _is_oldest() -> bool:
    """veRL 0.9.0 filters by what the reward function calls its values, and knows no ``reward``; a function that returns
    one number has its value there as ``acc``. Can go with 0.9.0."""
    return importlib.metadata.version("verl").startswith("0.9.0")


def apply_objective(config: DictConfig, name: str, objective: ObjectiveSettings) -> list[str]:
    """Write an objective into a configuration.

    Returns:
        What was changed, for people.

    Raises:
        ConfigError: If this veRL does not have one of its keys.
    """
    # Comes with the host; the plugin manager loads this module where no host is.
    from omegaconf import DictConfig, OmegaConf

    changed: list[str] = []
    for key, value in (objective.settings or {}).items():
        parent, _, last = key.rpartition(".")
        if key == f"{_FILTER}.metric" and value == "reward" and _is_oldest():
            value = "acc"
        node: Any = OmegaConf.select(config, parent)
        if not isinstance(node, DictConfig) or last not in node:
            raise ConfigError(
                f"refine: objective {name!r} needs the key {key}, which this veRL does not have. Use another version, "
                "or another objective."
            )
        if OmegaConf.select(config, key) != value:
            changed.append(f"{key} {OmegaConf.select(config, key)} -> {value}")
        OmegaConf.update(config, key, value)
    return changed
