"""Objectives and trainers of veRL, each run for two steps or more with refinement on."""

from __future__ import annotations

from collections import Counter
from math import isfinite
from typing import Any

import pytest
from refine_testing.verl_host import TEMPLATE_IS_IN, Run

pytestmark = pytest.mark.timeout(600)


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
    _check_rows(v0, 2, 3, 2)
    assert Counter(call["index"] for call in v0.calls if call["index"] < 900) == dict.fromkeys(range(6), 4 + 2)
    assert Counter(call["index"] for call in v0.calls if call["index"] >= 900) == {900: 1, 901: 1}
    assert sorted(group["group_id"] for group in v0.groups) == [f"train-{s}-{p}" for s in (1, 2) for p in range(3)]
    assert all(len(group["drafts"]) == 4 and len(group["refinements"]) == 2 for group in v0.groups)


def test_v0_logs_metrics_and_trains_a_critic(v0: Run) -> None:
    for step in (1, 2):
        assert v0.log[step]["refine/groups"] == 3
        assert v0.log[step]["refine/completions"] == 3 * (4 + 2)
        assert v0.log[step]["critic/grad_norm"] > 0


def test_colocate_async(colocate_async: Run) -> None:
    for step in (1, 2, 3):
        rows = Counter(line["uid"].split("_")[0] for line in colocate_async.trained[step])
        assert sorted(rows.values()) == [3] * 4
        assert all(TEMPLATE_IS_IN in line["input"] for line in colocate_async.trained[step])
        assert colocate_async.log[step]["actor/grad_norm"] > 0
    assert sum(log.get("refine/groups", 0) for log in colocate_async.log.values()) >= 3 * 4


def test_the_version_of_the_weights_that_wrote_a_draft_is_in_the_trace(colocate_async: Run) -> None:
    versions: list[Any] = [draft["policy_version"] for group in colocate_async.groups for draft in group["drafts"]]
    assert None not in versions
    assert len(set(map(str, versions))) > 1


def test_launched_by_refine_wrapper_run(launched: Run) -> None:
    _check_rows(launched, 2, 4, 4)  # 8 plain completions became 4 drafts and 4 refinements
    assert Counter(call["index"] for call in launched.calls) == dict.fromkeys(range(8), 4 + 4)
    assert "as many as the plain run samples" in launched.output
    assert launched.output.count("refine-wrapper: on for veRL") == 1
    assert launched.log[1]["refine/completions"] == 4 * 8
