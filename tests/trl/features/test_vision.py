"""A model that reads images: q' keeps the question's image, and what the host builds from its prompts fits q'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from refine_testing.resampled import PayingReward
from refine_testing.rewards import RecordingReward, checksum, text_of
from refine_testing.tiny_vision import IMAGE_TOKENS, picture, tiny_vision_model, tiny_vision_processor
from refine_testing.trl_runs import append, batches, best, make, trace_of, trained_rows

pytestmark = pytest.mark.timeout(180)
NUM_DRAFTS, GROUP = 3, 2
QUESTIONS = [f"What is number {number}?" for number in range(8)]


def _one_image() -> Dataset:
    """A column ``image`` beside conversations of plain text: the host puts the image in."""
    rows = [{"prompt": [{"role": "user", "content": q}], "image": picture(n)} for n, q in enumerate(QUESTIONS)]
    return Dataset.from_list(rows)


def _several_images() -> Dataset:
    """A column ``images``, some rows with two of them."""
    rows = [
        {"prompt": [{"role": "user", "content": q}], "images": [picture(n)] * (1 + n % 2)}
        for n, q in enumerate(QUESTIONS)
    ]
    return Dataset.from_list(rows)


def _no_image() -> Dataset:
    return Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS])


def _trained(tmp_path: Path, data: Dataset, **settings: Any) -> tuple[Any, RecordingReward]:
    reward = settings.pop("reward_funcs", None) or RecordingReward()
    given: dict[str, Any] = {
        "model": tiny_vision_model(),
        "processing_class": tiny_vision_processor(),
        "train_dataset": data,
        "reward_funcs": reward,
        "num_generations": GROUP,
        "refine_num_drafts": NUM_DRAFTS,
        **settings,
    }
    trainer = make(tmp_path, **given)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert any(not parameter.equal(before[name]) for name, parameter in trainer.model.named_parameters())
    return trainer, reward


def _number_of_images(question: Any) -> int:
    content = question[-1]["content"]
    return sum(part["type"] == "image" for part in content) if isinstance(content, list) else 0


def _text(question: Any) -> str:
    content = question[-1]["content"]
    return "".join(part.get("text", "") for part in content) if isinstance(content, list) else content


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_one_image, id="one", marks=pytest.mark.oldest),
        pytest.param(_several_images, id="several"),  # the plain TRL 1.0 fails on them
        pytest.param(_no_image, id="none", marks=pytest.mark.oldest),
    ],
)
def test_images_stay_with_their_question(tmp_path: Path, data: Any, algorithm: str) -> None:
    trainer, reward = _trained(tmp_path, data(), algorithm=algorithm)
    found = batches(reward.calls, NUM_DRAFTS, GROUP)
    assert len(found) == 2
    expected: list[tuple[str, str]] = []
    for batch in found:
        for question, drafts_N, refinements_G in zip(
            batch.questions_P, batch.drafts_PN, batch.refinements_PG, strict=True
        ):
            chosen = best(drafts_N)
            text = _text(question) if chosen is None else append(_text(question), chosen)
            image = "\n\n<start_of_image>" + "<image_soft>" * IMAGE_TOKENS + "<end_of_image>\n\n"
            images = image * _number_of_images(question)
            prompt = f"<start_of_turn>user:{images}{text}<end_of_turn><start_of_turn>model:"
            expected += [(prompt, refinement) for refinement in refinements_G]
    assert sorted(trained_rows(trainer)) == sorted(expected)
    assert any(group["action"] == "refine" for group in trace_of(trainer))


@pytest.mark.oldest
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_what_the_host_builds_for_the_forward_pass_is_of_q_prime(tmp_path: Path, algorithm: str) -> None:
    """Built from q, ``token_type_ids`` would be too short, and the model would read the image in the wrong place."""
    trainer, _ = _trained(tmp_path, _one_image(), algorithm=algorithm)
    assert trainer.trained
    for inputs in trainer.trained:
        rows, prompt_width = inputs["prompt_ids"].shape
        assert inputs["pixel_values"].shape[0] == rows
        assert inputs["token_type_ids"].shape == (rows, prompt_width + inputs["completion_ids"].shape[1])
        image = trainer.processing_class.tokenizer.image_token_id
        of_prompt = inputs["token_type_ids"][:, :prompt_width]
        assert ((of_prompt == 1) == (inputs["prompt_ids"] == image)).all()


@pytest.mark.oldest
def test_rewards_get_q_and_the_column_of_images(tmp_path: Path) -> None:
    _, reward = _trained(tmp_path, _one_image())
    for call in reward.calls:
        for question, image in zip(call["prompts"], call["image"], strict=True):
            [number] = [n for n, text in enumerate(QUESTIONS) if text == _text(question)]
            assert image.getpixel((0, 0)) == picture(number).getpixel((0, 0))
            [part] = [part["image"] for part in question[-1]["content"] if part["type"] == "image"]
            assert part.getpixel((0, 0)) == picture(number).getpixel((0, 0))


@pytest.mark.oldest
def test_only_the_draft_is_cut_beside_an_image(tmp_path: Path) -> None:
    """The image's tokens count: a draft is shortened so that q' with its image fits."""
    trainer, _ = _trained(tmp_path, _one_image(), refine_draft_tokens=2)
    for group in trace_of(trainer):
        if group["action"] == "refine":
            assert len(trainer.processing_class.tokenizer.encode(group["draft_text"])) <= 2
    limit = 2048 - trainer.args.max_completion_length
    assert trainer._refine_batches.planner.room.max_prompt_tokens == limit


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("num_drafts", [0, NUM_DRAFTS], ids=["plain", "refined"])
def test_groups_with_images_are_drawn_again_on_their_own_prompts(
    num_drafts: int, algorithm: str, tmp_path: Path
) -> None:
    """The host puts images into prompts before it generates, so their rows keep both."""
    draws = 0

    def pay(prompt: str, text: str, columns: dict[str, Any]) -> float:
        return 0.5 if text in first else checksum(text)

    class Reward(PayingReward):
        def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
            nonlocal draws
            draws += 1
            if draws == (2 if num_drafts else 1):
                first.update(text_of(completion) for completion in completions)  # the first draw is worth the same
            return super().__call__(prompts, completions, **columns)

    first: set[str] = set()
    reward = Reward(pay=pay)
    given = {"refine_num_drafts": num_drafts, "refine_dynamic_sampling": 1, "max_steps": 1, "algorithm": algorithm}
    trainer, _ = _trained(tmp_path, _one_image(), reward_funcs=reward, **given)
    assert len(reward.calls) == 2 * (1 + bool(num_drafts))
    drawn, again = reward.calls[1 if num_drafts else 0], reward.calls[-1]
    assert [_text(q) for q in again["prompts"]] == [_text(q) for q in drawn["prompts"]]
    assert sorted(text for _, text in trained_rows(trainer)) == sorted(map(text_of, again["completions"]))
    [inputs] = trainer.trained
    assert inputs["pixel_values"].shape[0] == len(again["prompts"])
    assert inputs["token_type_ids"].shape[1] == inputs["prompt_ids"].shape[1] + inputs["completion_ids"].shape[1]
