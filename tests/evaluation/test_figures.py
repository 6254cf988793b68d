"""The command's figures against computations that share no code with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reasoning_gym
import torch
from refine_testing.evaluations import PALINDROMES, evaluate, records_of, result_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from refine_wrapper_demo.task import Task

K = 4


@pytest.fixture(scope="module")
def sampled(workplace: Path) -> tuple[str, Path]:
    """All measures, sampled: the screen and the folder."""
    out = workplace / "sampled"
    ran = evaluate(workplace, *PALINDROMES, "--samples", K, "--draft", "both", "--refine.num_drafts", 6, "--out", out)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, out


def _problems(workplace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workplace / "palindromes.jsonl").read_text().splitlines()]


def _scorer() -> Any:
    return reasoning_gym.create_dataset("palindrome_generation", seed=0, size=1).score_answer


def test_every_reward_is_the_verifiers(workplace: Path, sampled: tuple[str, Path]) -> None:
    score = _scorer()
    records = records_of(sampled[1])
    assert [record["id"] for record in records] == [str(n) for n in range(40)]
    for record, problem in zip(records, _problems(workplace), strict=True):
        assert (record["prompt"], record["answer"]) == (problem["prompt"], problem["answer"])
        for name, number in (("single_shot", K), ("more_drafts", 2), ("with_draft", K), ("with_oracle_draft", K)):
            assert len(record[name]) == number
            for answer in record[name]:
                assert answer["reward"] == score(answer["text"], json.loads(problem["entry"]))


def test_every_figure_is_numpys(sampled: tuple[str, Path]) -> None:
    records, result = records_of(sampled[1]), result_of(sampled[1])
    for name in ("single_shot", "with_draft", "with_oracle_draft"):
        figures = result["measures"][name]["figures"]
        rewards = np.array([[answer["reward"] for answer in record[name]] for record in records])
        right = rewards >= 1.0
        assert 0 < right.mean() < 1, "else this shows little"
        # pass@k by drawing without replacement, as a product (Chen et al. 2021 compute it so).
        expected = {"avg@4": right.mean(axis=1), "reward": rewards.mean(axis=1)}
        for k in (1, 2, 4):
            wrong = K - right.sum(axis=1)
            missed = [np.prod([max(w - i, 0) / (K - i) for i in range(k)]) for w in wrong]
            expected[f"pass@{k}"] = 1 - np.array(missed)
        for figure, per_problem in expected.items():
            assert figures[figure]["value"] == pytest.approx(per_problem.mean())
            assert figures[figure]["standard_error"] == pytest.approx(per_problem.std(ddof=1) / np.sqrt(40))
            assert figures[figure]["num_problems"] == 40
    screen = " ".join(sampled[0].split())
    for name in ("single_shot", "with_draft", "with_oracle_draft"):
        assert f"{result['measures'][name]['figures']['avg@4']['value']:.3f}" in screen
    assert "With the oracle's draft: the reward chose it by the held-out label." in screen


def test_another_implementation_of_the_measure_agrees(workplace: Path, sampled: tuple[str, Path], task: Task) -> None:
    """The demo has one of its own for a model that is being trained: other sampling code, other random numbers."""
    from refine_wrapper_demo.evaluate import evaluate as demo_evaluate

    model = AutoModelForCausalLM.from_pretrained(workplace / "palindromes")
    tokenizer = AutoTokenizer.from_pretrained(workplace / "palindromes")
    other = demo_evaluate(model, tokenizer, task, task.held_out(), samples=8)
    for name in ("single_shot", "with_draft"):
        mine = result_of(sampled[1])["measures"][name]["figures"]["avg@4"]
        error = np.hypot(mine["standard_error"], getattr(other, f"{name}_error"))
        assert mine["value"] == pytest.approx(getattr(other, name), abs=4 * error)


def test_drafts_are_chosen_as_the_names_say(sampled: tuple[str, Path]) -> None:
    for record in records_of(sampled[1]):
        drafts = [*record["single_shot"], *record["more_drafts"]]
        assert [answer["draft"] for answer in record["with_draft"]] == list(range(K))
        rewards = [draft["reward"] for draft in drafts]
        assert {answer["draft"] for answer in record["with_oracle_draft"]} == {rewards.index(max(rewards))}


def test_greedy_answers_are_an_argmax_loop_over_the_model(workplace: Path) -> None:
    """Both stages, without `generate`, padding or batches: one forward pass of the whole text for every token."""
    out = workplace / "greedy"
    ran = evaluate(workplace, *PALINDROMES, "--samples", 1, "--temperature", 0, "--out", out)
    assert ran.returncode == 0, ran.stderr
    model = AutoModelForCausalLM.from_pretrained(workplace / "palindromes").eval()
    tokenizer = AutoTokenizer.from_pretrained(workplace / "palindromes")
    score, right = _scorer(), {"single_shot": [], "with_draft": []}

    def greedy(prompt: str) -> tuple[str, int, bool]:
        ids = tokenizer.encode(prompt)
        start = len(ids)
        while len(ids) - start < 8:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                return tokenizer.decode(ids[start:-1]), len(ids) - start, True
        return tokenizer.decode(ids[start:]), 8, False

    for record, problem in zip(records_of(out), _problems(workplace), strict=True):
        question, entry = problem["prompt"], json.loads(problem["entry"])
        draft, *_ = greedy(question)
        for name, prompt in (("single_shot", question), ("with_draft", f"{question}{draft}#{question}")):
            (answer,) = record[name]
            assert (answer["text"], answer["tokens"], answer["finished"]) == greedy(prompt)
            right[name].append(score(answer["text"], entry) >= 1.0)
    for name, values in right.items():
        assert result_of(out)["measures"][name]["figures"]["avg@1"]["value"] == pytest.approx(np.mean(values))


def test_sampled_answers_are_the_models_distribution(workplace: Path, task: Task) -> None:
    """First tokens at temperature 0.7 and top-p 0.9 against the probabilities of one forward pass."""
    out = workplace / "first"
    question = task.question(task.held_out()[0])
    (workplace / "one.jsonl").write_text(json.dumps({"prompt": question}) + "\n")
    options = ("--samples", 2000, "--batch-size", 2000, "--temperature", 0.7, "--top-p", 0.9, "--max-new-tokens", 1)
    ran = evaluate(
        workplace, "palindromes", "one.jsonl", "--reward", "format", "--draft", "none", *options, "--out", out
    )
    assert ran.returncode == 0, ran.stderr
    model = AutoModelForCausalLM.from_pretrained(workplace / "palindromes").eval()
    tokenizer = AutoTokenizer.from_pretrained(workplace / "palindromes")
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(question)])).logits[0, -1]
    probabilities, order = (logits / 0.7).softmax(-1).sort(descending=True)
    kept = probabilities.cumsum(-1) - probabilities < 0.9
    nucleus = dict(zip(order[kept].tolist(), (probabilities[kept] / probabilities[kept].sum()).tolist(), strict=True))
    (record,) = records_of(out)
    texts = [answer["text"] for answer in record["single_shot"]]
    assert 2 <= len(nucleus) < len(tokenizer)
    assert set(texts) <= {tokenizer.decode([token]) for token in nucleus}
    for token, probability in nucleus.items():
        share = texts.count(tokenizer.decode([token])) / 2000
        assert share == pytest.approx(probability, abs=4.5 * (probability * (1 - probability) / 2000) ** 0.5)
