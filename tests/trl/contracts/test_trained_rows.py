"""Contracts 1 and 11: what reaches the loss is refinements of q', drafts never; groups are kept apart by an id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from refine_testing.rewards import RecordingReward, text_of
from refine_testing.traces import read_groups
from refine_testing.trl_host import (
    ATTEMPT,
    chats,
    q_prime_ids,
    questions,
    recorded,
    trained_rows,
    trainer_for,
    unpadded,
)

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("data", [questions, chats], ids=["plain", "chat"])
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_only_refinements_of_q_prime_are_trained(objective: str, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = trainer_for(tmp_path, reward, data(8), objective=objective, refine_num_drafts=3, num_generations=4)
    trainer.train()

    batches = recorded(reward)
    assert len(trainer.batches) == len(batches) == 2
    expected_rows = []
    for batch, both in zip(trainer.batches, batches, strict=True):
        ids = [list(map(int, row)) for row in both.refinements["completion_ids"]]
        assert len(batch.rows) == len(batch.prompt_ids) == len(ids) == 8
        assert unpadded(batch.output["completion_ids"], batch.output["completion_mask"]) == ids
        for row, prompt_ids in enumerate(batch.prompt_ids):
            draft = both.best_text(row // 4, num_drafts=3)
            assert prompt_ids == q_prime_ids(tokenizer, batch.rows[row]["prompt"], draft), f"row {row} is not under q'"
            question = text_of(batch.rows[row]["prompt"])
            assert question in tokenizer.decode(prompt_ids)
            assert ATTEMPT in tokenizer.decode(prompt_ids)
            expected_rows.append((tuple(prompt_ids), tuple(ids[row])))
        drafts = {tuple(map(int, row)) for row in both.drafts["completion_ids"]}
        assert drafts.isdisjoint(tuple(completion) for _, completion in trained_rows(trainer.steps))
    assert trained_rows(trainer.steps) == sorted(expected_rows)


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_equal_prompts_with_different_labels_are_separate_groups(objective: str, tmp_path: Path) -> None:
    class LabelReward(RecordingReward):
        def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
            super().__call__(prompts, completions, **columns)
            return [float(label in text) for label, text in zip(columns["label"], completions, strict=True)]

    labels = ["red", "green", "blue"]
    data = Dataset.from_dict({"prompt": ["Which colour?"] * 3, "label": labels})
    trainer = trainer_for(
        tmp_path,
        LabelReward(),
        data,
        objective=objective,
        script=lambda prompt, row: "a refinement" if ATTEMPT in prompt else labels[row % 3],
        per_device_train_batch_size=6,
        num_generations=2,
        max_completion_length=16,
        max_steps=1,
        refine_num_drafts=3,
        refine_trace_dir=str(tmp_path / "trace"),
        refine_trace_texts=True,
    )
    trainer.train()

    (batch,) = trainer.batches
    for row, prompt in zip(batch.rows, batch.prompts(trainer.processing_class), strict=True):
        assert f"{ATTEMPT}\n\n{row['label']}\n\n" in prompt, "a group got the draft of another one with the same prompt"
    groups = read_groups(tmp_path / "trace")
    assert len({group["group_id"] for group in groups}) == 3
    assert [group["draft_text"] for group in groups] == [row["label"] for row in batch.rows[::2]]
