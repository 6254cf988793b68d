"""Contract 5: switched off, the run is the plain host's, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import refine_testing
import torch
import trl
from refine_testing.rewards import RecordingReward
from refine_testing.tiny import tiny_llama, tiny_tokenizer
from refine_testing.trl_host import DEFAULTS, TRAINERS, questions, trainer_for, weights_of

from refine_wrapper_trl import refine

pytestmark = pytest.mark.oldest

TIMED = ("time", "per_second")


def _run(folder: Path, objective: str, **settings: Any) -> tuple[Any, RecordingReward]:
    reward = RecordingReward()
    trainer = trainer_for(
        folder,
        reward,
        questions(8),
        objective=objective,
        more={"eval_dataset": questions(20).select(range(17, 20))},
        eval_strategy="steps",
        eval_steps=2,
        num_generations_eval=2,
        per_device_eval_batch_size=6,
        max_steps=3,
        learning_rate=1e-2,
        **settings,
    )
    trainer.train()
    return trainer, reward


def _history(trainer: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if not name.endswith(TIMED)}
        for entry in trainer.state.log_history
    ]


def _assert_same(one: tuple[Any, RecordingReward], other: tuple[Any, RecordingReward]) -> None:
    (trainer, reward), (plain, plain_reward) = one, other
    assert _history(trainer) == _history(plain)
    assert reward.calls == plain_reward.calls
    weights, expected = weights_of(trainer.model), weights_of(plain.model)
    assert weights.keys() == expected.keys()
    different = [name for name, tensor in weights.items() if not torch.equal(tensor, expected[name])]
    assert not different


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_off_is_the_plain_host_bit_for_bit(objective: str, tmp_path: Path) -> None:
    plain = _run(tmp_path / "plain", objective, plain=True)
    start = trainer_for(tmp_path / "start", RecordingReward(), questions(8), objective=objective, plain=True)
    assert any(
        not torch.equal(tensor, weights_of(start.model)[name]) for name, tensor in weights_of(plain[0].model).items()
    ), "a run that trains nothing compares nothing"

    _assert_same(_run(tmp_path / "refine", objective, refine=False), plain)
    _assert_same(_run(tmp_path / "none", objective, refine_num_drafts=0), plain)
    on = _run(tmp_path / "on", objective, refine_num_drafts=2)
    assert on[1].calls != plain[1].calls, "the comparison cannot tell the runs apart"


def test_off_needs_no_valid_settings_of_refinement(tmp_path: Path) -> None:
    """A selector that only exists on another machine, a budget that cannot be matched: off is off."""
    _assert_same(
        _run(tmp_path / "off", "grpo", refine=False, refine_selector="nowhere", refine_match_budget=True),
        _run(tmp_path / "plain", "grpo", plain=True),
    )


def test_a_class_wrapped_with_no_drafts_is_the_plain_host(tmp_path: Path) -> None:
    host = TRAINERS["grpo"][2]
    _assert_same(
        _run(tmp_path / "off", "grpo", base=refine(host, num_drafts=0), plain=True),
        _run(tmp_path / "plain", "grpo", plain=True),
    )


@pytest.mark.timeout(240)
def test_an_installed_package_that_is_not_used_changes_nothing(tmp_path: Path) -> None:
    """The host's own classes in this process, where the package is loaded, against one that cannot import it."""
    sys.path.insert(0, str(Path(__file__).parent / "scripts"))
    try:
        from plain_run import digest
    finally:
        sys.path.pop(0)

    assert [kind.__module__ for kind in (trl.GRPOTrainer, trl.RLOOTrainer)] == [
        "trl.trainer.grpo_trainer",
        "trl.trainer.rloo_trainer",
    ]
    assert not hasattr(trl.GRPOConfig, "refine")
    here = trl.GRPOTrainer(
        model=tiny_llama(),
        reward_funcs=RecordingReward(),
        args=trl.GRPOConfig(**{**DEFAULTS, "output_dir": str(tmp_path / "here")}),
        train_dataset=questions(8),
        processing_class=tiny_tokenizer(),
    )
    here.train()

    support = str(Path(refine_testing.__file__).parents[1])
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "scripts" / "plain_run.py"), str(tmp_path / "there"), "grpo"],
        input=json.dumps([DEFAULTS, questions(8)["prompt"][:]]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    results = [line.removeprefix("RESULT ") for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(results) == 1, finished.stderr
    losses = [entry["loss"] for entry in here.state.log_history if "loss" in entry]
    assert json.loads(results[0]) == {"losses": losses, "weights": digest(here.model)}
