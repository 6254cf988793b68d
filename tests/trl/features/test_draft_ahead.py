"""Draft-ahead: the drafts of the next batch are decoded together with this batch's refinements, and all else is as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from refine_testing.rewards import RecordingReward
from refine_testing.tiny import tiny_llama, tiny_tokenizer
from refine_testing.trl_host import logged, record_generation
from refine_testing.trl_runs import chat_data, check_refined, make, plain_data, trace_of

pytestmark = pytest.mark.timeout(120)


def _run(folder: Path, *, model_positions: int = 4096, **settings: Any) -> tuple[Any, RecordingReward, list[Any]]:
    """A finished run with draft-ahead, its reward function, and the calls of ``model.generate``."""
    reward, model, tokenizer = RecordingReward(), tiny_llama(max_positions=model_positions), tiny_tokenizer()
    generations = record_generation(model, tokenizer)
    given: dict[str, Any] = {"refine_draft_ahead": True, "max_steps": 3, "train_dataset": plain_data(64), **settings}
    trainer = make(folder, model=model, processing_class=tokenizer, reward_funcs=reward, **given)
    trainer.train()
    return trainer, reward, generations


@pytest.mark.oldest
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("settings", "num_batches", "uses", "prompts"),
    [
        pytest.param({}, 3, 1, 2, id="one-step"),
        pytest.param({"num_generations": 4, "refine_num_drafts": 2}, 3, 1, 1, id="fewer-drafts"),
        pytest.param({"num_generations": 2, "refine_num_drafts": 2}, 3, 1, 2, id="as-many"),
        pytest.param({"steps_per_generation": 2, "max_steps": 6}, 3, 1, 4, id="steps_per_generation"),
        pytest.param({"num_iterations": 2, "max_steps": 6}, 3, 2, 2, id="num_iterations"),
        pytest.param({"gradient_accumulation_steps": 2}, 3, 1, 4, id="accumulation"),
        pytest.param(
            {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 2}, 4, 1, 2, id="two-in-a-step"
        ),
        pytest.param({"train_dataset": chat_data(64)}, 3, 1, 2, id="chat"),
    ],
)
def test_one_call_of_generate_for_each_batch(
    tmp_path: Path, algorithm: str, settings: dict[str, Any], num_batches: int, uses: int, prompts: int
) -> None:
    trainer, reward, generations = _run(tmp_path, algorithm=algorithm, **settings)
    check_refined(trainer, reward, num_batches=num_batches, uses=uses)
    drafts, refinements = prompts * trainer.args.refine_num_drafts, prompts * trainer.num_generations
    # The first batch's drafts come alone, the last batch's refinements too; nothing is sampled for nobody.
    expected = [drafts, *[refinements + drafts] * (num_batches - 1), refinements]
    assert [len(generation.prompts) for generation in generations] == expected


@pytest.mark.oldest
def test_the_trace_says_how_old_drafts_are(tmp_path: Path) -> None:
    trainer, _, _ = _run(tmp_path)
    by_step = {step: [g for g in trace_of(trainer) if g["step"] == step] for step in range(3)}
    for step, groups in by_step.items():
        assert len(groups) == 2
        assert {d["policy_version"] for g in groups for d in g["drafts"]} == {max(0, step - 1)}
        assert {g["policy_version"] for g in groups} == {step}


@pytest.mark.oldest
def test_the_hosts_metrics_are_of_refinements_alone(tmp_path: Path) -> None:
    trainer, _, _ = _run(tmp_path, max_completion_length=12)
    groups = trace_of(trainer)
    for step in range(3):
        refinements = [r["num_tokens"] for g in groups if g["step"] == step for r in g["refinements"]]
        drafts = [d["num_tokens"] for g in groups if g["step"] == step for d in g["drafts"]]
        assert logged(trainer, "completions/mean_length")[step] == pytest.approx(sum(refinements) / len(refinements))
        assert logged(trainer, "refine/draft_tokens")[step] == sum(drafts)
        assert logged(trainer, "refine/completions")[step] == len(refinements) + len(drafts)


@pytest.mark.oldest
def test_an_epoch_ends_as_without_it_and_the_next_one_starts_with_drafts_of_its_own(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train_dataset": plain_data(4), "num_train_epochs": 2, "max_steps": -1}
    trainer, reward, generations = _run(tmp_path, **settings)
    found = check_refined(trainer, reward, num_batches=4)
    assert trainer.state.global_step == 4
    assert [len(generation.prompts) for generation in generations] == [6, 10, 4, 6, 10, 4]
    for epoch in (found[:2], found[2:]):
        assert {question for batch in epoch for question in batch.questions_P} == set(plain_data(4)["prompt"])


def test_a_stream_of_rows(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter(plain_data(64).to_list()))
    trainer, reward, generations = _run(tmp_path, train_dataset=stream)
    check_refined(trainer, reward, num_batches=3)
    assert [len(generation.prompts) for generation in generations] == [6, 10, 10, 4]


@pytest.mark.oldest
def test_evaluation_in_between_is_untouched(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
    trainer, _, generations = _run(tmp_path, eval_dataset=plain_data(2), max_steps=2, **settings)
    assert [len(generation.prompts) for generation in generations if len(generation.prompts) != 2] == [6, 10, 4]
    assert len(logged(trainer, "eval_reward")) == 2


@pytest.mark.oldest
def test_resuming_starts_with_drafts_of_its_own(tmp_path: Path) -> None:
    _run(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    reward, model, tokenizer = RecordingReward(), tiny_llama(), tiny_tokenizer()
    generations = record_generation(model, tokenizer)
    trainer = make(
        tmp_path,
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        refine_draft_ahead=True,
        refine_trace_dir=str(tmp_path / "again"),
        train_dataset=plain_data(64),
        max_steps=3,
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    check_refined(trainer, reward, num_batches=2)
    assert [len(generation.prompts) for generation in generations] == [6, 10, 4]


@pytest.mark.oldest
def test_questions_without_room_have_no_drafts_in_the_call(tmp_path: Path) -> None:
    """Every second question is too long to answer: its group is the host's own, the others are refined."""
    questions = [f"Short {i}?" if i % 2 else "Long " * 130 for i in range(64)]
    trainer, _, generations = _run(
        tmp_path, model_positions=640, train_dataset=Dataset.from_dict({"prompt": questions}), max_steps=2
    )
    groups = trace_of(trainer)
    assert {group["cause"] for group in groups} == {None, "question_too_long"}
    assert [len(g["drafts"]) for g in groups] == [0 if g["cause"] else 3 for g in groups]
    drafts = [sum(len(g["drafts"]) for g in groups if g["step"] == step) for step in (0, 1)]
    assert [len(generation.prompts) for generation in generations] == [n for n in (drafts[0], 4 + drafts[1], 4) if n]
