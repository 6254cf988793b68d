"""Contract 12: the loss is the formula of METHOD.md on refinements under q', for each objective the host has.

Expected values come from recorded rewards, token ids and weights alone (refine_testing/objective.py): the advantages, the
prompts q', the old policy and the ratios are computed here, row by row, and compared with each call of the host's loss
and with its gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from refine_testing.objective import Row, grpo_advantages, leave_one_out_advantages, token_logps
from refine_testing.resampled import PayingReward, flat_for, merged
from refine_testing.rewards import RecordingReward
from refine_testing.tiny import tiny_llama
from refine_testing.trl_host import (
    TRAINERS,
    Recorded,
    logged,
    q_prime_ids,
    questions,
    recorded,
    trainer_for,
    weights_of,
)
from refine_testing.trl_loss import (
    EPSILON,
    LENGTH,
    Key,
    WithGradients,
    assert_clipping_mattered,
    compare_loss,
    keys_of,
)
from trl import GRPOTrainer

pytestmark = pytest.mark.oldest

G, N = 4, 3


def _trained(folder: Path, objective: str, reward: Any, data: Dataset, **settings: Any) -> Any:
    host = "rloo" if objective == "rloo" else "grpo"
    loss_type = {} if host == "rloo" else {"loss_type": objective}
    layout = {
        "num_generations": G,
        "num_iterations": 2,
        "max_completion_length": LENGTH,
        "learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
        "epsilon": EPSILON,
        "refine_num_drafts": N,
    }
    base = type("WithGradients", (WithGradients, TRAINERS[host][0]), {})
    trainer = trainer_for(folder, reward, data, objective=host, base=base, **{**layout, **loss_type, **settings})
    trainer.train()
    return trainer


def _rows(trainer: Any, both: Recorded, advantages: Sequence[float], skipped: Sequence[int] = ()) -> dict[Key, Row]:
    """What a batch trains, from what the reward saw: refinements under q' of the best draft. Skipped groups stay on q."""
    rows = {}
    for number, (question, ids) in enumerate(
        zip(both.refinements["prompts"], both.refinements["completion_ids"], strict=True)
    ):
        trained = number // G not in skipped
        tokenizer = trainer.processing_class
        prompt_ids = (
            q_prime_ids(tokenizer, question, both.best_text(number // G, N))
            if trained
            else tokenizer(text=question)["input_ids"]
        )
        completion_ids = list(map(int, ids)) if trained else []
        key = tuple(prompt_ids), tuple(completion_ids)
        assert key not in rows or not trained, "two rows are alike, so the rows of the loss cannot be told apart"
        rows[key] = Row(prompt_ids, completion_ids, advantages[number], trained)
    return rows


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("grpo", {}),
        ("grpo", {"beta": 0.2, "use_bias_correction_kl": False}),
        ("dr_grpo", {"scale_rewards": "none"}),
        ("dapo", {}),
        ("bnpo", {}),
        ("rloo", {}),
        ("rloo", {"beta": 0.2}),
    ],
    ids=["grpo", "grpo with KL", "dr_grpo", "dapo", "bnpo", "rloo", "rloo with KL"],
)
def test_the_loss_is_the_formula_on_refinements(objective: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Two batches of two groups, each used twice, over two accumulated micro-batches: eight losses, four steps."""
    reward = RecordingReward()
    layout = {"per_device_train_batch_size": G, "gradient_accumulation_steps": 2, "max_steps": 4}
    trainer = _trained(tmp_path, objective, reward, questions(8), **layout, **settings)
    beta, start, model = settings.get("beta", 0.0), weights_of(tiny_llama()), tiny_llama()

    assert len(trainer.steps) == 8
    ratios = []
    for number, both in enumerate(recorded(reward)):
        old, rewards = trainer.batches[number].weights, [float(r) for r in both.rewards if r is not None]
        if objective != "rloo":
            advantages = grpo_advantages(rewards, G, scaled=objective != "dr_grpo")
        else:
            # RLOO takes the KL out of the reward: sum over tokens of log pi_old - log pi_ref.
            for row, one in enumerate(_rows(trainer, both, rewards).values()):
                with torch.no_grad():
                    kl = token_logps(model, old, one) - token_logps(model, start, one)
                rewards[row] -= beta * float(kl.sum())
            advantages = leave_one_out_advantages(rewards, G)
        rows = _rows(trainer, both, advantages)
        used = []
        for step in range(4 * number, 4 * number + 4):
            ratios.append(compare_loss(trainer, objective, step, rows, old, beta=beta, start=start, accumulated=2))
            used += keys_of(trainer.steps[step])
        assert sorted(used) == sorted([*rows] * 2), "not every refinement was trained once per iteration"
    assert_clipping_mattered(ratios)


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "bnpo", "rloo"])
def test_skipped_groups_are_in_no_part_of_the_loss(objective: str, tmp_path: Path) -> None:
    """As the host does with truncated completions: no gradient, no share of a token mean, but one of a mean over rows."""

    class Reward(RecordingReward):
        """No reward applies to the drafts (three a group) of question 1."""

        def __call__(self, *args: Any, **columns: Any) -> list[float | None]:
            paid = super().__call__(*args, **columns)
            if len(paid) == 2 * G:
                return paid
            return [None if number == 1 else value for value, number in zip(paid, columns["number"], strict=True)]

    reward = Reward()
    trainer = _trained(
        tmp_path,
        objective,
        reward,
        questions(2, number=[0, 1]),
        per_device_train_batch_size=2 * G,
        max_steps=2,
        refine_on_no_draft="skip",
        **({"scale_rewards": "none"} if objective == "dr_grpo" else {}),
    )
    (both,) = recorded(reward)
    skipped = both.refinements["number"][::G].index(1)
    rewards = [float(r) for r in both.rewards if r is not None]
    if objective == "rloo":
        advantages = leave_one_out_advantages(rewards, G)
    else:
        advantages = grpo_advantages(rewards, G, scaled=objective != "dr_grpo")
    rows = _rows(trainer, both, advantages, skipped=[skipped])
    ratios = [compare_loss(trainer, objective, step, rows, trainer.batches[0].weights) for step in (0, 1)]
    assert_clipping_mattered(ratios)
    assert logged(trainer, "refine/refined_share") == [0.5]


@pytest.mark.parametrize("num_drafts", [0, N], ids=["plain", "refined"])
@pytest.mark.parametrize("objective", ["grpo", "dapo", "rloo"])
def test_the_loss_is_the_formula_on_groups_drawn_again(objective: str, num_drafts: int, tmp_path: Path) -> None:
    """Of two groups at least one is replaced in each batch; each batch is used twice, over two micro-batches."""
    reward = PayingReward(pay=flat_for(*range(6)))
    trainer = _trained(
        tmp_path,
        objective,
        reward,
        questions(8, number=list(range(8))),
        per_device_train_batch_size=G,
        gradient_accumulation_steps=2,
        max_steps=4,
        refine_num_drafts=num_drafts,
        refine_dynamic_sampling=9,
    )
    batches = merged(reward.calls, reward.paid, group_size=G, limit=9, num_drafts=num_drafts)
    assert [bool(batch.groups) for batch in batches] == [True, True]
    assert not any(batch.kept for batch in batches)
    ratios = []
    for number, batch in enumerate(batches):
        rewards = [float(r) for r in batch.both.rewards if r is not None]
        advantages = leave_one_out_advantages(rewards, G) if objective == "rloo" else grpo_advantages(rewards, G)
        tokenizer, asked = trainer.processing_class, batch.both.refinements
        if num_drafts:
            rows = _rows(trainer, batch.both, advantages)
        else:
            rows = {
                (tuple(ids), tuple(completion)): Row(ids, list(completion), advantage)
                for ids, completion, advantage in zip(
                    tokenizer(text=asked["prompts"])["input_ids"], asked["completion_ids"], advantages, strict=True
                )
            }
        used = []
        for step in range(4 * number, 4 * number + 4):
            ratios.append(compare_loss(trainer, objective, step, rows, trainer.batches[number].weights, accumulated=2))
            used += keys_of(trainer.steps[step])
        assert sorted(used) == sorted([*rows] * 2), "not every row was trained once per iteration"
    assert_clipping_mattered(ratios)


_EVERY = {
    "grpo": {},
    "dr_grpo": {"scale_rewards": "none"},
    "dapo": {"epsilon_high": 0.28, "mask_truncated_completions": True},
    "bnpo": {"scale_rewards": "batch"},
    "cispo": {"epsilon_high": 5.0},
    "sapo": {},
    "luspo": {"importance_sampling_level": "sequence"},
    "vespo": {},
    "grpo as gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
}


@pytest.mark.parametrize("name", _EVERY)
def test_every_loss_type_trains_with_stage_1(name: str, tmp_path: Path) -> None:
    loss_type = name.partition(" ")[0]
    if f'"{loss_type}"' not in inspect.getsource(GRPOTrainer):
        pytest.skip(f"this TRL has no {loss_type}")
    trainer = trainer_for(
        tmp_path,
        RecordingReward(),
        questions(8),
        script=lambda prompt, row: f"text {row}",
        loss_type=loss_type,
        refine_num_drafts=2,
        **_EVERY[name],
    )
    before = weights_of(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 2
    assert logged(trainer, "refine/refined_share") == [1.0, 1.0]
    after = weights_of(trainer.model)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(tensor, before[parameter]) for parameter, tensor in after.items())
