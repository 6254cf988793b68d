"""The modes that fill slots on q and on q': what each row is trained under, which rewards are one group, and the loss.

Expected values come from what the reward function and the sampler were asked, as in test_objective.py. The first N
completions of a group are on q; the others show the best of them, in `on_failure` only where none of them is right, and
a right one of these is trained as an answer to q.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from refine_testing.objective import Row, grpo_advantages, leave_one_out_advantages
from refine_testing.resampled import PayingReward
from refine_testing.rewards import checksum
from refine_testing.tiny import tiny_llama
from refine_testing.traces import rows_of
from refine_testing.trl_host import (
    ATTEMPT,
    TRAINERS,
    Batch,
    logged,
    q_prime_ids,
    questions,
    trainer_for,
    unpadded,
    weights_of,
)
from refine_testing.trl_loss import (
    EPSILON,
    LENGTH,
    WithGradients,
    assert_clipping_mattered,
    compare_loss,
    keys_of,
)

from refine_wrapper.core.trace import read_trace
from refine_wrapper.errors import ConfigError

pytestmark = pytest.mark.oldest

S, N, P = 4, 2, 4
RIGHT = 1.0


def _pay(prompt: str, text: str, columns: dict[str, Any]) -> float:
    """A third of random texts is right."""
    value = checksum(text)
    return RIGHT if value > 0.66 else value / 2


@dataclass
class Expected:
    """A batch from the calls of its two rounds, rows in order.

    Attributes:
        prompts: What each row was sampled on.
        rows: What each row trains, with its prompt.
        rewards: By row.
    """

    prompts: list[list[int]]
    rows: list[Row]
    rewards: list[float]


def _train(
    folder: Path, mode: str, objective: str, resume: Path | None = None, **settings: Any
) -> tuple[Any, PayingReward]:
    """Two batches of four groups, each used twice, over two accumulated micro-batches: eight losses, four steps."""
    host = "rloo" if objective == "rloo" else "grpo"
    reward = PayingReward(pay=_pay)
    loss_type = {} if host == "rloo" else {"loss_type": objective}
    layout: dict[str, Any] = {
        "num_generations": S,
        "per_device_train_batch_size": S * P // 2,
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
        "max_steps": 4,
        "max_completion_length": LENGTH,
        "learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
        "epsilon": EPSILON,
        "refine_mode": mode,
        "refine_num_drafts": N,
        "refine_trace_dir": str(folder / "trace"),
    }
    # With an adapter not all weights have gradients to compare.
    base = None if "more" in settings else type("WithGradients", (WithGradients, TRAINERS[host][0]), {})
    # A resumed run must not start at the first row of an epoch, which TRL's sampler shuffles as the first one.
    count = 16 if resume or "save_steps" in settings else 8
    data = questions(count, number=list(range(count)))
    trainer = trainer_for(folder, reward, data, objective=host, base=base, **{**layout, **loss_type, **settings})
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, reward


def _expected(trainer: Any, mode: str, first: dict[str, Any], second: dict[str, Any]) -> Expected:
    found = Expected([], [], [])
    paid = [_pay("", text, {}) for text in first["completions"]], [_pay("", t, {}) for t in second["completions"]]
    for group in range(len(first["prompts"]) // N):
        early = range(group * N, group * N + N)
        late = range(group * (S - N), (group + 1) * (S - N))
        question = first["prompts"][early[0]]
        assert {first["prompts"][row] for row in early} == {second["prompts"][row] for row in late} == {question}
        q_ids = trainer.processing_class(text=question)["input_ids"]
        best = max(early, key=lambda row: (paid[0][row], -row))
        shows = mode == "joint" or all(paid[0][row] < RIGHT for row in early)
        shown = q_prime_ids(trainer.processing_class, question, first["completions"][best].strip()) if shows else q_ids
        for row in early:
            found.prompts.append(q_ids)
            found.rows.append(Row(q_ids, list(first["completion_ids"][row]), 0.0))
            found.rewards.append(paid[0][row])
        for row in late:
            as_answer_to_q = mode == "on_failure" and paid[1][row] == RIGHT
            found.prompts.append(shown)
            found.rows.append(Row(q_ids if as_answer_to_q else shown, list(second["completion_ids"][row]), 0.0))
            found.rewards.append(paid[1][row])
    return found


def _sampled_on(trainer: Any, number: int) -> list[str]:
    """The prompts of a batch's two calls of the sampler, in the order of the batch's rows."""
    first, second = (call.prompts for call in trainer.generations[2 * number : 2 * number + 2])
    rows: list[str] = []
    for group in range(len(first) // N):
        rows += first[group * N : (group + 1) * N] + second[group * (S - N) : (group + 1) * (S - N)]
    return rows


@pytest.mark.parametrize("objective", ["grpo", "dapo", "rloo"])
@pytest.mark.parametrize("mode", ["joint", "on_failure"])
def test_rows_groups_and_loss(mode: str, objective: str, tmp_path: Path) -> None:
    trainer, reward = _train(tmp_path, mode, objective)
    assert [len(call["prompts"]) for call in reward.calls] == [N * P, (S - N) * P] * 2, "each row is scored once"
    kinds: set[tuple[bool, bool]] = set()
    ratios: list[torch.Tensor] = []
    for number, batch in enumerate(trainer.batches):
        expected = _expected(trainer, mode, *reward.calls[2 * number : 2 * number + 2])
        texts = [trainer.processing_class.decode(ids) for ids in expected.prompts]
        assert _sampled_on(trainer, number) == texts
        _check_batch(batch, expected, objective)
        kinds |= {
            (ATTEMPT in text, ids == row.prompt_ids)
            for text, ids, row in zip(texts, expected.prompts, expected.rows, strict=True)
        }
        rows = {(tuple(row.prompt_ids), tuple(row.completion_ids)): row for row in expected.rows}
        assert len(rows) == S * P, "two rows are alike, so the rows of the loss cannot be told apart"
        used: list[Any] = []
        for step in range(4 * number, 4 * number + 4):
            ratios.append(compare_loss(trainer, objective, step, rows, batch.weights, accumulated=2))
            used += keys_of(trainer.steps[step])
        assert sorted(used) == sorted([*rows] * 2)
    assert_clipping_mattered(ratios)
    wanted = {(False, True), (True, True)}
    assert kinds == (wanted if mode == "joint" else {*wanted, (True, False)}), "a case did not occur"


def _check_batch(batch: Batch, expected: Expected, objective: str) -> None:
    output = batch.output
    assert batch.prompt_ids == [row.prompt_ids for row in expected.rows]
    assert unpadded(output["completion_ids"], output["completion_mask"]) == [r.completion_ids for r in expected.rows]
    advantages = (leave_one_out_advantages if objective == "rloo" else grpo_advantages)(expected.rewards, S)
    assert output["advantages"].tolist() == pytest.approx(advantages, abs=1e-5)
    for row, advantage in zip(expected.rows, advantages, strict=True):
        row.advantage = advantage


@pytest.mark.parametrize("mode", ["joint", "on_failure"])
def test_the_hosts_metrics_speak_of_the_whole_batch_once(mode: str, tmp_path: Path) -> None:
    trainer, reward = _train(tmp_path, mode, "grpo", num_iterations=1, max_steps=2)
    for number in range(2):
        calls = reward.calls[2 * number : 2 * number + 2]
        lengths = [len(ids) for call in calls for ids in call["completion_ids"]]
        rewards = [value for call in calls for value in reward.paid(call)]
        assert logged(trainer, "completions/mean_length")[number] == pytest.approx(sum(lengths) / len(lengths))
        assert logged(trainer, "completions/max_length")[number] == max(lengths)
        assert logged(trainer, "reward")[number] == pytest.approx(sum(rewards) / len(rewards), rel=1e-5)
        assert logged(trainer, "refine/completions")[number] == S * P
    sampled = sum(len(ids) for call in reward.calls for ids in call["completion_ids"])
    prompts = sum(len(trainer.processing_class(text=p)["input_ids"]) for g in trainer.generations for p in g.prompts)
    assert logged(trainer, "num_tokens")[-1] == sampled + prompts
    on_question = sum(logged(trainer, "refine/trained_on_question"))
    assert on_question == sum(on for group in read_trace(tmp_path / "trace") for _, on, _ in group["slots"])
    assert (on_question > 0) == (mode == "on_failure")


OTHER_MODES: dict[str, dict[str, Any]] = {
    "rescue": {"refine_mode": "rescue"},
    "adaptive": {"refine_mode": "adaptive"},
    "alternate": {"refine_mode": "alternate"},
    "alternate, paper": {"refine_mode": "alternate", "refine_mode_options": {"inner": "paper"}},
    "rounds": {"refine_mode": "rounds"},
    "rounds, joint": {"refine_mode": "rounds", "refine_mode_options": {"inner": "joint"}, "refine_num_drafts": 1},
    "paper, under q": {"refine_mode": "paper", "refine_train_under": "question_if_right"},
    "half of the groups": {"refine_mode": "joint", "refine_refine_share": 0.5},
    "dynamic sampling": {"refine_mode": "on_failure", "refine_dynamic_sampling": 2},
    "kl": {"refine_mode": "on_failure", "beta": 0.1},
    "one generation for two steps": {"refine_mode": "on_failure", "steps_per_generation": 4},
}


def _check_rows(trainer: Any, groups: list[dict[str, Any]], objective: str, *, with_kl: bool = False) -> None:
    """Each row that was trained: prompt and completion are those of its slot, the advantage is its group's."""
    tokenizer = trainer.processing_class
    rows = rows_of(groups)
    rewards = [reward for _, _, reward in rows]
    advantages = (leave_one_out_advantages if objective == "rloo" else grpo_advantages)(rewards, S)
    for batch in trainer.batches:
        output = batch.output
        for ids, completion, advantage in zip(
            batch.prompt_ids,
            unpadded(output["completion_ids"], output["completion_mask"]),
            output["advantages"].tolist(),
            strict=True,
        ):
            (prompt, text, _), expected = rows.pop(0), advantages.pop(0)
            assert tokenizer.decode(ids) == prompt
            assert tokenizer.decode(completion, skip_special_tokens=True) == text
            if not with_kl or objective != "rloo":  # RLOO takes the KL out of the reward
                assert advantage == pytest.approx(expected, abs=1e-5)
    assert not rows


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
@pytest.mark.parametrize("name", OTHER_MODES)
def test_every_row_is_what_the_trace_says(name: str, objective: str, tmp_path: Path) -> None:
    """Two steps; the trace's slots name prompt and completion of each row that is trained."""
    settings = {"num_iterations": 1, "max_steps": 2, "refine_trace_texts": True, **OTHER_MODES[name]}
    before = weights_of(tiny_llama())
    trainer, _ = _train(tmp_path, "", objective, **settings)
    assert trainer.state.global_step == 2
    groups = [group for group in read_trace(tmp_path / "trace") if not group.get("replaced")]
    assert any(group["refined"] for group in groups), "nothing was refined: the run proves nothing"
    _check_rows(trainer, groups, objective, with_kl="kl" in name)
    assert any(not torch.equal(tensor, before[n]) for n, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("mode", ["joint", "on_failure"])
def test_with_lora(mode: str, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    settings = {"num_iterations": 1, "max_steps": 2, "refine_trace_texts": True, "more": {"peft_config": lora}}
    trainer, _ = _train(tmp_path, mode, "grpo", **settings)
    groups = read_trace(tmp_path / "trace")
    assert any(group["refined"] for group in groups)
    _check_rows(trainer, groups, "grpo")


@pytest.mark.parametrize("mode", ["joint", "on_failure"])
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(mode: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_iterations": 1, "max_steps": 4, "refine_trace_texts": True}
    saves = {"save_strategy": "steps", "save_steps": 2}
    first, _ = _train(tmp_path / "first", mode, "grpo", **saves, **settings)
    checkpoint = tmp_path / "first" / "checkpoint-2"
    resumed, _ = _train(tmp_path / "resumed", mode, "grpo", checkpoint, **settings)
    assert resumed.state.global_step == 4
    whole, rest = (rows_of(read_trace(tmp_path / name / "trace")) for name in ("first", "resumed"))
    assert rest == whole[len(whole) // 2 :]
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refine_mode": "joint", "refine_num_drafts": S}, r"num_drafts must be from 1 to 3.*--refine.num_drafts 2"),
        ({"refine_mode": "on_failure", "refine_draft_ahead": True}, r"draft_ahead samples .* mode 'on_failure' trains"),
        ({"refine_mode": "alternate", "refine_draft_ahead": True}, r"Leave draft_ahead out, or use mode=paper"),
    ],
)
def test_what_cannot_be_carried_is_refused_at_start(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_for(tmp_path, PayingReward(), questions(4), num_generations=S, **{"refine_num_drafts": N, **settings})


def test_the_screen_says_that_shapes_are_the_plain_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_for(
        tmp_path,
        PayingReward(),
        questions(4),
        num_generations=S,
        refine_mode="joint",
        refine_num_drafts=N,
        refine_match_budget=True,
    )
    assert trainer.num_generations == S, "nothing is sampled beside the group, so nothing shrinks"
    screen = capsys.readouterr().err
    assert f"{S} completions per prompt, all of them trained, as many as the plain run samples" in screen
    assert "mode=joint" in screen
