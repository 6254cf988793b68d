"""Contract 4: evaluation is single-shot on q, as the plain host's, unless it was asked to refine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refine_testing.rewards import RecordingReward
from refine_testing.traces import read_groups
from refine_testing.trl_host import ATTEMPT, questions, recorded, trainer_for

from refine_wrapper.core.metrics import MEANINGS

pytestmark = pytest.mark.oldest

EVAL = {"num_generations_eval": 2, "per_device_eval_batch_size": 6}


def _evaluated(folder: Path, objective: str, **settings: Any) -> tuple[Any, RecordingReward, dict[str, float]]:
    reward = RecordingReward()
    held_out = questions(20).select(range(17, 20))
    trainer = trainer_for(
        folder, reward, questions(8), objective=objective, more={"eval_dataset": held_out}, **EVAL, **settings
    )
    trainer.evaluate()
    return trainer, reward, trainer.state.log_history[-1]


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_evaluation_is_the_plain_hosts(objective: str, tmp_path: Path) -> None:
    plain, plain_reward, plain_metrics = _evaluated(tmp_path / "plain", objective, plain=True)
    trainer, reward, metrics = _evaluated(tmp_path / "refined", objective, refine_num_drafts=4)

    assert reward.calls == plain_reward.calls
    assert [len(call["prompts"]) for call in reward.calls] == [6]
    assert [call.prompts for call in trainer.generations] == [call.prompts for call in plain.generations]
    assert not any(ATTEMPT in prompt for call in trainer.generations for prompt in call.prompts)
    assert not [name for name in metrics if "refine/" in name]
    timed = ("time", "per_second")
    compared = {name: value for name, value in plain_metrics.items() if not name.endswith(timed)}
    assert compared["eval_reward"] > 0
    assert {**metrics, **compared} == metrics


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_evaluation_between_training_steps_stays_single_shot(objective: str, tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = trainer_for(
        tmp_path,
        reward,
        questions(8),
        objective=objective,
        more={"eval_dataset": questions(20).select(range(17, 20))},
        eval_strategy="steps",
        eval_steps=1,
        refine_num_drafts=3,
        **EVAL,
    )
    trainer.train()
    # Stage 1, Stage 2, evaluation; twice.
    assert [len(call["prompts"]) for call in reward.calls] == [6, 8, 6] * 2
    assert [ATTEMPT in call.prompts[0] for call in trainer.generations] == [False, True, False] * 2
    assert [batch.mode for batch in trainer.batches] == ["train", "eval"] * 2
    evaluations = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(evaluations) == 2
    assert not [name for entry in evaluations for name in entry if "refine/" in name]


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_evaluation_through_both_stages_where_asked(objective: str, tmp_path: Path) -> None:
    trainer, reward, metrics = _evaluated(
        tmp_path,
        objective,
        refine_num_drafts=3,
        refine_evaluation="refine",
        refine_trace_dir=str(tmp_path / "trace"),
    )
    # Three questions, each with N = 3 drafts and the two completions of the evaluation's own group size.
    assert [len(call["prompts"]) for call in reward.calls] == [9, 6]
    assert [len(call.prompts) for call in trainer.generations] == [9, 6]
    (both,) = recorded(reward)
    for row, prompt in enumerate(trainer.generations[1].prompts):
        assert f"{ATTEMPT}\n\n{both.best_text(row // 2, num_drafts=3)}\n\n" in prompt
    refine = {name.removeprefix("eval_"): value for name, value in metrics.items() if "refine/" in name}
    assert set(refine) <= set(MEANINGS)
    assert refine["refine/completions"] == 15
    assert (trainer.num_generations, trainer.num_generations_eval) == (4, 2)
    assert {group["group_id"].split("-")[0] for group in read_groups(tmp_path / "trace")} == {"eval"}
