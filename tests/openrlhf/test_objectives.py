"""OpenRLHF's objectives with refinement on: the real command line, two rollouts and optimizer steps each, and what else
users combine them with. Every run also proves another entrance or option. What has to do with Ray runs with Ray; the others
have all of OpenRLHF in one process, because starting Ray's is what takes time.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from refine_testing.openrlhf_runs import (
    HOST,
    LAUNCHER,
    NOTE,
    NUM_PROMPTS,
    Cluster,
    Run,
    Workshop,
    by_name,
    drafts_of,
    refinements_of,
)
from safetensors.torch import load_file

from refine_wrapper.core.trace import read_trace
from refine_wrapper_openrlhf.objectives import OBJECTIVES

# Of two or three starts on a machine that others use, not of what is tested.
pytestmark = pytest.mark.timeout(1200)


def assert_refined(
    run: Run, workshop: Workshop, objective: str, *, drafts: int, group_size: int, steps: int = 2
) -> None:
    """What holds for every objective: refinements are trained on q', drafts are not, weights moved and are finite."""
    assert run.code == 0, run.screen[-4000:]
    assert f"refine-wrapper: objective={objective}" in run.screen or not objective
    assert not run.left_behind
    assert len(run.steps) == steps
    for step in run.steps:
        assert step["refine/refined_share"] > 0
        assert step["policy_loss"] is not None
    for group in run.groups:
        assert len(drafts_of(group)) == drafts
        assert len(group["slots"]) == group_size
    prompts = {group["rounds"][1]["prompt"] for group in run.groups if group["refined"]}
    assert run.trained
    for row in run.trained:
        text = workshop.tokenizer.decode(row["sequence"])
        assert any(text.startswith(prompt) for prompt in prompts)
    before, after = load_file(f"{workshop.model}/model.safetensors"), run.weights()
    assert any(not torch.equal(before[name].to(after[name].dtype), after[name]) for name in before)
    assert all(torch.isfinite(value.float()).all() for value in after.values())
    for call in run.calls:
        assert call["query"].startswith(call["prompt"])
        assert NOTE not in call["query"]


def test_dapo_by_refine_wrapper_run_on_the_hosts_command(workshop: Workshop) -> None:
    """Dynamic filtering, clip-higher, token-level loss, overlong penalty; the budget of the plain run kept."""
    folder = workshop.folder()
    workshop.reward(folder)
    flags = workshop.flags(
        folder,
        rollout__n_samples_per_prompt=4,
        train__batch_size=8,
        data__max_samples=8,
        algo__dynamic_filtering_range=(0.05, 0.95),
        reward__overlong_buffer_len=4,
        reward__overlong_penalty_factor=0.5,
    )
    refine = (by_name("dapo"), "--refine.num_drafts", "2", "--refine.match_budget")
    refine = (*refine, *workshop.traced(folder))
    run = workshop.run(folder, "-m", "refine_wrapper.cli", "run", *refine, "--", sys.executable, *HOST, *flags)
    assert_refined(run, workshop, "dapo", drafts=2, group_size=2, steps=len(run.steps))
    assert len(run.steps) >= 2
    assert "--rollout.n_samples_per_prompt 2 --train.batch_size 4" in run.screen
    assert "as many as the plain run samples" in run.screen
    # Filtered groups are in the trace and in the metrics, not in what was trained.
    filtered = sum(group.get("replaced", False) for group in run.groups)
    assert sum(step["refine/groups"] for step in run.steps) <= len(run.groups) - filtered
    assert sum(step["refine/completions"] for step in run.steps) <= 4 * len(run.groups)
    assert "DAPO Overlong Penalty" in run.screen
    kept = [g for g in run.groups if 0.05 < sum(r["reward"] for r in refinements_of(g)) / 2 < 0.95]
    assert len(run.trained) in (2 * len(kept), 2 * len(kept) - 2)  # the host drops an incomplete last micro-batch


