"""Every kind of reward TRL takes scores drafts as it scores refinements: on q, with the columns, by the host's own code."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import trl
from packaging.version import Version
from refine_testing.devices import DEVICE
from refine_testing.rewards import RecordingReward, checksum, text_of
from refine_testing.tiny import tiny_reward_model, tiny_tokenizer
from refine_testing.trl_runs import (
    appended,
    best,
    chat_data,
    check_refined,
    letters_only,
    make,
    plain_data,
    rendered,
    trace_of,
    trained_rows,
)

pytestmark = [pytest.mark.timeout(120)]


def model_score(model: Any, question: Any, completion: str) -> float:
    """What a reward model pays for an answer to q, computed for this one text alone."""
    tokenizer = tiny_tokenizer()
    if isinstance(question, str):
        text = question + completion
    else:
        answered = [*question, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(answered, tokenize=False)
    ids = tokenizer(text=[text], return_tensors="pt", add_special_tokens=False).to(model.device)
    with torch.inference_mode():
        return float(model.eval()(**ids).logits[0, 0])


class AsyncReward(RecordingReward):
    """The same rule, but awaited."""

    async def __call__(self, **call: Any) -> list[float | None]:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return super().__call__(**call)


def as_function(reward: RecordingReward) -> Any:
    """An ``async def`` in place of an object with an async ``__call__``, which TRL 1.0 takes for a synchronous one."""

    async def awaited(**call: Any) -> list[float | None]:
        await asyncio.sleep(0.001)
        return RecordingReward.__call__(reward, **call)

    return awaited


def letters(completions: list[Any], **_: Any) -> list[float]:
    """How many capital letters, most of them if there are many."""
    return [-sum(c.isalpha() for c in text_of(completion)) / 10 for completion in completions]


def only_vowels(completions: list[Any], **_: Any) -> list[float | None]:
    """Applies to texts with a vowel only."""
    return [1.0 if set("AEIOU") & set(text_of(completion)) else None for completion in completions]


def nothing(completions: list[Any], **_: Any) -> list[None]:
    return [None] * len(completions)


@pytest.mark.oldest
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_async_function(tmp_path: Path, algorithm: str) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, algorithm=algorithm, reward_funcs=as_function(reward), train_dataset=chat_data())
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.skipif(Version(trl.__version__) < Version("1.10"), reason="awaited by TRL since later than 1.0")
@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: functools.partial(f, hint="x")], ids=["object", "partial"])
def test_async_object(tmp_path: Path, wrap: Any) -> None:
    reward = AsyncReward()
    trainer = make(tmp_path, reward_funcs=wrap(reward))
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.oldest
def test_draft_timeout_of_an_async_reward(tmp_path: Path) -> None:
    """A judge that hangs on the drafts costs the drafts: those groups stay plain, and the run goes on."""
    reward = RecordingReward()
    calls = []

    async def slow_at_first(**call: Any) -> list[float | None]:
        calls.append(len(call["prompts"]))
        if len(calls) == 1:
            await asyncio.sleep(60)
        return reward(**call)

    trainer = make(tmp_path, reward_funcs=slow_at_first, refine_draft_timeout=0.5)
    trainer.train()
    assert calls == [6, 4, 6, 4]
    first, second = trace_of(trainer)[:2], trace_of(trainer)[2:]
    assert [group["action"] for group in first + second] == ["plain"] * 2 + ["refine"] * 2
    assert {draft["outcome"] for group in first for draft in group["drafts"]} == {"timeout"}
    assert {draft["outcome"] for group in second for draft in group["drafts"]} == {"ok"}
    assert "draft_timeout=0.5" in first[0]["drafts"][0]["detail"]
    assert Counter(prompt for prompt, _ in trained_rows(trainer)[:4]) == Counter(reward.calls[0]["prompts"])


@pytest.mark.oldest
@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_reward_model_alone(tmp_path: Path, algorithm: str, conversational: bool) -> None:
    """Drafts and refinements get what the model pays for (q, text): a refinement's is not that of (q', text)."""
    model = tiny_reward_model()
    trainer = make(
        tmp_path,
        algorithm=algorithm,
        reward_funcs=model,
        reward_processing_classes=tiny_tokenizer(),
        train_dataset=chat_data() if conversational else plain_data(),
        generation_kwargs=letters_only(),
    )
    trainer.train()
    expected: Counter[tuple[str, str]] = Counter()
    for group in trace_of(trainer):
        question = group["question"]
        scores = [model_score(model, question, draft["text"]) for draft in group["drafts"]]
        assert [draft["reward"] for draft in group["drafts"]] == pytest.approx(scores, abs=1e-4)
        assert len(set(scores)) == 3
        assert group["action"] == "refine"
        assert group["selected"] == scores.index(max(scores))
        assert group["prompt"] == appended(question, group["drafts"][group["selected"]]["text"])
        for refinement in group["refinements"]:
            paid = model_score(model, question, refinement["text"])
            assert refinement["reward"] == pytest.approx(paid, abs=1e-4)
            assert abs(paid - model_score(model, group["prompt"], refinement["text"])) > 1e-3
            expected[rendered(trainer, group["prompt"]), refinement["text"]] += 1
    assert Counter(trained_rows(trainer)) == expected


@pytest.mark.oldest
def test_reward_model_by_path_mixed_with_functions(tmp_path: Path) -> None:
    """The draft with the best weighted sum is chosen: over a model, a function and one that often returns None."""
    model = tiny_reward_model()
    model.save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    reward = RecordingReward()
    trainer = make(
        tmp_path,
        reward_funcs=[str(tmp_path / "reward"), reward, as_function(RecordingReward()), only_vowels],
        reward_weights=[0.3, -2.0, 0.5, 4.0],
        generation_kwargs=letters_only(),
    )
    trainer.train()
    questions = {group["question"] for group in trace_of(trainer)}
    assert len(questions) == 4

    def score_for(question: str) -> Any:
        return lambda text: (
            0.3 * model_score(model, question, text) - 1.5 * checksum(text) + (4.0 if set("AEIOU") & set(text) else 0.0)
        )

    for group in trace_of(trainer):
        texts, score = [draft["text"] for draft in group["drafts"]], score_for(group["question"])
        assert [draft["reward"] for draft in group["drafts"]] == pytest.approx([score(t) for t in texts], abs=1e-3)
        assert group["draft_text"] == best(texts, score)
        refinements = group["refinements"]
        assert [r["reward"] for r in refinements] == pytest.approx([score(r["text"]) for r in refinements], abs=1e-3)
    # The choice is not that of any one of them.
    alone = [best([d["text"] for d in g["drafts"]]) == g["draft_text"] for g in trace_of(trainer)]
    assert not all(alone)


@pytest.mark.oldest
def test_reward_model_that_is_any_module(tmp_path: Path) -> None:
    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_reward_model()
            self.config = self.inner.config

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    head, reward = Head().to(DEVICE), RecordingReward()
    head.config._name_or_path = "mine/head"
    trainer = make(
        tmp_path,
        reward_funcs=[head, reward],
        reward_processing_classes=[tiny_tokenizer(), None],
        reward_weights=[0.0, 1.0],
    )
    trainer.train()
    check_refined(trainer, reward, num_batches=2)
    assert "rewards/head/mean" in trainer.state.log_history[0]


@pytest.mark.oldest
@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0], [0.1, 3.0, 1.0]])
def test_several_functions(tmp_path: Path, weights: list[float] | None) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, reward_funcs=[reward, letters, nothing], reward_weights=weights)
    trainer.train()
    first, second, _ = weights or [1.0, 1.0, 1.0]

    def score(text: str) -> float:
        # As the host sums: in single precision, so that ties are its ties.
        both = torch.tensor([checksum(text), letters([text])[0]]) * torch.tensor([first, second])
        return float(both.sum())

    check_refined(trainer, reward, num_batches=2, score=score)


@pytest.mark.oldest
def test_rows_that_no_function_scores_are_no_drafts(tmp_path: Path) -> None:
    reward = RecordingReward()

    def picky(completions: list[Any], **call: Any) -> list[float | None]:
        scores = reward(completions=completions, **call)
        return [value if value is not None and value > 0.7 else None for value in scores]

    trainer = make(tmp_path, reward_funcs=[picky, nothing], max_steps=6)
    trainer.train()
    check_refined(trainer, reward, num_batches=6, score=lambda text: checksum(text) if checksum(text) > 0.7 else None)
    outcomes = Counter(draft["outcome"] for group in trace_of(trainer) for draft in group["drafts"])
    assert outcomes["no_reward"]
    assert outcomes["ok"]
    assert {group["cause"] for group in trace_of(trainer)} == {None, "no_usable_draft"}
    without = [group["cause"] for group in trace_of(trainer)].count("no_usable_draft")
    logged = [entry.get("refine/fallbacks/no_usable_draft", 0.0) for entry in trainer.state.log_history]
    assert sum(logged) == without


def test_normalize_then_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GDPO-like aggregation has no single raw reward: the weighted sum chooses, and the screen says so."""
    reward = RecordingReward()
    trainer = make(
        tmp_path,
        reward_funcs=[reward, letters],
        reward_weights=[1.0, 0.5],
        multi_objective_aggregation="normalize_then_sum",
    )
    assert "multi_objective_aggregation has no single raw reward" in capsys.readouterr().err
    trainer.train()
    found = check_refined(
        trainer,
        reward,
        num_batches=2,
        score=lambda text: float(torch.tensor(checksum(text)) + torch.tensor(letters([text])[0]) * 0.5),
    )
    # The advantages of each batch are TRL's own, from the refinements alone.
    for batch, inputs in zip(found, trainer.trained, strict=True):
        texts = [text for group in batch.refinements_PG for text in group]
        per_function = torch.tensor([[checksum(t), letters([t])[0]] for t in texts]).view(-1, 2, 2)
        normal = (per_function - per_function.mean(1, keepdim=True)) / (per_function.std(1, keepdim=True) + 1e-4)
        summed = (normal.view(-1, 2) * torch.tensor([1.0, 0.5])).sum(1)
        expected = (summed - summed.mean()) / (summed.std() + 1e-4)
        assert sorted(inputs["advantages"].tolist()) == pytest.approx(sorted(expected.tolist()), abs=1e-4)


