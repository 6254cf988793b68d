"""A small model that can do its task a little, its problems, and a random model with a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refine_testing.tiny import save_tiny

from refine_wrapper_demo.task import REFINE_TEMPLATE, Task
from refine_wrapper_demo.warm_start import warm_start


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """See `refine_testing.evaluations`; also the threads of a sum change its last bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def task() -> Task:
    """Palindromes of four letters, by reasoning-gym."""
    return Task(letters=4, num_held_out=40)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    """A folder with the models ``palindromes`` (the demo's Llama after a short warm start) and ``tiny`` (random)."""
    folder = tmp_path_factory.mktemp("evaluation")
    warm_start(folder / "palindromes", task, seed=0, steps=80, on_step=lambda step: None)
    rows = [{**row, "answer": json.loads(row["entry"])["answer"]} for row in task.rows(task.held_out())]
    (folder / "palindromes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "template.txt").write_text(REFINE_TEMPLATE)
    save_tiny(folder / "tiny")
    return folder