def test_reinforce_with_rewards_that_fail(workshop: Workshop) -> None:
    """REINFORCE++ with one refinement per prompt. One prompt's drafts get no reward, another one's refinement gets NaN."""
    folder = workshop.folder()
    workshop.reward(
        folder,
        "calls = sum(chr(34) + label + chr(34) in line.partition('label')[2] for line in open({log!r}))\n".format(
            log=str(folder / "rewards.jsonl")
        )
        + "if label == '1': raise RuntimeError('no reward for this one')\n"
        + "if label == '2' and calls > 2: value = float('nan')",
    )
    flags = workshop.flags(
        folder,
        rollout__n_samples_per_prompt=1,
        data__max_samples=8,
        actor__adam__lr=1e-3,
    )
    refine = (by_name("reinforce++"), "--refine.num_drafts=2", "--refine.on_no_draft=skip", *workshop.traced(folder))
    run = workshop.run_in_process(folder, *LAUNCHER, *flags, *refine)
    assert_refined(run, workshop, "reinforce++", drafts=2, group_size=1, steps=3)
    # 8 prompts, 2 left out: next ones took their place, so that all rollouts are full, wherever in the data the two are.
    assert len(run.groups) == 8
    assert len(run.trained) == 6
    failures = Counter(d["outcome"] for group in run.groups for d in drafts_of(group))
    assert failures == {"ok": 14, "reward_exception": 2}
    assert [group["trained"] for group in run.groups].count(False) == 1
    failed = sorted(r["outcome"] for group in run.groups for r in refinements_of(group) if r["outcome"] != "ok")
    assert failed == ["non_finite", "reward_exception"]


def test_reinforce_baseline_by_an_agent_file(workshop: Workshop) -> None:
    """The host's own command and flags; train and evaluation are told apart by temperature, the group size is counted."""
    folder = workshop.folder()
    reward = workshop.reward(folder)
    agent = folder / "my_agent.py"
    agent.write_text(
        "from refine_wrapper_openrlhf import make_agent_executor\n"
        f"AgentExecutor = make_agent_executor(mode='joint', num_drafts=1, reward={reward!r}, template='turns', "
        f"trace_dir={str(folder / 'trace')!r}, trace_texts=True)\n"
    )
    flags = workshop.flags(
        folder,
        rollout__n_samples_per_prompt=3,
        algo__advantage__estimator="reinforce_baseline",
        train__agent_func_path=str(agent),
        reward__remote_url=None,
        eval__dataset=workshop.eval_data,
        eval__steps=2,
        eval__n_samples_per_prompt=1,
    )
    run = workshop.run_in_process(folder, *HOST, *flags)
    assert run.code == 0, run.screen[-4000:]
    assert [step["refine/completions"] for step in run.steps] == [3, 3]  # per group: OpenRLHF takes means
    assert sum("eval" in call["prompt"] for call in run.calls) == 2
    assert [[r["size"] for r in group["rounds"]] for group in run.groups] == [[1, 2]] * NUM_PROMPTS
    expected = run.expected_rows(lambda rewards: rewards - rewards.mean())
    assert [row[:2] for row in run.trained_rows(workshop.tokenizer)] == [row[:2] for row in expected]
    # What is shown is an answer of the assistant, in a turn of its own.
    assert all(group["rounds"][1]["prompt"].count("<|im_start|>assistant") == 2 for group in run.groups)


def test_rloo_with_a_reward_model_served_by_upstream(workshop: Workshop) -> None:
    """openrlhf.cli.serve_rm, which answers with lists of one."""
    folder = workshop.folder()
    (folder / "server").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ("-m", "openrlhf.cli.serve_rm", "--reward.model_name_or_path", workshop.model, "--port", str(port))
    with workshop.serving(folder / "server", *serve, "--host", "127.0.0.1", "--ds.attn_implementation", "eager"):
        _wait_for(port)
        flags = workshop.flags(folder, reward__remote_url=f"http://127.0.0.1:{port}/get_reward")
        refine = (by_name("rloo"), "--refine.num_drafts=2", *workshop.traced(folder))
        run = workshop.run_in_process(folder, *LAUNCHER, *flags, *refine)
    assert_refined(run, workshop, "rloo", drafts=2, group_size=2)
    for group in run.groups:
        rewards = [draft["reward"] for draft in drafts_of(group)]
        assert group["rounds"][1]["show"] == rewards.index(max(rewards))
    assert all("dummy_scores" in step for step in run.steps)


