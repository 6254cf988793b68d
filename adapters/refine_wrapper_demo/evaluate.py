"""Held-out accuracy: single-shot on q, and with a draft of the model's own in the prompt (chosen by nobody)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

from refine_wrapper_demo.task import REFINE_TEMPLATE, Task

MAX_ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Accuracy:
    """Accuracies on held-out problems, with standard errors over problems.

    Attributes:
        single_shot: Sampled on q at temperature 1, as the method evaluates.
        with_draft: Sampled on q' with one draft of the model's own, whatever that draft is worth.
        copied: Share of the answers with a draft that repeat it.
    """

    single_shot: float
    single_shot_error: float
    with_draft: float
    with_draft_error: float
    copied: float


def evaluate(model: Any, tokenizer: Any, task: Task, entries: Sequence[dict[str, Any]], samples: int = 2) -> Accuracy:
    """Measure a model. Draws from a generator of its own: a training run that is measured goes on as if it was not."""
    questions = [task.question(entry) for entry in entries for _ in range(samples)]
    repeated = [entry for entry in entries for _ in range(samples)]
    training = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1234)
        model.eval()
        drafts = _sample(model, tokenizer, questions)
        prompts = [REFINE_TEMPLATE.format(question=q, draft=d) for q, d in zip(questions, drafts, strict=True)]
        refinements = _sample(model, tokenizer, prompts)
        model.train(training)
    single = [task.score(text, entry) for text, entry in zip(drafts, repeated, strict=True)]
    refined = [task.score(text, entry) for text, entry in zip(refinements, repeated, strict=True)]
    copied = fmean(d == r for d, r in zip(drafts, refinements, strict=True))
    return Accuracy(*_mean_and_error(single, samples), *_mean_and_error(refined, samples), copied)


def _sample(model: Any, tokenizer: Any, prompts: Sequence[str], batch: int = 512) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True, padding_side="left")
        generated = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_ANSWER_TOKENS,
        )
        texts += tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def _mean_and_error(scores: Sequence[float], samples: int) -> tuple[float, float]:
    """Mean, and its standard error over problems (samples of one problem are not independent)."""
    problems = [fmean(scores[start : start + samples]) for start in range(0, len(scores), samples)]
    return fmean(problems), stdev(problems) / math.sqrt(len(problems)) if len(problems) > 1 else 0.0
