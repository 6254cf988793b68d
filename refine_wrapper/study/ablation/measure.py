"""``python -m refine_wrapper.study.ablation.measure FOLDER MODEL``: the held-out measure of a cell."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from refine_wrapper.errors import RefineError
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.study.ablation.cell import CellFolder
from refine_wrapper.study.evaluation import EvaluationSettings, evaluate
from refine_wrapper.study.evaluation.screen import table


def main(arguments: Sequence[str]) -> int:
    """Measure a model with the settings of a cell, into its folder ``evaluation``; goes on where it was stopped."""
    folder, model = CellFolder(Path(arguments[0])), arguments[1]
    cell = folder.cell()
    assert cell.evaluate is not None, "whoever starts this has looked"
    refine = RefineConfig(**{**cell.drafts, "plugin_modules": cell.plugin_modules})
    try:
        evaluation = evaluate(EvaluationSettings(**cell.evaluate), model, out=folder.path / "evaluation", refine=refine)
    except RefineError as error:
        print(error, file=sys.stderr)  # noqa: T201  (into the cell's log)
        return 2
    Console(width=120).print(table(evaluation))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