@pytest.mark.oldest
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_log_extra_and_log_metric_and_log_completions(tmp_path: Path, algorithm: str) -> None:
    """What a reward function logs of drafts is nowhere: tables and metrics are those of the refinements, in their rows."""
    reward = RecordingReward()

    def logging(completions: list[Any], log_extra: Any, log_metric: Any, **call: Any) -> list[float | None]:
        texts = [text_of(completion) for completion in completions]
        log_extra("length", [len(text) for text in texts])
        log_extra("text", texts)
        log_metric("rows", float(len(texts)))
        return reward(completions=completions, **call)

    trainer = make(
        tmp_path,
        algorithm=algorithm,
        reward_funcs=logging,
        log_completions=True,
        train_dataset=chat_data(),
        generation_kwargs=letters_only(),
    )
    trainer.train()
    found = check_refined(trainer, reward, num_batches=2)
    for step, batch in enumerate(found, start=1):
        texts = [text for group in batch.refinements_PG for text in group]
        if algorithm == "grpo":  # RLOO writes no file
            table = pandas.read_parquet(tmp_path / "out" / "completions" / f"completions_{step:05d}.parquet")
            assert list(table["text"]) == texts
            assert list(table["length"]) == [len(text) for text in texts]
            assert list(table["logging"]) == pytest.approx([checksum(text) for text in texts], abs=1e-6)
        logged = trainer.state.log_history[step - 1]
        assert logged["rows"] == 4.0
        assert logged["rewards/logging/mean"] == pytest.approx(sum(map(checksum, texts)) / 4, abs=1e-6)
        assert logged["reward"] == pytest.approx(sum(map(checksum, texts)) / 4, abs=1e-6)
        drafts = [text for group in batch.drafts_PN for text in group]
        assert logged["refine/draft_reward_mean"] == pytest.approx(sum(map(checksum, drafts)) / 6, abs=1e-6)
        assert logged["refine/completions"] == 10.0
    table = trainer._logs  # the last batch
    assert list(table["extra"]["text"]) == texts
    assert list(table["extra"]["length"]) == [len(text) for text in texts]
    assert [text_of(completion) for completion in table["completion"]] == texts
    if not isinstance(
        table["prompt"][0], str
    ):  # TRL 1.0 shows the decoded prompt, which is q'; later versions the row's, q
        assert list(table["prompt"]) == [question for question in found[-1].questions_P for _ in range(2)]
    assert not trainer._pending_extra_logs
    assert not trainer._pending_metrics
