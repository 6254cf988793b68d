"""Once before all cells: a warm-started model and the held-out problems of each task, into the run folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import NAMES, Task
from train import HELD_OUT

from refine_wrapper_demo.warm_start import warm_start

MEASURED = 500
"""Held-out problems that each model is measured on."""


@dataclass(frozen=True)
class _WarmStartTask:
    """A task as the demo's warm start wants it."""

    task: Task

    def question(self, entry: dict[str, Any]) -> str:
        return self.task.question(entry)

    def warm_start(self, seed: int, count: int) -> list[dict[str, Any]]:
        avoid = frozenset(map(self.question, self.task.held_out(HELD_OUT)))
        entries = self.task.entries(1_000_000 + seed, count, avoid)
        return [{**entry, "answer": self.task.answer(entry)} for entry in entries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=250, help="supervised steps of 64 problems")
    options = parser.parse_args()
    for name in NAMES:
        task = Task(name)
        warm_start(options.folder / "start" / name, _WarmStartTask(task), 0, options.steps, lambda step: None)
        rows = task.rows(task.held_out(MEASURED))
        data = options.folder / "held-out" / f"{name}.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{name}: {options.folder / 'start' / name}, {len(rows)} held-out problems")


if __name__ == "__main__":
    main()
