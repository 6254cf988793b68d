"""Objectives by name: each trains through TRL's own trainer, refined and plain, with the settings its name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refine_testing.rewards import RecordingReward
from refine_testing.trl_host import logged, questions, trainer_for, weights_of

from refine_wrapper.errors import ConfigError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper_trl import RefineGRPOConfig
from refine_wrapper_trl.objectives import OBJECTIVES

pytestmark = pytest.mark.timeout(120)
TRAINABLE = [name for name, objective in OBJECTIVES.items() if objective.settings is not None]


@pytest.mark.parametrize("num_drafts", [0, 2], ids=["plain", "refined"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_one_step_of_each(name: str, num_drafts: int, tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path,
        RecordingReward(),
        questions(8),
        objective="rloo" if OBJECTIVES[name].trainer == "RLOOTrainer" else "grpo",
        refine_objective=name,
        refine_num_drafts=num_drafts,
        max_steps=1,
        # Random models rarely end by themselves, and DAPO masks what was cut: these all end.
        script=lambda prompt, row: "text " + "abcdefgh"[row % 8] * (row % 3),
    )
    for setting, value in (OBJECTIVES[name].settings or {}).items():
        assert getattr(trainer.args, setting) == value
    before = weights_of(trainer.model)
    trainer.train()
    assert logged(trainer, "refine/refined_share") == ([1.0] if num_drafts else [])
    after = weights_of(trainer.model)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(tensor, before[parameter]) for parameter, tensor in after.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refine_objective": "rloo"}, "objective 'rloo' is TRL's RLOOTrainer, and this script trains with GRPOConfig"),
        ({"refine_objective": "reinforce++"}, "cannot be trained on trl: TRL has no objective without groups"),
        ({"refine_objective": "grop"}, "unknown objective 'grop'. Did you mean 'grpo'?"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_construction(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, TypeError)) as raised:
        RefineGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)
    assert message in str(raised.value)


def test_every_objective_is_registered_through_the_hook() -> None:
    registered = Plugins().all("objective")
    assert {name: hosts["trl"] for name, hosts in registered.items() if "trl" in hosts} == dict(OBJECTIVES)


def test_what_is_missing_is_said_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer_for(tmp_path, RecordingReward(), questions(8), refine_objective="dapo", refine_num_drafts=2)
    assert "objective=dapo; not set: the overlong penalty" in capsys.readouterr().err
