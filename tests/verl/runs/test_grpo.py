"""The contracts, on what a V1 run with GRPO wrote: its own dump, its own log, the calls of its reward function, the trace."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Any

import pytest
from refine_testing.verl_host import TEMPLATE_IS_IN, Run, question
from refine_testing.verl_reward import checksum

pytestmark = pytest.mark.timeout(2000)
PROMPTS = 8
N, G = 4, 3
TOOL = 3
"""The prompt whose row names veRL's tool_agent."""
CHECKPOINT = "checkpoints/global_step_2/actor/model_world_size_1_rank_0.pt"


def _number(text: str) -> int:
    return int(text.split("Q")[1].split(":")[0])


def _drafts(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [sample for sample in group["samples"] if sample["round"] == 0]


def _rows(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["samples"][sample] for sample, _, _ in group["slots"]]


def _group(run: Run, number: int) -> dict[str, Any]:
    [group] = [g for g in run.groups if g["question"][0]["content"] == question(number)]
    return group


def test_reward_calls_are_validation_and_n_plus_g_per_prompt(grpo: Run) -> None:
    assert Counter(call["index"] for call in grpo.calls) == {900: 1, 901: 1, **dict.fromkeys(range(PROMPTS), N + G)}


def test_only_refinements_are_trained_and_a_group_has_one_q_prime(grpo: Run) -> None:
    for step in (1, 2):
        groups = grpo.trained_groups(step)
        assert len(groups) == 4
        for rows in groups.values():
            assert len(rows) == G
            [text] = {line["input"] for line in rows}
            number = _number(text)
            assert question(number) in text
            assert (TEMPLATE_IS_IN in text) == (number != 2)  # prompt 2 has no draft that could be scored


def test_the_best_usable_draft_is_in_q_prime(grpo: Run) -> None:
    for group in grpo.groups:
        if not group["refined"]:
            continue
        usable = [draft for draft in _drafts(group) if draft["outcome"] == "ok"]
        refining = group["rounds"][-1]
        chosen = group["samples"][refining["show"]]
        assert chosen["reward"] == max(draft["reward"] for draft in usable)
        number = _number(group["question"][0]["content"])
        if number != TOOL:  # what a tool said is rewarded, and is not the policy's text
            assert chosen["reward"] == pytest.approx(checksum(chosen["text"]))
        rows = [line for lines in grpo.trained.values() for line in lines if _number(line["input"]) == number]
        assert all(TEMPLATE_IS_IN in line["input"] and refining["shown_text"] in line["input"] for line in rows)


def test_a_refinement_is_paid_for_itself_against_the_original_label(grpo: Run) -> None:
    for rows in grpo.trained.values():
        for line in rows:
            assert line["gts"] == str(2 * _number(line["input"]) + 1)
            assert line["score"] == pytest.approx(checksum(line["output"]), abs=1e-6)


def test_bad_rewards_cost_their_draft_only(grpo: Run) -> None:
    outcomes = {n: [draft["outcome"] for draft in _drafts(_group(grpo, n))] for n in range(PROMPTS)}
    assert Counter(outcomes[1]) == {"reward_exception": 1, "non_finite": 1, "ok": 2}
    assert outcomes[2] == ["reward_exception"] * N
    assert _group(grpo, 2)["cause"] == "no_usable_draft"
    assert Counter(outcomes[5]) == {"timeout": 1, "ok": 3}  # its reward never answers
    assert _group(grpo, 5)["refined"]
    assert all(outcomes[n] == ["ok"] * N for n in (0, 3, 4, 6, 7))
    assert all(len(_rows(_group(grpo, n))) == G for n in range(PROMPTS))


def test_drafts_never_enter_transfer_queue(grpo: Run) -> None:
    """All that lay in veRL's queue when a batch was taken from it: G sessions of each prompt."""
    for step in (1, 2):
        line = grpo.queue[step]
        uids = {row["uid"] for row in line["rows"].values()}
        assert len(uids) == 4
        sessions = [f"{uid}_{session}_0" for uid in uids for session in range(G)]
        assert [key for key in line["keys"] if key not in uids] == sorted(sessions)


def test_what_the_queue_holds_beside_q_prime_is_the_original(grpo: Run) -> None:
    numbers: Counter[int] = Counter()
    for line in grpo.queue.values():
        for row in line["rows"].values():
            number = row["extra_info"]["index"]
            numbers[number] += 1
            assert row["raw_prompt"] == [{"role": "user", "content": question(number)}]
            assert row["reward_model"] == {"style": "rule", "ground_truth": str(2 * number + 1)}
            assert set(row["extra_info"]) == {"index", "faults"}
            whole_prompt = len(question(number)) + 100  # in tokens, one a byte: more than the question is in it
            assert (len(row["prompts"]) > whole_prompt) == (number != 2)
    assert numbers == dict.fromkeys(range(PROMPTS), G)


def test_tools_are_called_in_drafts_and_refinements(grpo: Run) -> None:
    """veRL's own tool_agent with a real tool: its words are in the sequence, not trained on, and not in the draft."""
    assert (grpo.folder / "tools.txt").read_text().splitlines() == ["called"] * (N + G)
    rows = [row for row in grpo.queue[1]["rows"].values() if row["extra_info"]["index"] == TOOL]
    assert len(rows) == G
    for row in rows:
        assert 0 < sum(row["response_mask"]) < len(row["response_mask"])
    dumped = [line for line in grpo.trained[1] if _number(line["input"]) == TOOL]
    assert all("tool says" in line["output"] for line in dumped)
    assert all(TEMPLATE_IS_IN in line["input"] and "tool says" not in line["input"] for line in dumped)
    plain = [row for row in grpo.queue[1]["rows"].values() if row["extra_info"]["index"] != TOOL]
    assert all(all(row["response_mask"]) for row in plain)


def test_validation_is_single_shot(grpo: Run) -> None:
    assert all(group["group_id"].startswith("train-") for group in grpo.groups)
    assert any(name.startswith("val-core/tiny/") for name in grpo.log[0])


def test_metrics_reach_the_hosts_logger(grpo: Run) -> None:
    for step in (1, 2):
        log = grpo.log[step]
        groups = [group for group in grpo.groups if group["step"] == step]
        drafts = [draft for group in groups for draft in _drafts(group)]
        assert log["refine/groups"] == 4
        assert log["refine/completions"] == 4 * (N + G)
        assert log["refine/draft_reward_mean"] == pytest.approx(
            fmean(draft["reward"] for draft in drafts if draft["reward"] is not None)
        )
        assert log["refine/draft_tokens"] == sum(draft["num_tokens"] for draft in drafts)
        assert log["refine/refinement_reward"] == pytest.approx(
            fmean(row["reward"] for group in groups if group["refined"] for row in _rows(group))
        )
        assert "critic/score/mean" in log  # beside the host's own
    assert not any(name.startswith("refine/") for name in grpo.log[0])
    assert grpo.log[1]["refine/draft_failures"] == 2 + N
    assert grpo.log[1]["refine/draft_failures/non_finite"] == 1
    assert grpo.log[2]["refine/draft_failures/non_finite"] == 0  # reported from its first occurrence on
    assert grpo.log[2]["refine/draft_failures/timeout"] == 1


def test_names_of_groups_are_those_of_a_repeated_run(grpo: Run) -> None:
    assert sorted(g["group_id"] for g in grpo.groups) == [
        f"train-{step}-{place}" for step in (1, 2) for place in range(4)
    ]


def test_weights_move_and_the_engine_follows(grpo: Run) -> None:
    import torch
    from safetensors.torch import load_file

    before = load_file(str(grpo.folder / "model" / "model.safetensors"))
    after = torch.load(grpo.folder / CHECKPOINT, map_location="cpu", weights_only=False)
    moved = max(float((_local(after[name]) - value).abs().max()) for name, value in before.items())
    assert moved > 1e-3
    # Step 2 was sampled after an update: without the sync the engine's probabilities would be those of old weights.
    assert grpo.log[2]["training/rollout_probs_diff_max"] < 0.01


def _local(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def test_kl_to_the_reference_is_taken_under_q_prime(grpo: Run) -> None:
    assert grpo.log[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-4)
    assert grpo.log[2]["actor/kl_loss"] > 1e-4


def test_what_is_said_once(grpo: Run) -> None:
    assert grpo.output.count("refine-wrapper: on for veRL") == 1
    assert "N=4 drafts + G=3 refinements = 7 completions per prompt" in grpo.output
    assert "actor_rollout_ref.rollout.prompt_length 64 ->" in grpo.output
