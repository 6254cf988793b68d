"""Contract 3: exactly N drafts per group, once per generation batch, sampled and scored as the training completions are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refine_testing.rewards import RecordingReward
from refine_testing.traces import read_groups
from refine_testing.trl_host import ATTEMPT, questions, recorded, trainer_for

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("num_drafts", [4, 2, 7])
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_each_group_gets_n_drafts_once(objective: str, num_drafts: int, tmp_path: Path) -> None:
    """Two groups of G = 4 over two accumulated micro-batches, each used for two iterations: four steps, two batches."""

    class Reward(RecordingReward):
        def __call__(self, *args: Any, **columns: Any) -> list[float | None]:
            group_sizes.append(trainer.num_generations)
            return super().__call__(*args, **columns)

    reward, group_sizes = Reward(), list[int]()
    trainer = trainer_for(
        tmp_path,
        reward,
        questions(8),
        objective=objective,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_iterations=2,
        max_steps=4,
        temperature=0.7,
        top_p=0.9,
        top_k=30,
        repetition_penalty=1.1,
        refine_num_drafts=num_drafts,
    )
    trainer.train()

    rows_of_both = [2 * num_drafts, 8]
    assert [len(call.prompts) for call in trainer.generations] == rows_of_both * 2
    assert [len(call["prompts"]) for call in reward.calls] == rows_of_both * 2
    assert group_sizes == [num_drafts, 4] * 2
    for call, question in zip(trainer.generations[::2], trainer.batches, strict=True):
        asked = [row["prompt"] for row in question.rows[::4]]
        assert call.prompts == [q for q in asked for _ in range(num_drafts)]
    assert all(ATTEMPT in prompt for call in trainer.generations[1::2] for prompt in call.prompts)

    sampling = trainer.generations[0].sampling
    wanted = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 30, "repetition_penalty": 1.1}
    assert {**sampling, **wanted, "max_new_tokens": 10} == sampling
    assert all(call.sampling == sampling for call in trainer.generations)
    assert len({text for both in recorded(reward) for text in both.drafts["completions"]}) > num_drafts
    assert trainer.num_generations == 4


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_the_best_draft_is_the_best_by_the_weighted_sum(objective: str, tmp_path: Path) -> None:
    texts = ["first", "second", "both"]

    def likes_first(completions: list[str], **_: Any) -> list[float]:
        return [{"first": 1.0, "both": 0.8}.get(text, 0.0) for text in completions]

    def likes_second(completions: list[str], **_: Any) -> list[float | None]:
        return [{"first": None, "second": 5.0, "both": 4.0}.get(text, 0.0) for text in completions]

    trainer = trainer_for(
        tmp_path,
        [likes_first, likes_second],
        questions(4),
        objective=objective,
        script=lambda prompt, row: "refined" if ATTEMPT in prompt else texts[row % 3],
        reward_weights=[2.0, 0.25],
        max_steps=1,
        refine_num_drafts=3,
        refine_trace_dir=str(tmp_path),
        refine_trace_texts=True,
    )
    trainer.train()
    for group in read_groups(tmp_path):
        # 2 * 1 (the other one does not apply), 0.25 * 5, 2 * 0.8 + 0.25 * 4
        assert [draft["reward"] for draft in group["drafts"]] == pytest.approx([2.0, 1.25, 2.6])
        assert group["draft_text"] == "both"


@pytest.mark.parametrize(
    ("rewards", "chosen"),
    [([0.0, 1.0, 1.0, 0.5], "draft 1"), ([0.0, 0.0, 0.0, 0.0], "draft 0"), ([-3.0, -1.0, -2.0, -1.0], "draft 1")],
    ids=["two at the top", "all zero", "negative"],
)
def test_of_equal_drafts_the_first_is_taken(rewards: list[float], chosen: str, tmp_path: Path) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [rewards[int(text[-1])] if text.startswith("draft") else 0.0 for text in completions]

    trainer = trainer_for(
        tmp_path,
        reward,
        questions(4),
        script=lambda prompt, row: "refined" if ATTEMPT in prompt else f"draft {row % 4}",
        max_steps=1,
        refine_num_drafts=4,
    )
    trainer.train()
    assert all(f"\n\n{chosen}\n\n" in prompt for prompt in trainer.batches[0].prompts(trainer.processing_class))
