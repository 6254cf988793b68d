"""Objective names in veRL's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ESTIMATOR = "algorithm.adv_estimator"
_ACTOR = "actor_rollout_ref.actor"
_MEAN, _LOSS = f"{_ACTOR}.loss_agg_mode", f"{_ACTOR}.policy_loss.loss_mode"


def _clip(low: float, high: float) -> dict[str, Any]:
    return {f"{_ACTOR}.clip_ratio_low": low, f"{_ACTOR}.clip_ratio_high": high}


OWN_DYNAMIC_SAMPLING: Final = ("veRL", "algorithm.filter_groups.enable=True")
"""The host and its own setting, where it is asked for this package's ``dynamic_sampling``."""

OBJECTIVES: Final[Mapping[str, ObjectiveSettings]] = {
    "grpo": ObjectiveSettings({_ESTIMATOR: "grpo", _MEAN: "seq-mean-token-mean"}),
    "dapo": ObjectiveSettings(
        {
            _ESTIMATOR: "grpo",
            _MEAN: "token-mean",
            **_clip(0.2, 0.28),
            "algorithm.filter_groups.enable": True,
            "algorithm.filter_groups.metric": "reward",
        },
        missing="the overlong penalty, whose lengths are yours: veRL's reward manager dapo",
    ),
    "dr_grpo": ObjectiveSettings(
        {_ESTIMATOR: "grpo", "algorithm.norm_adv_by_std_in_grpo": False, _MEAN: "seq-mean-token-sum-norm"}
    ),
    "gspo": ObjectiveSettings({_ESTIMATOR: "grpo", _LOSS: "gspo", _MEAN: "seq-mean-token-mean", **_clip(3e-4, 4e-4)}),
    "sapo": ObjectiveSettings({_ESTIMATOR: "grpo", _LOSS: "sapo", _MEAN: "seq-mean-token-mean"}),
    "cispo": ObjectiveSettings({_ESTIMATOR: "grpo", _LOSS: "cispo"}),
    "rloo": ObjectiveSettings({_ESTIMATOR: "rloo"}),
    "reinforce++": ObjectiveSettings({_ESTIMATOR: "reinforce_plus_plus"}),
    "reinforce++-baseline": ObjectiveSettings({_ESTIMATOR: "reinforce_plus_plus_baseline"}),
    "gpg": ObjectiveSettings({_ESTIMATOR: "gpg", _LOSS: "gpg"}),
    "opo": ObjectiveSettings({_ESTIMATOR: "opo"}),
    "ppo": ObjectiveSettings({_ESTIMATOR: "gae"}, missing="a critic, whose model and sizes are yours: critic.*"),
}


def apply_objective(config: DictConfig, name: str, objective: ObjectiveSettings) -> None:
    """Write an objective into a configuration.

    Raises:
        ConfigError: If this veRL does not have one of its keys.
    """
    # Comes with the host; the plugin manager loads this module where no host is.
    from omegaconf import DictConfig, OmegaConf

    for key, value in (objective.settings or {}).items():
        parent, _, last = key.rpartition(".")
        node: Any = OmegaConf.select(config, parent)
        if not isinstance(node, DictConfig) or last not in node:
            raise ConfigError(
                f"refine: objective {name!r} needs the key {key}, which this veRL does not have. Use another version, "
                "or another objective."
            )
        OmegaConf.update(config, key, value)
