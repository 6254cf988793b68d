"""Both stages on veRL's TransferQueue worker: what is sampled, scored and stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from refine_testing.verl_worker import Bench, answers, best, prompt

pytestmark = pytest.mark.oldest
TEMPLATE = "Here is an attempt at this problem."


def test_one_stage_1_a_group_and_one_q_prime_with_the_best_draft(bench: Callable[..., Bench]) -> None:
    host = bench()
    host.prompts(prompt("a"), prompt("b", "What is 3+3?"))
    for uid, question in (("a", "What is 2+2?"), ("b", "What is 3+3?")):
        asked = [text for text in host.engine.prompts if question in text]
        drafts = [
            number for number, text in enumerate(host.engine.prompts) if question in text and TEMPLATE not in text
        ]
        assert len(asked) == 4 + 3
        assert len(drafts) == 4
        [refined] = {text for text in asked if TEMPLATE in text}
        assert best([answers("", number) for number in drafts]) in refined
        rows = host.rows_of(uid)
        assert len(rows) == 3  # drafts are never stored
        assert {host.text(row["prompts"]) for row in rows} == {refined}
    assert host.queue.status == {"a": "finished", "b": "finished"}
    assert host.worker._refine_rollout.groups_in_flight == 0
    assert not host.worker._refine_groups


def test_what_is_stored_beside_q_prime_is_the_original(bench: Callable[..., Bench]) -> None:
    host = bench()
    host.prompts(prompt("a"))
    for row in host.rows_of("a"):
        assert list(row["raw_prompt"]) == [{"role": "user", "content": "What is 2+2?"}]
        assert row["reward_model"]["ground_truth"] == "truth of a"
        answer = host.text(row["responses"][:-1])
        assert float(row["rm_scores"].sum()) == float(_score(answer))
        assert "refine_group_id" not in row


def _score(text: str) -> Any:
    import torch
    from refine_testing.verl_reward import checksum

    return torch.tensor(checksum(text))


def test_rewards_see_q_and_the_completion_alone(bench: Callable[..., Bench]) -> None:
    """N + G calls of the training reward path; none has the draft anywhere, not even as token ids."""
    host = bench()
    host.prompts(prompt("a"))
    assert len(host.reward.given) == 4 + 3
    for data in host.reward.given:
        assert TEMPLATE not in host.text(data.batch["input_ids"][0])
        assert host.text(data.batch["prompts"][0]).endswith("What is 2+2?<|im_end|>\n<|im_start|>assistant\n")
        assert TEMPLATE not in str(data.non_tensor_batch)


def test_validation_is_single_shot(bench: Callable[..., Bench]) -> None:
    host = bench()
    host.prompts(prompt("a"), validate=True)
    assert len(host.engine.prompts) == 1
    assert TEMPLATE not in host.engine.prompts[0]
    assert host.worker.take_finished_groups() == []


def test_validation_can_be_refined(bench: Callable[..., Bench]) -> None:
    host = bench("+refine.evaluation=refine", "actor_rollout_ref.rollout.val_kwargs.n=2")
    host.prompts(prompt("a"), validate=True)
    assert len(host.engine.prompts) == 4 + 2
    assert sum(TEMPLATE in text for text in host.engine.prompts) == 2


def test_each_draft_has_its_own_sampling_parameters(bench: Callable[..., Bench]) -> None:
    """The server takes entries out of the one dict that veRL hands to all sessions."""
    host = bench()
    host.prompts(prompt("a"))
    assert all(params["logprobs"] is True for params in host.engine.params[:4])


def test_groups_of_equal_text_stay_apart(bench: Callable[..., Bench]) -> None:
    host = bench()
    host.prompts(prompt("a"), prompt("b"))
    assert len(host.engine.prompts) == 2 * (4 + 3)
    assert len(host.worker.take_finished_groups()) == 2


def test_a_prompt_with_its_own_number_of_sessions(bench: Callable[..., Bench]) -> None:
    host = bench()
    host.prompts(prompt("a", __rollout_n__=5))
    assert len(host.rows_of("a")) == 5
    [outcome] = host.worker.take_finished_groups()
    assert len(outcome.rows_S) == 5


def test_the_versions_of_the_weights_are_kept(bench: Callable[..., Bench]) -> None:
    """Asynchronous trainers may update the weights between the rounds."""
    host = bench()

    def answer(text: str, number: int) -> str:
        host.engine.version = 8 if number >= 3 else 7
        return answers(text, number)

    host.engine.answer = answer
    host.prompts(prompt("a"))
    [group] = host.worker.take_finished_groups()
    assert [draft.policy_version for draft in group.drafts] == [7, 7, 7, 8]
    assert [row.policy_version for row in group.rows_S] == [8, 8, 8]
    assert (group.step, str(group.id)) == (1, "train-1-0")


def test_a_batch_of_the_v0_trainer(bench: Callable[..., Bench]) -> None:

    import numpy
    import torch
    from tensordict import TensorDict
    from verl.protocol import DataProto

    host = bench(kind="RefineAgentLoopWorker")
    ids = dict(zip("ab", host.ids.next("ab", 3, False), strict=True))
    rows = [prompt(uid, f"What is {uid}?", refine_group_id=ids[uid]) for uid in "ab" for _ in range(3)]
    columns = {name: numpy.empty(len(rows), dtype=object) for name in rows[0]}
    for name, column in columns.items():
        column[:] = [row[name] for row in rows]
    batch = DataProto(TensorDict({"row": torch.arange(6)}, batch_size=6), columns, {"global_steps": 3})
    output = host.run(host.worker.generate_sequences(batch))
    prompts = [host.text(ids) for ids in output.batch["prompts"]]
    assert all(TEMPLATE in text for text in prompts)
    assert [f"What is {uid}?" in text for uid, text in zip("aaabbb", prompts, strict=True)] == [True] * 6
    assert len(set(prompts)) == 2
    assert len(host.engine.prompts) == 2 * (4 + 3)
    assert [list(raw) for raw in output.non_tensor_batch["raw_prompt"]] == [row["raw_prompt"] for row in rows]
    assert output.batch["rm_scores"].shape == output.batch["responses"].shape
    assert not host.worker._refine_groups
