"""Contract 2: a refinement is paid for what it says, never for the draft in its prompt. With TRL's own rewards."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from refine_testing.rewards import RecordingReward, text_of
from refine_testing.tiny import tiny_llama, tiny_reward_model, tiny_tokenizer
from refine_testing.traces import read_groups
from refine_testing.trl_host import ATTEMPT, chats, logged, questions, record_generation, trainer_for, unpadded
from transformers import LlamaForSequenceClassification
from trl import GRPOTrainer
from trl.rewards import accuracy_reward, think_format_reward

oldest = pytest.mark.oldest

RIGHT, WRONG = r"\boxed{4}", r"\boxed{5}"


def _one_right_draft(prompt: str, row: int) -> str:
    """Draft 1 of every group is right. Of the refinements, which all see it, only the last of every group is."""
    return RIGHT if row % 4 == (3 if ATTEMPT in prompt else 1) else WRONG


@oldest
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_accuracy_reward_pays_the_refinement_alone(objective: str, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    trainer = trainer_for(
        tmp_path,
        accuracy_reward,
        chats(8, solution=["$4$"] * 8),
        objective=objective,
        script=_one_right_draft,
        max_completion_length=16,
        max_steps=1,
        refine_num_drafts=4,
        refine_trace_dir=str(tmp_path),
    )
    trainer.train()

    assert all(f"{ATTEMPT}\n\n{RIGHT}\n\n" in prompt for prompt in trainer.batches[0].prompts(trainer.processing_class))
    for group in read_groups(tmp_path):
        assert [draft["reward"] for draft in group["drafts"]] == [0, 1, 0, 0]
        assert [refinement["reward"] for refinement in group["refinements"]] == [0, 0, 0, 1]
    assert list(trainer._logs["rewards"]["accuracy_reward"]) == [0, 0, 0, 1] * 2
    assert logged(trainer, "rewards/accuracy_reward/mean") == [0.25]
    advantages = trainer.batches[0].output["advantages"].view(2, 4)
    assert (advantages[:, 3] > 0).all()
    assert (advantages[:, :3] < 0).all()


@oldest
def test_think_format_reward_pays_the_refinement_alone(tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path,
        think_format_reward,
        chats(8),
        script=lambda prompt, row: "plainly 4" if ATTEMPT in prompt else "<think>a</think>4",
        max_completion_length=32,
        max_steps=1,
        refine_num_drafts=2,
    )
    trainer.train()
    assert logged(trainer, "refine/draft_reward_best") == [1.0]
    assert logged(trainer, "rewards/think_format_reward/mean") == [0.0]


@oldest
def test_shipped_rewards_are_summed_with_their_weights_for_drafts_and_refinements(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    drafts = [WRONG, f"<think>a</think>{WRONG}", RIGHT, "nothing"]
    trainer = trainer_for(
        tmp_path,
        [accuracy_reward, think_format_reward],
        chats(8, solution=["$4$"] * 8),
        script=lambda prompt, row: f"<think>b</think>{WRONG}" if ATTEMPT in prompt else drafts[row % 4],
        max_completion_length=32,
        max_steps=1,
        reward_weights=[0.5, 2.0],
        refine_trace_dir=str(tmp_path),
    )
    trainer.train()
    for group in read_groups(tmp_path):
        assert [draft["reward"] for draft in group["drafts"]] == [0, 2, 0.5, 0]
        assert group["selected"] == 1
        assert {refinement["reward"] for refinement in group["refinements"]} == {2}


@oldest
@pytest.mark.parametrize("data", [questions, chats], ids=["plain", "chat"])
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_rewards_see_the_question_of_the_data_set(objective: str, data: Any, tmp_path: Path) -> None:
    class Leaky(RecordingReward):
        """Pays if the answer is anywhere in the conversation: it would pay every refinement that is given q'."""

        def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
            super().__call__(prompts, completions, **columns)
            return [float(RIGHT in f"{p}{text_of(c)}") for p, c in zip(prompts, completions, strict=True)]

    reward = Leaky()
    dataset = data(8, label=[f"label {i}" for i in range(8)])
    trainer = trainer_for(
        tmp_path,
        reward,
        dataset,
        objective=objective,
        script=lambda prompt, row: WRONG if ATTEMPT in prompt else RIGHT,
        max_completion_length=16,
        refine_num_drafts=2,
    )
    trainer.train()
    labels = {str(row["prompt"]): row["label"] for row in dataset}
    assert [len(call["prompts"]) for call in reward.calls] == [4, 8, 4, 8]
    for call in reward.calls:
        assert [labels[str(prompt)] for prompt in call["prompts"]] == call["label"]
    assert logged(trainer, "refine/draft_reward_mean") == [1.0, 1.0]
    assert logged(trainer, "refine/refinement_reward") == logged(trainer, "reward") == [0.0, 0.0]


