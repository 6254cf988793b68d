"""Off is the plain run: two real runs of ``main_ppo``, compared to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refine_testing.verl_host import Run

pytestmark = pytest.mark.timeout(2000)
CHECKPOINT = "checkpoints/global_step_3/actor/model_world_size_1_rank_0.pt"

# What no two runs of veRL have in common: clocks, memory, and numbers that the engine computes (they depend on which
# requests happen to share a batch; none of them is trained on).
_MEASURED = ("timing", "perf/", "training/rollout_", "rollout_corr/")


def _rows(run: Run) -> list[Any]:
    return [
        (step, row["extra_info"]["index"], row["session_id"], row["prompts"], row["responses"], row["response_mask"])
        for step, line in run.queue.items()
        for row in sorted(line["rows"].values(), key=lambda row: (row["extra_info"]["index"], row["session_id"]))
    ]


def _weights(run: Run) -> dict[str, Any]:
    loaded = torch.load(run.folder / CHECKPOINT, map_location="cpu", weights_only=False)
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in loaded.items()}


def test_samples_and_rewards_are_those_of_the_plain_run(plain: Run, off: Run) -> None:
    assert len(_rows(plain)) == 3 * 4 * 2
    assert _rows(off) == _rows(plain)
    scores = [[(line["input"], line["output"], line["score"]) for line in run.trained[3]] for run in (plain, off)]
    assert sorted(scores[0]) == sorted(scores[1])
    assert len(plain.calls) == len(off.calls) == 3 * 4 * 2  # no reward is asked for a draft


def test_weights_are_those_of_the_plain_run(plain: Run, off: Run) -> None:
    ours, own = _weights(off), _weights(plain)
    assert ours.keys() == own.keys()
    assert all(torch.equal(ours[name], own[name]) for name in own)
    # There was something to learn, and what was sampled last was sampled from it.
    assert max(plain.log[step]["actor/grad_norm"] for step in (1, 2)) > 0


def test_metrics_are_those_of_the_plain_run(plain: Run, off: Run) -> None:
    for step in (1, 2, 3):
        ours, own = (
            {name: value for name, value in run.log[step].items() if not any(m in name for m in _MEASURED)}
            for run in (off, plain)
        )
        assert ours == own
        assert "actor/pg_loss" in own
    assert "refine-wrapper: on" not in off.output
