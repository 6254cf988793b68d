"""The folder of ``refine-wrapper demo`` as a results table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from refine_wrapper.core.trace import FILE_NAME
from refine_wrapper.study.report.run_folder import COLUMNS, Cell, ReportError, Run, setting_of

_STEPS: Final = "steps.jsonl"
_NAMES: Final = {
    "gradient_active_share": "refine/gradient_active_share",
    "single_shot": "eval/single_shot",
    "with_draft": "eval/with_draft",
}
"""What the demo calls otherwise than the results of an ablation do."""
_PLACES: Final = ("step", "seconds", "completions", "tokens")


def is_demo(path: Path) -> bool:
    """Whether the demo made this folder."""
    return (path / "settings.json").exists() and any(path.glob(f"seed-*/*/{_STEPS}"))


def read_demo(path: Path) -> Run:
    """Both arms of each seed, as far as they got.

    Raises:
        ReportError: If no arm has made a step.
    """
    import pandas as pd

    settings = json.loads((path / "settings.json").read_text(encoding="utf-8"))
    cells = tuple(
        _cell(file.parent, str(settings.get("objective", "")))
        for file in sorted(path.glob(f"seed-*/*/{_STEPS}"))
        if file.parent.name in ("plain", "refined")
    )
    rows = [row for cell in cells for row in _rows(cell, path)]
    if not rows:
        raise ReportError(f"refine: no arm of the demo in {str(path)!r} has made a step yet.")
    unfinished = sum(cell.state != "finished" for cell in cells)
    notes = ("Held-out accuracy on the way is of 200 problems with one answer each, at the end of all problems.",)
    if unfinished:
        notes += (f"{unfinished} of {len(cells)} arms are unfinished; `refine-wrapper demo` goes on where it stopped.",)
    return Run("demo", "demo", pd.DataFrame(rows, columns=list(COLUMNS)), cells, notes=notes)


def _cell(folder: Path, objective: str) -> Cell:
    refined = folder.name == "refined"
    # As refine_wrapper_trl.demo.arms runs them: 8 completions, or 4 of them as drafts.
    setting = {
        "host": "trl",
        "objective": objective,
        "task": "palindromes",
        "refined": refined,
        "num_drafts": 4 if refined else 0,
        "group_size": 4 if refined else 8,
        "selector": "best" if refined else None,
    }
    trace = folder / "trace" / FILE_NAME
    return Cell(
        name=f"{folder.parent.name}/{folder.name}",
        setting=setting_of(setting),
        seed=int(folder.parent.name.removeprefix("seed-")),
        state="finished" if (folder / "result.json").exists() else "unfinished",
        trace=trace if trace.exists() else None,
    )


def _rows(cell: Cell, path: Path) -> Iterator[dict[str, Any]]:
    folder = path / cell.name
    so_far = {"completions": 0.0, "tokens": 0.0, "seconds": 0.0}
    step = 0
    known = {"cell": cell.name, **cell.setting, "seed": cell.seed}
    for line in _lines(folder / _STEPS):
        step = int(line["step"])
        so_far = {
            "completions": so_far["completions"] + line["completions"],
            "tokens": so_far["tokens"] + line["tokens"],
            "seconds": line["seconds"],
        }
        for name, value in line.items():
            if name not in _PLACES and value is not None:
                yield {**known, "metric": _NAMES.get(name, name), "step": step, **so_far, "value": float(value)}
    if cell.state == "finished":
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        for name in ("single_shot", "with_draft"):
            # After the measurement on fewer problems at the same step, so that it is the one that counts.
            yield {**known, "metric": f"eval/{name}", "step": step, **so_far, "value": float(result[name])}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line: Any = json.loads(text)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed
        if isinstance(line, dict):
            yield line
