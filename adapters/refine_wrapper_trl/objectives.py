"""Objective names in TRL's settings. The losses are TRL's; docstrings of its config classes cite the papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings

GRPO, RLOO = "GRPOTrainer", "RLOOTrainer"


def _grpo(missing: str = "", dynamic_sampling: int = 0, **settings: Any) -> ObjectiveSettings:
    return ObjectiveSettings(settings, missing, GRPO, dynamic_sampling)


OBJECTIVES: Final[Mapping[str, ObjectiveSettings]] = {
    "grpo": _grpo(loss_type="grpo", scale_rewards="group"),
    "dapo": _grpo(
        "the overlong penalty, a reward function that you add: "
        "trl.rewards.get_soft_overlong_punishment(max_completion_len, soft_punish_cache)",
        # trl #3708 asks for it. As many as in the paper's recipe: max_num_gen_batches=10, the first included.
        dynamic_sampling=9,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        mask_truncated_completions=True,
        beta=0.0,
    ),
    "dr_grpo": _grpo(loss_type="dr_grpo", scale_rewards="none"),
    "gspo": _grpo(loss_type="grpo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4, beta=0.0),
    "bnpo": _grpo(loss_type="bnpo"),
    "cispo": _grpo(loss_type="cispo", epsilon_high=5.0),
    "sapo": _grpo(loss_type="sapo"),
    "luspo": _grpo(loss_type="luspo", importance_sampling_level="sequence"),
    "vespo": _grpo(loss_type="vespo"),
    "rloo": ObjectiveSettings({}, trainer=RLOO),
    "reinforce++-baseline": _grpo(
        "scaled by the batch's standard deviation of rewards, where the paper takes that of advantages",
        loss_type="dapo",
        scale_rewards="batch",
    ),
    "reinforce++": ObjectiveSettings(None, "TRL has no objective without groups (num_generations is at least 2)", GRPO),
}


def apply_objective(config: Any, name: str, objective: ObjectiveSettings) -> None:
    """Write an objective into a TRL config, before the host's own ``__post_init__`` reads it.

    Raises:
        ConfigError: If it belongs to the other trainer, or this TRL does not have one of its settings.
    """
    kind = next((c.__name__ for c in type(config).__mro__ if c.__name__ in ("GRPOConfig", "RLOOConfig")), "")
    if kind.removesuffix("Config") != objective.trainer.removesuffix("Trainer"):
        raise ConfigError(
            f"refine: objective {name!r} is TRL's {objective.trainer}, and this script trains with {kind}. Use "
            f"{objective.trainer} in the script, or another objective (`refine-wrapper objectives`)."
        )
    for setting, value in (objective.settings or {}).items():
        if not hasattr(config, setting):
            raise ConfigError(
                f"refine: objective {name!r} needs {setting}={value!r}, which this TRL's {kind} does not have. "
                "Use a newer TRL, or another objective."
            )
        setattr(config, setting, value)
