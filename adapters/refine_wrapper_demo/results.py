"""What the arms left as a results table, as an ablation has one: ``refine-wrapper report`` reads both alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pandas as pd

from refine_wrapper.study.ablation.table import COLUMNS, write_table
from refine_wrapper_demo.arms import COMPLETIONS, DRAFTS, PROGRESS_FILE, RESULT_FILE

_METRICS: Final = {
    "gradient_active_share": "refine/gradient_active_share",
    "single_shot": "eval/single_shot",
    "with_draft": "eval/with_draft",
}
"""What the demo's lines call otherwise than a results table does."""
_PLACES: Final = ("step", "seconds", "completions", "tokens")


def write_results(out: Path, objective: str) -> Path | None:
    """Write ``results.parquet`` of all arms, as far as they got; None if no arm has made a step."""
    rows = [row for folder in sorted((out / "cells").glob("*")) for row in _rows(folder, objective)]
    if not rows:
        return None
    return write_table(pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict(COLUMNS)), out)


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ``steps.jsonl``, but for the last one of a run that was killed."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line: Any = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            yield line


def _rows(folder: Path, objective: str) -> Iterator[dict[str, Any]]:
    steps, result = folder / PROGRESS_FILE, folder / RESULT_FILE
    if not steps.exists():
        return
    arm, _, seed = folder.name.rpartition("-")
    refined = arm == "refined"
    known = {
        "cell": folder.name,
        "host": "trl",
        "objective": objective,
        "refined": refined,
        "num_drafts": DRAFTS if refined else 0,
        "group_size": COMPLETIONS - DRAFTS if refined else COMPLETIONS,
        "selector": "best" if refined else None,
        "template": None,
        "share": None,
        "task": "palindromes",
        "seed": int(seed),
    }
    so_far = {"completions": 0.0, "tokens": 0.0, "seconds": 0.0}
    step = 0
    for line in lines_of(steps):
        step = int(line["step"])
        so_far = {
            "completions": so_far["completions"] + line["completions"],
            "tokens": so_far["tokens"] + line["tokens"],
            "seconds": line["seconds"],
        }
        for name, value in line.items():
            if name not in _PLACES and value is not None:
                yield {**known, "metric": _METRICS.get(name, name), "step": step, **so_far, "value": float(value)}
    if result.exists():
        measured = json.loads(result.read_text(encoding="utf-8"))
        for name in ("single_shot", "with_draft"):
            # After the measurement on fewer problems at the same step, so that it is the one that counts.
            yield {**known, "metric": f"eval/{name}", "step": step, **so_far, "value": float(measured[name])}
