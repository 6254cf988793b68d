"""Modes on OpenRLHF's own trainer: which samples fill the slots, under which prompt each row is trained, with which advantage.

Two or more optimizer steps each, all of OpenRLHF in one process (refine_testing.openrlhf_in_process). What is trained is read
from the policy's replay buffer, and compared with what the mode's definition and the reward's own log say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from refine_testing.openrlhf_runs import LAUNCHER, NOTE, Run, Workshop, by_name
from safetensors.torch import load_file

# Of starting on a machine that others use, not of what is tested.
pytestmark = pytest.mark.timeout(900)

N, S, NUM_GROUPS = 2, 6, 8

REWARD = '''
import json, threading
import torch

calls, lock = {{}}, threading.Lock()

def reward_func(queries, prompts, labels):
    """For odd labels the first two answers to a prompt are wrong, later ones right in turn; for even ones all in turn."""
    [query], [prompt], [label] = queries, prompts, labels
    with lock:
        number = calls[prompt] = calls.get(prompt, 0) + 1
        right = number % 2 == 1 and not (number <= 2 and int(label) % 2)
        value = 1.0 if right else sum(query.encode()) % 5 / 10
        with open({log!r}, "a") as file:
            file.write(json.dumps({{"query": query, "prompt": prompt, "label": label, "reward": value}}) + chr(10))
    return {{"rewards": torch.tensor([value]), "scores": torch.tensor([value]), "extra_logs": {{}}}}
'''


def train(workshop: Workshop, mode: str, objective: str, *refine: str, **changed: Any) -> Run:
    """Two rollouts of four prompts; each prompt is once in the data."""
    folder = workshop.folder()
    (folder / "reward.py").write_text(REWARD.format(log=str(folder / "rewards.jsonl")))
    rows = [{"input": f"What is {n}?", "label": str(n), "datasource": "sums"} for n in range(NUM_GROUPS)]
    flags = workshop.flags(
        folder,
        **{
            "rollout__n_samples_per_prompt": S,
            "rollout__batch_size": NUM_GROUPS // 2,
            "train__batch_size": NUM_GROUPS // 2 * S,
            "data__prompt_dataset": workshop.write("distinct.jsonl", rows),
            "data__max_samples": NUM_GROUPS,
            **changed,
        },
    )
    settings = (f"--refine.mode={mode}", f"--refine.num_drafts={N}", objective, *workshop.traced(folder))
    run = workshop.run_in_process(folder, *LAUNCHER, *flags, *settings, *refine)
    assert run.code == 0, run.screen[-4000:]
    return run


def assert_trained(run: Run, workshop: Workshop, advantages: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Every row, its prompt and its advantage; each answer was paid once, as an answer to q; the weights moved."""
    expected, got = run.expected_rows(advantages), run.trained_rows(workshop.tokenizer)
    assert [row[:2] for row in got] == [row[:2] for row in expected]
    assert [row.advantage for row in got] == pytest.approx([row.advantage for row in expected], abs=1e-4)
    assert len(run.steps) >= 2
    paid = sorted((call["prompt"], round(call["reward"], 4)) for call in run.calls)
    noted = [(group["question"], round(sample["reward"], 4)) for group in run.groups for sample in group["samples"]]
    assert paid == sorted(noted)
    assert not any(NOTE in call["query"] for call in run.calls)
    before, after = load_file(f"{workshop.model}/model.safetensors"), run.weights()
    assert any(not torch.equal(before[name].to(after[name].dtype), after[name]) for name in before)
    assert all(torch.isfinite(value.float()).all() for value in after.values())


def grpo(rewards: torch.Tensor) -> torch.Tensor:
    return (rewards - rewards.mean()) / (rewards.std() + 1e-9)


