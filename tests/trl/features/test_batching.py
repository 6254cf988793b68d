"""How TRL cuts and reuses a generation batch must not matter: every row that is trained is a refinement under its q'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refine_testing.rewards import RecordingReward
from refine_testing.trl_runs import check_refined, make

pytestmark = [pytest.mark.timeout(120), pytest.mark.oldest]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("changes", "num_batches", "uses", "rows_per_batch"),
    [
        pytest.param({}, 2, 1, 4, id="plain"),
        pytest.param({"steps_per_generation": 2, "max_steps": 4}, 2, 1, 8, id="steps_per_generation"),
        pytest.param({"num_iterations": 2, "max_steps": 4}, 2, 2, 4, id="num_iterations"),
        pytest.param({"num_iterations": 2, "steps_per_generation": 2, "max_steps": 4}, 1, 2, 8, id="both"),
        pytest.param({"gradient_accumulation_steps": 2}, 2, 1, 8, id="gradient_accumulation"),
        pytest.param(
            {"gradient_accumulation_steps": 2, "steps_per_generation": 4}, 1, 1, 16, id="accumulation-and-buffer"
        ),
        pytest.param({"generation_batch_size": 8, "max_steps": 2}, 1, 1, 8, id="generation_batch_size"),
        pytest.param({"gradient_checkpointing": True}, 2, 1, 4, id="gradient_checkpointing"),
        pytest.param(
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            2,
            1,
            4,
            id="reentrant_checkpointing",
        ),
        pytest.param({"num_generations": 4, "refine_num_drafts": 2}, 2, 1, 4, id="fewer-drafts-than-refinements"),
        pytest.param({"num_generations": 4, "refine_num_drafts": 4}, 2, 1, 4, id="as-many"),
        pytest.param({"refine_num_drafts": 1}, 2, 1, 4, id="one-draft"),
    ],
)
def test_cuts(
    tmp_path: Path, algorithm: str, changes: dict[str, Any], num_batches: int, uses: int, rows_per_batch: int
) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, algorithm=algorithm, reward_funcs=reward, **changes)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    found = check_refined(trainer, reward, num_batches=num_batches, uses=uses)
    num_prompts = rows_per_batch // trainer.num_generations
    for batch in found:
        assert len(batch.questions_P) == num_prompts
        assert len(set(batch.questions_P)) == num_prompts
        assert batch.columns[0]["answer"] == [
            label
            for label in batch.columns[1]["answer"][:: trainer.num_generations]
            for _ in range(trainer.args.refine_num_drafts)
        ]
    assert any(not parameter.equal(before[name]) for name, parameter in trainer.model.named_parameters())