def test_dr_grpo_as_a_job_of_a_running_cluster(workshop: Workshop) -> None:
    """`ray job submit`: settings are in the environment of the command only, not of Ray's workers. No limit of answers.

    And on the same cluster, because one more would cost a minute, `refine-wrapper ablate --ray`.
    """
    folder = workshop.folder()
    workshop.reward(folder)
    flags = workshop.flags(folder, rollout__max_new_tokens=None, data__max_len=600)
    settings = ("REFINE_WRAPPER_SELECTOR=median", "REFINE_WRAPPER_NUM_DRAFTS=3")
    command = (sys.executable, *LAUNCHER, *flags, by_name("dr_grpo"), *workshop.traced(folder))
    with workshop.cluster(folder / "cluster") as cluster:
        submit = ("-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard)
        run = workshop.run(folder, *submit, "--", "env", *settings, *command)
        assert not cluster.actors()
        assert_refined(run, workshop, "dr_grpo", drafts=3, group_size=2)
        assert {group["selector"] for group in run.groups} == {"median"}
        assert "half of --data.max_len" in run.screen
        assert all(draft["num_tokens"] <= 300 for group in run.groups for draft in drafts_of(group))
        _assert_cells_are_jobs(workshop, cluster)


def _assert_cells_are_jobs(workshop: Workshop, cluster: Cluster) -> None:
    """`refine-wrapper ablate --ray`: a refined cell is trained as a job of the cluster, and only once."""
    folder = workshop.folder()
    workshop.reward(folder)
    flags = workshop.flags(
        folder, rollout__n_samples_per_prompt=4, actor__entropy_coef=0, ckpt__output_dir=None, ckpt__path=None
    )
    plan = {
        "hosts": {"openrlhf": {"command": [sys.executable, *HOST, *flags], "python": sys.executable}},
        "objectives": ["dr_grpo"],
        "plain": False,
        "refine": {"num_drafts": 2},
        "completions": 4,
        "prompts": 2,
        "seeds": [0],
    }
    file = folder / "plan.yaml"
    file.write_text(json.dumps(plan))  # which is YAML too
    ablate = ("-m", "refine_wrapper.cli", "ablate", str(file), "--ray", cluster.dashboard, "--out", str(folder / "out"))
    before = set(cluster.jobs())
    for _ in range(2):  # the second call finds it finished
        done = workshop.run(folder, *ablate)
        assert done.code == 0, done.screen[-4000:]
        assert not done.left_behind
        assert not cluster.actors()
        assert "1 finished" in done.screen
        after = cluster.jobs()
        [job] = after.keys() - before
        assert (job.endswith("-1"), after[job]) == (True, "SUCCEEDED")
    [cell] = (folder / "out" / "cells").iterdir()
    assert json.loads((cell / "status.json").read_text())["state"] == "finished"
    groups = read_trace(cell / "trace")
    assert len(groups) == NUM_PROMPTS
    assert {(len(drafts_of(group)), len(refinements_of(group))) for group in groups} == {(2, 2)}
    table = pd.read_parquet(folder / "out" / "results.parquet")
    assert set(table["objective"]) == {"dr_grpo"}
    for metric in ("refine/uplift", "reward", "entropy"):
        assert table[table["metric"] == metric]["step"].tolist() == [1, 2], metric


def test_gae_with_a_critic_and_evaluation_through_both_stages(workshop: Workshop) -> None:
    folder = workshop.folder()
    workshop.reward(folder)
    flags = workshop.flags(
        folder,
        critic__model_name_or_path=workshop.model,
        critic__num_nodes=1,
        eval__dataset=workshop.eval_data,
        eval__steps=2,
        eval__n_samples_per_prompt=1,
    )
    refine = (by_name("ppo"), "--refine.num_drafts=2", "--refine.evaluation=refine", *workshop.traced(folder))
    run = workshop.run_in_process(folder, *LAUNCHER, *flags, *refine)
    assert_refined(run, workshop, "ppo", drafts=2, group_size=2)
    assert all("critic_loss" in step for step in run.steps)
    assert len(run.trained) == 2 * 8  # the policy's rows and the critic's
    assert sum("eval" in call["prompt"] for call in run.calls) == 2 * (2 + 1)
    assert "eval_sums_pass1" in run.screen
    assert all(step["refine/groups"] == 2 for step in run.steps)


def test_gspo_asynchronous_with_partial_rollout(workshop: Workshop) -> None:
    folder = workshop.folder()
    workshop.reward(folder)
    flags = workshop.flags(
        folder, train__async_enable=True, train__partial_rollout_enable=True, train__colocate_all=None
    )
    refine = (by_name("gspo"), "--refine.num_drafts=2", *workshop.traced(folder))
    run = workshop.run_in_process(folder, *LAUNCHER, *flags, *refine)
    assert_refined(run, workshop, "gspo", drafts=2, group_size=2)


def test_switched_off_it_is_the_plain_run(workshop: Workshop) -> None:
    """The same samples in the same order and the same weights, to the last bit.

    With a top_p that leaves one token, because vLLM's draws are not the same in two plain runs either. Discounting gives the tokens of a single sample different advantages, so that there is a gradient.
    """
    data = workshop.write(
        "distinct.jsonl", [{"input": f"What is {n}?", "label": str(n), "datasource": "sums"} for n in range(3)]
    )
    weights: list[dict[str, Any]] = []
    calls: list[list[dict[str, Any]]] = []
    for command in ([*HOST], [*LAUNCHER, "--refine.num_drafts=0"]):
        folder = workshop.folder()
        workshop.reward(folder)
        flags = workshop.flags(
            folder,
            algo__advantage__estimator="reinforce",
            algo__advantage__gamma=0.9,
            rollout__top_p=1e-6,
            rollout__n_samples_per_prompt=1,
            rollout__batch_size=1,
            rollout__micro_batch_size=1,
            train__batch_size=1,
            train__micro_batch_size=1,
            data__prompt_dataset=data,
        )
        run = workshop.run_in_process(folder, *command, *flags)
        assert run.code == 0, run.screen[-4000:]
        weights.append(run.weights())
        calls.append(run.calls)
    assert calls[0] == calls[1]
    assert {call["label"] for call in calls[0]} == {"0", "1", "2"}
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    start = load_file(f"{workshop.model}/model.safetensors")
    assert any(not torch.equal(start[name].to(value.dtype), value) for name, value in weights[0].items())


def test_every_objective_is_trained_by_its_name() -> None:
    """An objective of the registry without a real run in this folder fails here."""
    sources = [file.read_text() for file in sorted(Path(__file__).parent.glob("test_*.py"))]
    trained = {name for source in sources for name in re.findall(r'\bby_name\("(.+?)"\)', source)}
    assert trained == {name for name, objective in OBJECTIVES.items() if objective.settings is not None}


def test_ctrl_c_leaves_nothing_behind(workshop: Workshop) -> None:
    folder = workshop.folder()
    workshop.reward(folder, "import time; time.sleep(60)")
    flags = workshop.flags(folder)
    run = workshop.run(folder, *LAUNCHER, *flags, interrupt_at="Loading custom `reward_func")
    assert run.code != 0
    assert not run.left_behind, run.left_behind


def _wait_for(port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/docs", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("serve_rm did not start")