def rloo(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def dr_grpo(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean()


def rounds_of(group: dict[str, Any]) -> list[tuple[int, str, bool]]:
    return [(r["size"], r["use"], r["show"] is not None) for r in group["rounds"]]


def test_joint(workshop: Workshop) -> None:
    """N slots on q and the others on q' are one group of S: the shapes and completions of the plain run."""
    run = train(workshop, "joint", by_name("grpo"))
    assert_trained(run, workshop, grpo)
    assert f"{S} completions per prompt, all of them trained, as many as the plain run samples" in run.screen
    assert len(run.groups) == NUM_GROUPS
    for group in run.groups:
        assert rounds_of(group) == [(N, "fill", False), (S - N, "fill", True)]
        rewards = [sample["reward"] for sample in group["samples"]]
        assert group["rounds"][1]["show"] == rewards.index(max(rewards[:N]))
        assert group["slots"] == [[index, False, True] for index in range(S)]
    for step in run.steps:
        assert step["refine/completions"] == NUM_GROUPS // 2 * S == step["rollout/num_samples"]
        assert step["refine/refined_share"] == 1
    assert {row.prompt.count(NOTE) for row in run.trained_rows(workshop.tokenizer)} == {0, 1}


def test_on_failure(workshop: Workshop) -> None:
    """Only groups whose first N are all wrong get refinements, and their right ones are trained as answers to q."""
    run = train(workshop, "on_failure", by_name("dr_grpo"))
    assert_trained(run, workshop, dr_grpo)
    assert len(run.groups) == NUM_GROUPS
    refined = [group for group in run.groups if group["refined"]]
    assert len(refined) == NUM_GROUPS // 2
    for group in run.groups:
        wrong = all(sample["reward"] < 1 for sample in group["samples"][:N])
        assert group["refined"] == wrong
        assert rounds_of(group) == [(N, "fill", False), (S - N, "fill", wrong)]
        for sample, (_, on_question, _) in zip(group["samples"], group["slots"], strict=True):
            assert on_question == (sample["shown"] is not None and sample["reward"] >= 1)
    moved = sum(on_question for group in run.groups for _, on_question, _ in group["slots"])
    assert moved == NUM_GROUPS // 2 * (S - N) // 2
    assert sum(step["refine/trained_on_question"] for step in run.steps) == moved
    assert sum(step["refine/repair_rate"] for step in run.steps) > 0


def test_rescue_asynchronous_with_partial_rollout(workshop: Workshop) -> None:
    """The plain run's group, then more for the groups that failed: right ones take slots, whatever member sampled them."""
    run = train(
        workshop,
        "rescue",
        by_name("rloo"),
        train__async_enable=True,
        train__partial_rollout_enable=True,
        train__colocate_all=None,
        rollout__n_samples_per_prompt=N,
        rollout__batch_size=2,
        rollout__vllm_generate_batch_size=4,
        train__batch_size=2 * N,
    )
    assert_trained(run, workshop, rloo)
    rescued = [group for group in run.groups if group["refined"]]
    assert len(rescued) == NUM_GROUPS // 2
    for group in rescued:
        assert rounds_of(group) == [(N, "fill", False), (N, "take", True)]
        [right] = [index for index in (N, N + 1) if group["samples"][index]["reward"] >= 1]
        assert group["slots"] == [[0, False, True], [right, True, True]]
    # Two batches of prompts are sampled at once, and each group is counted with its own.
    assert len(run.steps) == NUM_GROUPS // 2
    assert sum(step["refine/completions"] for step in run.steps) == len(run.calls)
    assert [step["refine/groups"] for step in run.steps] == [2] * (NUM_GROUPS // 2)


@pytest.mark.parametrize(
    ("mode", "options"), [("rounds", "{rounds: 2, inner: joint}"), ("alternate", "{inner: on_failure}")]
)
def test_other_modes(mode: str, options: str, workshop: Workshop) -> None:
    run = train(workshop, mode, by_name("grpo"), f"--refine.mode_options={options}")
    assert_trained(run, workshop, grpo)
    for group in run.groups:
        if mode == "rounds":
            assert len(group["rounds"]) in (2, 3)  # over early where a sample is right
        else:
            assert not group["refined"] or group["step"] % 2 == 1
    assert any(group["refined"] for group in run.groups)


def test_adaptive_learns_in_the_engine(workshop: Workshop) -> None:
    run = train(workshop, "adaptive", by_name("reinforce++-baseline"))
    assert len(run.steps) == 2
    arms = [r.get("arm") for group in run.groups for r in group["rounds"] if r.get("arm")]
    assert len(arms) == NUM_GROUPS // 2
    assert set(arms) <= {"fresh", "refined"}
