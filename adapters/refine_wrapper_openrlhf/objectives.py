"""Objective names in OpenRLHF's flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings

_ESTIMATOR, _MEAN = "algo.advantage.estimator", "actor.loss_agg_mode"

OWN_DYNAMIC_SAMPLING: Final = ("OpenRLHF", "--algo.dynamic_filtering_enable")
"""The host and its own setting, where it is asked for this package's ``dynamic_sampling``."""

OBJECTIVES: Final[Mapping[str, ObjectiveSettings]] = {
    "grpo": ObjectiveSettings({_ESTIMATOR: "group_norm", _MEAN: "seq-mean-token-mean"}),
    "dapo": ObjectiveSettings(
        {
            _ESTIMATOR: "group_norm",
            _MEAN: "token-mean",
            "actor.eps_clip_low_high": (0.2, 0.28),
            "algo.dynamic_filtering_enable": True,
        },
        missing="the overlong penalty, whose lengths are yours: --reward.overlong_buffer_len TOKENS",
    ),
    "dr_grpo": ObjectiveSettings(
        {_ESTIMATOR: "dr_grpo", _MEAN: "token-mean"},
        missing="the constant by which the paper divides; the mean over the batch's tokens takes its place",
    ),
    "gspo": ObjectiveSettings(
        {_ESTIMATOR: "group_norm", "actor.policy_loss_type": "gspo", "actor.eps_clip_low_high": (3e-4, 4e-4)}
    ),
    "rloo": ObjectiveSettings({_ESTIMATOR: "rloo"}),
    "reinforce++": ObjectiveSettings({_ESTIMATOR: "reinforce"}),
    "reinforce++-baseline": ObjectiveSettings({_ESTIMATOR: "reinforce_baseline"}),
    "ppo": ObjectiveSettings({_ESTIMATOR: "gae"}),
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
