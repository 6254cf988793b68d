"""Contract 6: the question is never cut, q' fits the model, and numbers that cannot work are refused with ones that do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from refine_testing.rewards import RecordingReward, text_of
from refine_testing.tiny import tiny_llama
from refine_testing.traces import read_groups
from refine_testing.trl_host import TRAINERS, as_q_prime, chats, logged, q_prime_ids, questions, trainer_for

from refine_wrapper.errors import BudgetError, ConfigError
from refine_wrapper_trl import refine

oldest = pytest.mark.oldest

ANSWER = 24
OVERHEAD = len(as_q_prime("", ""))
"""One token a byte."""
DRAFT = "0123456789abcdefghijABC"


def _asked(length: int) -> str:
    return ("Q" * length)[: length - 1] + "="


@oldest
@pytest.mark.parametrize("shape", ["plain", "chat"])
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_only_the_draft_is_cut_and_over_long_questions_are_the_hosts(
    objective: str, shape: str, tmp_path: Path
) -> None:
    """Questions around every limit in one batch: the draft fits whole, in part, by one token, not at all; q alone does not."""
    frame = 0 if shape == "plain" else len("user\n\nassistant\n") + 3
    overhead = OVERHEAD if shape == "plain" else OVERHEAD - 2
    room = 60 + overhead + frame
    fits = room - frame - overhead - len(DRAFT)
    lengths = {
        "whole": fits,
        "cut by one": fits + 1,
        "one token": fits + len(DRAFT) - 1,
        "no token": fits + len(DRAFT),
        "just fits": room - frame,
        "too long": room - frame + 1,
    }
    asked = [_asked(length) for length in lengths.values()]
    prompts = asked if shape == "plain" else [[{"role": "user", "content": question}] for question in asked]
    trainer = trainer_for(
        tmp_path,
        RecordingReward(),
        Dataset.from_dict({"prompt": prompts, "name": list(lengths)}),
        objective=objective,
        model=tiny_llama(max_positions=room + ANSWER),
        script=lambda prompt, row: DRAFT,
        per_device_train_batch_size=12,
        num_generations=2,
        max_completion_length=ANSWER,
        max_steps=1,
        refine_num_drafts=2,
        refine_trace_dir=str(tmp_path),
        refine_trace_texts=True,
    )
    trainer.train()

    (batch,) = trainer.batches
    kept = {"whole": DRAFT, "cut by one": DRAFT[1:], "one token": DRAFT[-1]}
    for row, ids in zip(batch.rows, batch.prompt_ids, strict=True):
        text = trainer.processing_class.decode(ids)
        assert text_of(row["prompt"]) in text, "a question was cut"
        if row["name"] in kept:
            assert ids == q_prime_ids(trainer.processing_class, row["prompt"], kept[row["name"]]), row["name"]
        else:
            assert ids == trainer._tokenize_prompts([row["prompt"]])[0][0], row["name"]
        assert len(ids) <= room or row["name"] == "too long"
    groups = {text_of(group["question"]): group for group in read_groups(tmp_path)}
    named = {name: groups[question] for name, question in zip(lengths, asked, strict=True)}
    assert {name: group["cause"] for name, group in named.items()} == {
        "whole": None,
        "cut by one": None,
        "one token": None,
        "no token": "no_room",
        "just fits": "no_room",
        "too long": "question_too_long",
    }
    assert not named["too long"]["drafts"], "nothing is sampled for a question that cannot be refined"
    assert logged(trainer, "refine/fallbacks") == [3]
    assert logged(trainer, "refine/fallbacks/no_room") == [2]
    assert logged(trainer, "refine/fallbacks/question_too_long") == [1]
    assert logged(trainer, "refine/refined_share") == [0.5]
    assert logged(trainer, "refine/drafts_shortened_share") == [pytest.approx(2 / 3)]


@oldest
def test_a_batch_of_over_long_questions_is_the_plain_hosts(tmp_path: Path) -> None:
    """on_no_draft does not apply to them: they are trained, as the host does."""
    data = Dataset.from_dict({"prompt": ["?", *(_asked(length) for length in range(400, 407))]})
    settings = {"max_completion_length": ANSWER, "max_steps": 1, "shuffle_dataset": False, "learning_rate": 1e-2}
    data = data.select(range(1, 8))  # the first prompt is the sample that the start looks at
    runs = []
    for plain in (False, True):
        reward = RecordingReward()
        more = {} if plain else {"refine_num_drafts": 2, "refine_on_no_draft": "error"}
        model = tiny_llama(max_positions=400 + ANSWER - 1)
        trainer = trainer_for(tmp_path / str(plain), reward, data, plain=plain, model=model, **settings, **more)
        trainer.train()
        runs.append((reward.calls, [step.loss for step in trainer.steps]))
    assert runs[0] == runs[1]


@oldest
@pytest.mark.parametrize(("shorten", "kept"), [("keep_tail", DRAFT[-5:]), ("keep_head", DRAFT[:5])])
def test_draft_tokens_caps_what_is_put_in(shorten: str, kept: str, tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path,
        RecordingReward(),
        questions(2),
        script=lambda prompt, row: DRAFT,
        max_completion_length=ANSWER,
        max_steps=1,
        refine_num_drafts=2,
        refine_draft_tokens=5,
        refine_shorten=shorten,
    )
    trainer.train()
    for row, prompt in zip(trainer.batches[0].rows, trainer.batches[0].prompts(trainer.processing_class), strict=True):
        assert prompt == as_q_prime(row["prompt"], kept)


@oldest
@pytest.mark.parametrize("data", [questions, chats], ids=["plain", "chat"])
def test_a_model_that_is_too_short_is_refused_with_numbers_that_work(data: Any, tmp_path: Path) -> None:
    def trainer(max_positions: int, answer: int, draft_tokens: int) -> Any:
        return trainer_for(
            tmp_path,
            RecordingReward(),
            data(8),
            model=tiny_llama(max_positions=max_positions),
            script=lambda prompt, row: DRAFT,
            max_completion_length=answer,
            max_steps=1,
            refine_num_drafts=2,
            refine_draft_tokens=draft_tokens,
        )

    with pytest.raises(BudgetError) as refused:
        trainer(max_positions=320, answer=60, draft_tokens=50)
    message = str(refused.value)
    longest = _number(r"raise the model's max_position_embeddings to at least (\d+) plus", message)
    answer = _number(r"lower max_completion_length to at most (\d+) less", message)
    draft = _number(r"lower refine.draft_tokens to at most (\d+) less", message)

    asked = max(len(text_of(prompt)) for prompt in data(8)["prompt"])
    asked += 0 if data is questions else len("user\n\nassistant\n") + 3
    assert draft > asked
    for works in (
        trainer(longest + asked, 60, 50),
        trainer(320, answer - asked, 50),
        trainer(320, 60, draft - asked),
    ):
        works.train()
        assert logged(works, "refine/refined_share") == [1.0]
        limit = works.model.config.max_position_embeddings - works.args.max_completion_length
        assert max(map(len, works.batches[0].prompt_ids)) <= limit


def _number(pattern: str, message: str) -> int:
    found = re.search(pattern, message, re.IGNORECASE)
    assert found, message
    return int(found.group(1))


@oldest
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_match_budget_takes_the_drafts_out_of_the_group(objective: str, tmp_path: Path) -> None:
    """8 becomes 4 + 4 at the same two prompts per step, and evaluation keeps its 8."""
    reward, plain_reward = RecordingReward(), RecordingReward()
    layout = {"num_generations": 8, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 8}
    more = {"eval_dataset": questions(20).select(range(18, 20))}
    plain = trainer_for(tmp_path, plain_reward, questions(8), objective=objective, plain=True, more=more, **layout)
    trainer = trainer_for(
        tmp_path, reward, questions(8), objective=objective, more=more, refine_match_budget=True, **layout
    )
    args = trainer.args
    assert (args.num_generations, args.per_device_train_batch_size, args.num_generations_eval) == (4, 8, 8)
    assert trainer.num_generations == 4
    assert trainer.num_generations_eval == 8

    plain.train()
    trainer.train()
    assert [len(call["prompts"]) for call in reward.calls] == [8, 8] * 2
    assert [len(call["prompts"]) for call in plain_reward.calls] == [16] * 2
    for batch, plain_batch in zip(trainer.batches, plain.batches, strict=True):
        assert _distinct(batch.rows) == _distinct(plain_batch.rows), "not the same prompts per step"
    assert logged(trainer, "refine/completions") == [16, 16]
    assert len(trainer.get_train_dataloader()) == len(plain.get_train_dataloader())
    reward.calls.clear()
    trainer.evaluate()
    assert [len(call["prompts"]) for call in reward.calls] == [8, 8]


def _distinct(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["prompt"] for row in rows))


@oldest
def test_match_budget_shrinks_a_stated_generation_batch_too(tmp_path: Path) -> None:
    config = TRAINERS["grpo"][1](
        output_dir=str(tmp_path),
        num_generations=8,
        per_device_train_batch_size=8,
        generation_batch_size=32,
        num_generations_eval=3,
        per_device_eval_batch_size=6,
        refine_match_budget=True,
        refine_num_drafts=6,
        use_cpu=True,
        bf16=False,
    )
    assert (config.num_generations, config.per_device_train_batch_size, config.generation_batch_size) == (2, 2, 8)
    assert config.steps_per_generation == 4
    assert config.num_generations_eval == 3, "one that was stated stays"


@oldest
@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"num_generations": 8, "per_device_train_batch_size": 16, "refine_num_drafts": 7}, r"at most 6, raise .* 9"),
        ({"num_generations": 4, "per_device_train_batch_size": 8, "refine_num_drafts": 4}, r"leave 0 .* at most 2"),
        (
            {"num_generations": 8, "per_device_train_batch_size": 4, "refine_num_drafts": 3},
            r"per_device_train_batch_size=4 x 5/8 is not whole\. Set per_device_train_batch_size to a multiple of 8",
        ),
        (
            {
                "num_generations": 6,
                "per_device_train_batch_size": 6,
                "generation_batch_size": 20,
                "refine_num_drafts": 1,
            },
            r"generation_batch_size=20 x 5/6 is not whole\. Set generation_batch_size to a multiple of 6, .* 18 or 24",
        ),
    ],
    ids=["one refinement left", "none left", "odd batch", "odd generation batch"],
)
def test_match_budget_refuses_odd_numbers(layout: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=message):
        TRAINERS["grpo"][1](output_dir=str(tmp_path), refine_match_budget=True, use_cpu=True, bf16=False, **layout)


@oldest
def test_match_budget_is_refused_where_the_batch_is_already_laid_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="match_budget must shrink num_generations and the batch before GRPOConfig"):
        trainer_for(
            tmp_path,
            RecordingReward(),
            questions(4),
            base=refine(TRAINERS["grpo"][2], match_budget=True),
            plain=True,
        )
