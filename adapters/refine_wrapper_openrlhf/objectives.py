"""Objective names in OpenRLHF's flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings

_ESTIMATOR, _MEAN = "algo.advantage.estimator", "actor.loss_agg_mode"

OWN_DYNAMIC_SAMPLING: Final = ("OpenRLHF", "--algo.dynamic_filtering_enable")
"""The host and its own setting, where it is asked for this package's ``dynamic_sampling``."""

_LOSS, _CLIP, _FILTER = "actor.policy_loss_type", "actor.eps_clip_low_high", "algo.dynamic_filtering_enable"
_PPO: Final[Mapping[str, Any]] = {_LOSS: "ppo", _CLIP: (0.2, 0.2), _FILTER: False}
"""What all of them have that say nothing else: a command line may ask for another loss, clip or filter."""

OBJECTIVES: Final[Mapping[str, ObjectiveSettings]] = {
    "grpo": ObjectiveSettings({_ESTIMATOR: "group_norm", _MEAN: "seq-mean-token-mean", **_PPO}),
    "dapo": ObjectiveSettings(
        {_ESTIMATOR: "group_norm", _MEAN: "token-mean", **_PPO, _CLIP: (0.2, 0.28), _FILTER: True},
        missing="the overlong penalty, whose lengths are yours: --reward.overlong_buffer_len TOKENS",
    ),
    "dr_grpo": ObjectiveSettings(
        {_ESTIMATOR: "dr_grpo", _MEAN: "token-mean", **_PPO},
        missing="the constant by which the paper divides; the mean over the batch's tokens takes its place",
    ),
    "gspo": ObjectiveSettings({_ESTIMATOR: "group_norm", **_PPO, _LOSS: "gspo", _CLIP: (3e-4, 4e-4)}),
    "rloo": ObjectiveSettings({_ESTIMATOR: "rloo", **_PPO}),
    "reinforce++": ObjectiveSettings({_ESTIMATOR: "reinforce", **_PPO}),
    "reinforce++-baseline": ObjectiveSettings({_ESTIMATOR: "reinforce_baseline", **_PPO}),
    "ppo": ObjectiveSettings({_ESTIMATOR: "gae", **_PPO}),
}


def apply_objective(options: dict[str, Any], name: str, objective: ObjectiveSettings) -> None:
    """Write an objective into the parsed flags.

    Raises:
        ConfigError: If this OpenRLHF does not have one of them.
    """
    for option, value in (objective.settings or {}).items():
        if option not in options:
            raise ConfigError(
                f"refine: objective {name!r} needs --{option}, which this OpenRLHF does not have. Use a newer one, or "
                "another objective."
            )
        options[option] = value
