"""Trains every scenario of test_ranks.py on the ranks that torchrun starts, and writes what each rank saw."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from refine_testing.rewards import RecordingReward
from refine_testing.trl_host import Batch, chats, logged, questions, trainer_for, unpadded, weights_of

RANK = int(os.environ["RANK"])
FLAT = (0, 2, 3, 5, 7, 8, 10)
"""Questions whose rewards are all equal, where the scenario says so."""


class RankReward(RecordingReward):
    """Pays as usual, but for drafts on one rank does what the scenario says."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        super().__init__()
        self.fault, self.on_rank = scenario.get("fault"), scenario.get("on_rank")

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        stage_1 = len(self.calls) % 2 == 0
        paid = super().__call__(prompts, completions, **columns)
        if not stage_1 or self.on_rank != RANK:
            return paid
        if self.fault == "raises":
            raise RuntimeError("only here")
        if self.fault == "one too few":
            return paid[:-1]
        if self.fault == "none":
            return [None] * len(paid)
        return paid


class Flat(RankReward):
    """Pays the same for all completions of some questions."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        paid = super().__call__(prompts, completions, **columns)
        return [0.5 if n in FLAT else value for n, value in zip(columns["number"], paid, strict=True)]


def run(name: str, scenario: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One training; what this rank saw of it."""
    reward = (Flat if scenario.get("flat") or scenario.get("pays") == "flat" else RankReward)(scenario)
    count = scenario.get("questions", 12)
    data: Dataset = (chats if scenario.get("chat") else questions)(count, number=list(range(count)))
    trainer = trainer_for(
        folder / name,
        reward,
        data,
        objective=scenario.get("objective", "grpo"),
        more={"eval_dataset": questions(20, number=list(range(20))).select(range(16, 20))},
        refine_trace_dir=str(folder / name / "trace"),
        refine_trace_texts=True,
        ddp_timeout=60,
        **scenario["settings"],
    )
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    names = sorted({n for entry in trainer.state.log_history for n in entry if n.startswith("refine/")})
    result = {
        "calls": [{n: call[n] for n in ("prompts", "completions", "number")} for call in reward.calls],
        "batches": [_batch(batch, trainer.processing_class) for batch in trainer.batches],
        "num_generations": trainer.num_generations,
        "metrics": {n: logged(trainer, n) for n in names if not n.endswith("_seconds")},
        "losses": [step.loss for step in trainer.steps],
        "moved": any(not torch.equal(tensor, before[n]) for n, tensor in after.items()),
        "finite": all(bool(torch.isfinite(tensor).all()) for tensor in after.values()),
        "weights": sum(float(tensor.double().sum()) for tensor in after.values()),
    }
    if scenario.get("evaluates"):
        reward.calls.clear()
        trainer.evaluate()
        result["evaluation"] = [{n: call[n] for n in ("prompts", "completions")} for call in reward.calls]
    return result


def _batch(batch: Batch, tokenizer: Any) -> dict[str, Any]:
    return {
        "questions": [row["prompt"] for row in batch.rows],
        "prompts": batch.prompts(tokenizer),
        "completions": [
            tokenizer.decode(ids, skip_special_tokens=True)
            for ids in unpadded(batch.output["completion_ids"], batch.output["completion_mask"])
        ],
        "trained_tokens": batch.output["completion_mask"].sum(1).tolist(),
        "advantages": batch.output["advantages"].tolist(),
    }


def main(folder: Path, scenarios: dict[str, dict[str, Any]]) -> None:
    """All scenarios in one process group; each result is written at once, so that a hang costs the rest only."""
    torch.set_num_threads(1)
    for name, scenario in scenarios.items():
        result = run(name, scenario, folder)
        partial = folder / f"{name}.{RANK}.tmp"
        partial.write_text(json.dumps(result), encoding="utf-8")
        partial.rename(folder / f"{name}.{RANK}.json")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
