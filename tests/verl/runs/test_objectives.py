"""Objectives and trainers of veRL, each run for two steps or more with refinement on."""

from __future__ import annotations

from collections import Counter
from math import isfinite
from statistics import fmean, stdev
from typing import Any

import pytest
from refine_testing.verl_host import TEMPLATE_IS_IN, Run

from refine_wrapper_verl.objectives import OBJECTIVES
from refine_wrapper_verl.plugin import ADAPTER

pytestmark = pytest.mark.timeout(2000)


def _check_rows(run: Run, steps: int, groups: int, size: int) -> None:
    """Each step trained whole groups of refinements under one q', and moved."""
    for step in range(1, steps + 1):
        of_step = Counter(line["input"] for line in run.trained[step])
        assert sorted(of_step.values()) == [size] * groups
        assert all(TEMPLATE_IS_IN in text for text in of_step)
        assert run.log[step]["actor/grad_norm"] > 0
        assert isfinite(run.log[step]["actor/pg_loss"])


def test_dapo_filters_on_refinement_rewards_and_refills(dapo: Run) -> None:
    _check_rows(dapo, 2, 4, 3)
    for step in (1, 2):
        by_prompt: dict[str, set[float]] = {}
        for line in dapo.trained[step]:
            by_prompt.setdefault(line["input"], set()).add(line["score"])
        assert all(len(scores) > 1 for scores in by_prompt.values())  # a group of equal rewards was evicted
        assert not any("Q0:" in text or "Q2:" in text for text in by_prompt)
    assert dapo.log[1]["training/filter_groups/evicted_samples"] >= 2
    sampled = Counter(group["question"][0]["content"].split(":")[0] for group in dapo.groups)
    assert {"Q0", "Q2"} <= set(sampled)  # they were drafted and refined, then evicted
    assert len(dapo.groups) > 8


