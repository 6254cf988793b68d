"""Where rows come from and where runs go on: streams, worker processes, evaluation, checkpoints in the middle of a buffer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset, IterableDataset
from packaging.version import Version
from refine_testing.rewards import RecordingReward
from refine_testing.trl_runs import (
    appended,
    batches,
    best,
    chat_data,
    check_refined,
    make,
    plain_data,
    trace_of,
    trained_rows,
)

from refine_wrapper_trl import RefineGRPOConfig

pytestmark = [pytest.mark.timeout(200)]

streams = pytest.mark.skipif(Version(trl.__version__) < Version("1.10"), reason="streams came later than TRL 1.0")


@streams
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("conversational", [False, True])
def test_iterable_dataset(tmp_path: Path, algorithm: str, conversational: bool) -> None:
    rows = list(chat_data() if conversational else plain_data())
    stream = IterableDataset.from_generator(lambda: iter(rows))
    reward = RecordingReward()
    trainer = make(
        tmp_path, algorithm=algorithm, reward_funcs=reward, train_dataset=stream, steps_per_generation=2, max_steps=4
    )
    trainer.train()
    found = check_refined(trainer, reward, num_batches=2)
    for batch in found:
        assert len(batch.questions_P) == 4
        for column, size in zip(batch.columns, (3, 2), strict=True):
            labels = [row["answer"] for question in batch.questions_P for row in rows if row["prompt"] == question]
            assert column["answer"] == [label for label in labels for _ in range(size)]


@pytest.mark.oldest
def test_the_same_prompt_twice_in_a_batch_is_two_groups(tmp_path: Path) -> None:
    """Groups have an identity of their own: equal questions keep their own drafts and their own labels."""
    data = Dataset.from_list([{"prompt": "Same?", "answer": f"label {i}"} for i in range(4)])
    reward = RecordingReward()
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=data, per_device_train_batch_size=8, max_steps=1)
    trainer.train()
    (batch,) = check_refined(trainer, reward, num_batches=1)
    assert batch.questions_P == ["Same?"] * 4
    labels = batch.columns[1]["answer"][::2]
    assert sorted(labels) == [f"label {i}" for i in range(4)]
    assert batch.columns[0]["answer"] == [label for label in labels for _ in range(3)]
    assert len({group["draft_text"] for group in trace_of(trainer)}) == 4


@pytest.mark.oldest
def test_worker_processes_that_are_spawned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host sends to its data loader's workers does not carry refinement along, and the run is the same."""
    monkeypatch.setattr(torch.multiprocessing, "_default", None, raising=False)
    reward = RecordingReward()
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        trainer = make(tmp_path, reward_funcs=reward, dataloader_num_workers=1, max_steps=1)
        trainer.train()
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    check_refined(trainer, reward, num_batches=1)


@pytest.mark.oldest
def test_evaluation_in_between_is_single_shot(tmp_path: Path) -> None:
    """Evaluation samples q as the plain host does; the buffer of refinements goes on afterwards."""
    reward = RecordingReward()
    trainer = make(
        tmp_path,
        reward_funcs=reward,
        eval_dataset=Dataset.from_list([{"prompt": f"Test {i}?", "answer": "x"} for i in range(2)]),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        steps_per_generation=2,
        max_steps=4,
    )
    trainer.train()
    evaluations = [call for call in reward.calls if call["prompts"][0].startswith("Test")]
    assert [sorted(call["prompts"]) for call in evaluations] == [["Test 0?"] * 2 + ["Test 1?"] * 2] * 4
    reward.calls = [call for call in reward.calls if call not in evaluations]
    check_refined(trainer, reward, num_batches=2)
    evaluated = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(evaluated) == 4
    assert not [name for entry in evaluated for name in entry if "refine/" in name]


@pytest.mark.oldest
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_resume_in_the_middle_of_a_buffer(tmp_path: Path, algorithm: str) -> None:
    """Saved at step 2 of a buffer of 4: the resumed run samples a batch of its own, refined, and ends where it should."""
    changes = {"algorithm": algorithm, "steps_per_generation": 4, "max_steps": 8, "save_strategy": "steps"}
    first = make(tmp_path, save_steps=2, **changes)
    first.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert checkpoint.is_dir()
    reward = RecordingReward()
    resumed = make(tmp_path / "resumed", reward_funcs=reward, save_steps=100, **changes)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 8
    found = batches(reward.calls, 3, 2)
    expected: Counter[tuple[str, str]] = Counter()
    for batch in found:
        for question, drafts_N, refinements_G in zip(
            batch.questions_P, batch.drafts_PN, batch.refinements_PG, strict=True
        ):
            draft = best(drafts_N)
            expected.update((appended(question, draft) if draft else question, text) for text in refinements_G)
    rows = Counter(trained_rows(resumed))
    assert rows.total() == 6 * 4
    assert rows <= expected, "something else than refinements was trained"
    groups = trace_of(resumed)
    assert len(groups) == 8 * len(found)
    assert groups[0]["step"] == 2
    assert len({group["group_id"] for group in groups}) == len(groups)
    assert {group["group_id"] for group in groups[:8]} != {group["group_id"] for group in trace_of(first)[:8]}


@pytest.mark.oldest
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_resume_at_the_end_of_a_buffer_goes_on_as_if_never_stopped(tmp_path: Path, algorithm: str) -> None:
    """Everything refinement draws from is the host's: weights, random state and order of rows come from the checkpoint."""
    changes = {"algorithm": algorithm, "max_steps": 4, "save_strategy": "steps"}
    rewards = RecordingReward(), RecordingReward()
    first = make(tmp_path, reward_funcs=rewards[0], save_steps=2, **changes)
    first.train()
    resumed = make(tmp_path / "resumed", reward_funcs=rewards[1], save_steps=100, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert rewards[1].calls == rewards[0].calls[4:]
    assert Counter(trained_rows(resumed)) == Counter(trained_rows(first)[8:])
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
    numbers = ("selected", "draft_text", "question", "prompt")
    assert [[group[name] for name in numbers] for group in trace_of(resumed)] == [
        [group[name] for name in numbers] for group in trace_of(first)[4:]
    ]


@pytest.mark.oldest
def test_a_checkpoint_says_how_it_was_refined(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=1, save_strategy="steps", save_steps=1, refine_selector="median")
    trainer.train()
    saved = torch.load(tmp_path / "out" / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert isinstance(saved, RefineGRPOConfig)
    assert (saved.refine_num_drafts, saved.refine_selector) == (3, "median")
    assert saved.refine_config == trainer.args.refine_config
    state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["log_history"][0]["refine/completions"] == 10.0