@oldest
@pytest.mark.parametrize("data", [questions, chats], ids=["plain", "chat"])
def test_a_reward_model_reads_q_and_the_refinement(data: Any, tmp_path: Path) -> None:
    tokenizer, read = tiny_tokenizer(), []

    class Listening(LlamaForSequenceClassification):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any) -> Any:
            read.append([tokenizer.decode(ids) for ids in unpadded(input_ids, attention_mask)])
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)

    model = tiny_reward_model(kind=Listening)
    trainer = trainer_for(
        tmp_path,
        model,
        data(8),
        script=lambda prompt, row: "refined" if ATTEMPT in prompt else "draft",
        more={"reward_processing_classes": [tokenizer]},
        max_steps=1,
        refine_num_drafts=2,
    )
    trainer.train()
    drafts, refinements = read
    assert len(drafts) == 4
    assert len(refinements) == 8
    for texts, said in ((drafts, "draft"), (refinements, "refined")):
        for text in texts:
            assert text.startswith(("Question", "<|im_start|>user\nQuestion"))
            assert said in text
            assert ATTEMPT not in text
    assert logged(trainer, "refine/refined_share") == [1.0]


@pytest.mark.skipif(
    "gather_object(prompts_text)" in inspect.getsource(GRPOTrainer._generate_and_score_completions),
    reason="this TRL (seen in 1.0 and 1.9) fills the table with what it decodes from the trained ids, which is q'",
)
@pytest.mark.parametrize("data", [questions, chats], ids=["plain", "chat"])
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_the_table_of_completions_shows_q(objective: str, data: Any, tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path,
        RecordingReward(),
        data(8),
        objective=objective,
        script=lambda prompt, row: "refined" if ATTEMPT in prompt else "draft",
        log_completions=True,
        max_steps=1,
        refine_num_drafts=2,
    )
    trainer.train()
    rows = trainer.batches[0].rows
    assert list(trainer._logs["prompt"]) == [row["prompt"] for row in rows]
    assert [text_of(completion) for completion in trainer._logs["completion"]] == ["refined"] * 8
    for file in (tmp_path / "completions").glob("*.parquet"):
        import pandas

        table = pandas.read_parquet(file)
        assert len(table) == 8
        assert not any(ATTEMPT in str(prompt) for prompt in table["prompt"])


@oldest
def test_a_prompt_that_already_looks_like_q_prime_is_refined_as_any_other(tmp_path: Path) -> None:
    """Nothing is recognised by its text: neither stage, nor group."""
    reward = RecordingReward()
    data = questions(4).map(lambda row: {"prompt": f"{row['prompt']}\n\n{ATTEMPT}\n\nold\n\n"})
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    trainer = trainer_for(tmp_path, reward, data, model=model, max_steps=1, refine_num_drafts=2)
    calls = record_generation(model, tokenizer)
    trainer.train()
    assert [call.prompts[0].count(ATTEMPT) for call in calls] == [1, 2]
    assert {prompt.count(ATTEMPT) for call in reward.calls for prompt in call["prompts"]} == {1}