def test_v0_keeps_groups_together_on_workers_they_do_not_divide(v0: Run) -> None:
    """4 steps of 3 groups: N + S calls in mode paper, S in joint and on_failure, S + R in rescue."""
    calls = Counter(call["index"] for call in v0.calls if call["index"] < 900)
    assert calls == {number: (6, 4, 4, 6)[number // 3] for number in range(12)}
    assert Counter(call["index"] for call in v0.calls if call["index"] >= 900) == {900: 1, 901: 1}
    assert sorted(group["group_id"] for group in v0.groups) == sorted(
        f"train-{s}-{p}" for s in (1, 2, 3, 4) for p in range(3)
    )


def test_v0_logs_metrics_and_trains_a_critic(v0: Run) -> None:
    for step, completions in ((1, 6), (2, 4), (3, 4), (4, 6)):
        assert v0.log[step]["refine/groups"] == 3
        assert v0.log[step]["refine/completions"] == 3 * completions
        assert v0.log[step]["critic/grad_norm"] > 0


def test_colocate_async(colocate_async: Run) -> None:
    for step in (1, 2, 3):
        rows = Counter(line["uid"].split("_")[0] for line in colocate_async.trained[step])
        assert sorted(rows.values()) == [3] * 4
        assert all(TEMPLATE_IS_IN in line["input"] for line in colocate_async.trained[step])
        assert colocate_async.log[step]["actor/grad_norm"] > 0
    assert sum(log.get("refine/groups", 0) for log in colocate_async.log.values()) >= 3 * 4


def test_the_version_of_the_weights_that_wrote_a_draft_is_in_the_trace(colocate_async: Run) -> None:
    versions: list[Any] = [sample["policy_version"] for group in colocate_async.groups for sample in group["samples"]]
    assert None not in versions
    assert len(set(map(str, versions))) > 1


def test_launched_by_refine_wrapper_run(launched: Run) -> None:
    _check_rows(launched, 2, 4, 4)  # 8 plain completions became 4 drafts and 4 refinements
    assert Counter(call["index"] for call in launched.calls) == dict.fromkeys(range(8), 4 + 4)
    assert "as many as the plain run samples" in launched.output
    assert launched.output.count("refine-wrapper: on for veRL") == 1


def test_what_an_ablation_adds_leaves_a_model_and_events(launched: Run) -> None:
    """The flags of ``Adapter.launch``: TensorBoard files with our names beside the host's, and a model to load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    launch: Any = ADAPTER.launch
    for step in (1, 2):
        log = launched.log[step]
        assert log["refine/completions"] == 4 * 8
        assert log["refine/groups"] == 4
        assert all(isfinite(log[launch.train_prefix + tag]) for tag in launch.metrics.values())
    [folder] = [path for pattern in launch.models for path in (launched.folder / "trained").glob(pattern)]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    before: Any = AutoModelForCausalLM.from_pretrained(launched.folder / "model")
    assert AutoTokenizer.from_pretrained(folder).chat_template
    old = before.state_dict()
    moved = [float((value.float() - old[name]).abs().max()) for name, value in model.state_dict().items()]
    assert max(moved) > 1e-3
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_refine_metrics_are_the_same_in_each_tracker(launched: Run) -> None:
    """What TensorBoard holds is what the trace says."""
    for step in (1, 2):
        samples = [sample for group in launched.groups if group["step"] == step for sample in group["samples"]]
        drafts = [sample["num_tokens"] for sample in samples if sample["round"] == 0]
        assert launched.log[step]["refine/draft_tokens"] == sum(drafts)


# Objective -> the run that takes it by its name (refine.objective=NAME), and one of its steps.
TRAINED_IN = {
    "grpo": ("grpo", 1),
    "dapo": ("dapo", 1),
    "ppo": ("v0", 1),
    "reinforce++-baseline": ("colocate_async", 1),
    "rloo": ("launched", 1),
    "reinforce++": ("small_example", 1),
    "dr_grpo": ("one_by_one", 1),
    "gspo": ("one_by_one", 2),
    "sapo": ("one_by_one", 3),
    "cispo": ("one_by_one", 4),
    "gpg": ("one_by_one", 5),
    "opo": ("one_by_one", 6),
}


@pytest.fixture(scope="session")
def runs(
    grpo: Run, dapo: Run, v0: Run, colocate_async: Run, launched: Run, small_example: Run, one_by_one: Run
) -> dict[str, Run]:
    return {
        "grpo": grpo,
        "dapo": dapo,
        "v0": v0,
        "colocate_async": colocate_async,
        "launched": launched,
        "small_example": small_example,
        "one_by_one": one_by_one,
    }


def test_each_objective_takes_a_real_optimizer_step() -> None:
    """Whoever registers an objective for veRL names the run that trains it."""
    assert {name for name, objective in OBJECTIVES.items() if objective.settings is not None} == set(TRAINED_IN)


@pytest.mark.parametrize("name", TRAINED_IN)
def test_an_objective_by_name_is_trained(runs: dict[str, Run], name: str) -> None:
    in_run, step = TRAINED_IN[name]
    run = runs[in_run]
    said = f"step {step} trains {name}\n" if in_run == "one_by_one" else f"objective={name}"
    assert said in run.output.replace("\r", "\n")
    log = run.log[step]
    assert isfinite(log["actor/pg_loss"])
    assert isfinite(log["actor/grad_norm"])
    if in_run != "small_example":  # a random model rarely sums right: all its rewards may be equal
        assert log["actor/grad_norm"] > 0
    assert log["refine/groups"] > 0


def test_advantages_are_those_of_the_objective_of_the_step(one_by_one: Run) -> None:
    """In a batch whose objective changes each step: the host's formulas on the rewards in its own dump."""
    names = {step: name for name, (run, step) in TRAINED_IN.items() if run == "one_by_one"}
    for step, name in names.items():
        groups = [[line["score"] for line in lines] for lines in one_by_one.trained_groups(step).values()]
        centred = [[score - fmean(scores) for score in scores] for scores in groups]
        if name == "dr_grpo":
            expected = max(map(max, centred))
        elif name in ("gspo", "sapo", "cispo"):
            expected = max(max(c) / (stdev(c) + 1e-6) for c in centred)
        else:
            continue
        assert one_by_one.log[step]["critic/advantages/max"] == pytest.approx(expected, rel=1e-4)
