"""Supervised warm start on noisy answers, half of it in the refine format.

Without any refine format in it, the accuracy with a draft starts at zero and refinement never gets a gradient; without
noise there is nothing left to learn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from refine_wrapper_demo.task import ALPHABET, REFINE_TEMPLATE, Task
from refine_wrapper_demo.tiny import build_model, build_tokenizer

BATCH = 64
LEARNING_RATE = 3e-3
NOISE = 0.06
"""Chance that a letter of a target or of a draft is replaced by a random one."""


def warm_start(folder: Path, task: Task, seed: int, steps: int, on_step: Callable[[int], None]) -> None:
    """Train a fresh model and write it, with its tokenizer, to a folder. Deterministic in the seed.

    Args:
        folder: Where the model goes.
        task: Where the problems come from.
        seed: Of the model, the problems and the noise.
        steps: Optimizer steps of 64 problems.
        on_step: Called with the number of finished steps.
    """
    rng = random.Random(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
    )
    entries = task.warm_start(seed, steps * BATCH)
    for step in range(steps):
        rows: list[tuple[str, str]] = []
        for number, entry in enumerate(entries[step * BATCH : (step + 1) * BATCH]):
            question, answer = task.question(entry), entry["answer"]
            prompt = question
            if number % 2:
                prompt = REFINE_TEMPLATE.format(question=question, draft=_noisy(rng, answer))
            rows.append((prompt, _noisy(rng, answer)))
        loss = model(**_batch(tokenizer, rows)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _noisy(rng: random.Random, text: str) -> str:
    return "".join(rng.choice(ALPHABET) if rng.random() < NOISE else letter for letter in text)


def _batch(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Prompts and answers, padded on the right; only answers carry a loss."""
    prompts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt, _ in rows]
    answers = [[*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id] for _, answer in rows]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        input_ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return {"input_ids": input_ids, "labels": labels}
