"""A user's own rollout_func keeps working: it samples drafts from q and refinements from q', and its fields reach the reward."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from refine_testing.rewards import RecordingReward
from refine_testing.trl_runs import appended, best, chat_data, check_refined, make, rendered, trace_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.oldest]


class Rollout:
    """Samples with the policy row by row, as a user's multi-turn loop would, and keeps what it was asked."""

    def __init__(self, environment_turn: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self._environment_turn = environment_turn

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        asked = copy.deepcopy(prompts)
        prompt_ids, completion_ids, masks = [], [], []
        for prompt in prompts:
            text = rendered(trainer, prompt)
            if not isinstance(prompt, str):  # its own conversation, to go on with as it likes
                prompt[-1]["content"] += " And then?"
                prompt.append({"role": "assistant", "content": "?"})
            ids = tokenizer(text=text)["input_ids"]
            sampled = trainer.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=6,
                min_new_tokens=6 if self._environment_turn else None,
                do_sample=True,
                pad_token_id=tokenizer.pad_token_id,
            )[0, len(ids) :].tolist()
            said = tokenizer("ENV")["input_ids"] if self._environment_turn else []
            prompt_ids.append(ids)
            completion_ids.append(sampled[:3] + said + sampled[3:])
            masks.append([1] * len(sampled[:3]) + [0] * len(said) + [1] * len(sampled[3:]))
        ranks = [f"call {len(self.calls)} row {row}" for row in range(len(prompts))]
        self.calls.append({"prompts": asked, "prompt_ids": prompt_ids, "ranks": ranks})
        output: dict[str, Any] = {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": [[0.0] * len(ids) for ids in completion_ids],
            "rank": ranks,
            "phase": f"call {len(self.calls) - 1}",
        }
        return {**output, "env_mask": masks} if self._environment_turn else output


@pytest.mark.parametrize("conversational", [False, True])
def test_it_samples_both_stages(tmp_path: Path, conversational: bool) -> None:
    reward, rollout = RecordingReward(), Rollout()
    phases: list[Any] = []

    def noting(phase: list[str], **call: Any) -> list[float | None]:
        phases.append(set(phase))
        return reward(phase=phase, **call)

    data = {"train_dataset": chat_data()} if conversational else {}
    trainer = make(tmp_path, reward_funcs=noting, rollout_func=rollout, **data)
    trainer.train()
    found = check_refined(trainer, reward, num_batches=2)
    assert [len(call["prompts"]) for call in rollout.calls] == [6, 4, 6, 4]
    for position, batch in enumerate(found):
        drafts, refinements = rollout.calls[2 * position : 2 * position + 2]
        assert drafts["prompts"] == [question for question in batch.questions_P for _ in range(3)]
        refined = [
            appended(question, best(drafts_N)) if best(drafts_N) else question
            for question, drafts_N in zip(batch.questions_P, batch.drafts_PN, strict=True)
        ]
        assert refinements["prompts"] == [prompt for prompt in refined for _ in range(2)]
        # Its lists reach the reward row by row, its scalars in every row; those of drafts do not stay for refinements.
        assert batch.columns[0]["rank"] == drafts["ranks"]
        assert batch.columns[1]["rank"] == refinements["ranks"]
        assert batch.columns[0]["answer"][::3] == batch.columns[1]["answer"][::2]
    assert phases == [{f"call {number}"} for number in range(4)]
    # What it says the prompt ids are is what is trained.
    trained = Counter(
        tuple(ids[mask.bool()].tolist())
        for inputs in trainer.trained
        for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
    )
    assert trained == Counter(tuple(ids) for call in rollout.calls[1::2] for ids in call["prompt_ids"])


def test_what_its_environment_says_is_neither_trained_nor_in_the_draft(tmp_path: Path) -> None:
    """``env_mask`` marks tokens that are not the policy's: they are masked in the loss and left out of the draft."""
    reward, rollout = RecordingReward(), Rollout(environment_turn=True)
    trainer = make(tmp_path, reward_funcs=reward, rollout_func=rollout)
    trainer.train()
    for call in reward.calls:
        assert all("ENV" in completion for completion in call["completions"])
    groups = trace_of(trainer)
    assert len(groups) == 4
    for group in groups:
        assert group["action"] == "refine"
        assert group["draft_text"]
        assert "ENV" not in group["draft_text"]
        assert [draft["num_tokens"] for draft in group["drafts"]] == [6] * 3
        assert [refinement["num_tokens"] for refinement in group["refinements"]] == [6] * 2
        assert group["prompt"] == appended(group["question"], group["draft_text"])
    for inputs in trainer.trained:
        assert (inputs["tool_mask"] == 0).sum(1).tolist() == [3] * 4
