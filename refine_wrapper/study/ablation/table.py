"""The results table: every value of every cell, one row each, as Parquet."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.files import read_json
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.study.ablation.cell import Cell, CellFolder
from refine_wrapper.study.ablation.events import Value, named, read_scalars
from refine_wrapper.study.ablation.plan import launch_of
from refine_wrapper.study.ablation.spent import (
    Spent,
    first_step,
    plain_spent,
    prompts_per_step,
    refined_spent,
)

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME: Final = "results.parquet"
COLUMNS: Final[Mapping[str, str]] = {
    "cell": "string",
    "host": "string",
    "objective": "string",
    "refined": "bool",
    "mode": "string",
    "num_drafts": "int64",
    "group_size": "int64",
    "selector": "string",
    "template": "string",
    "share": "float64",
    "options": "string",
    "task": "string",
    "seed": "int64",
    "metric": "string",
    "step": "int64",
    "completions": "float64",
    "tokens": "float64",
    "seconds": "float64",
    "value": "float64",
}
"""Column -> type. ``completions``, ``tokens`` and ``seconds`` (from the first logged step on) count up to ``step``."""


def build_table(folders: Iterable[CellFolder]) -> pd.DataFrame:
    """All values of all cells, also of unfinished ones: what they logged so far."""
    import pandas as pd

    cells = [(folder, folder.cell()) for folder in folders]
    plugins = Plugins(tuple(dict.fromkeys(name for _, cell in cells for name in cell.plugin_modules)))
    spent = {cell.name: refined_spent(folder.path / "trace") for folder, cell in cells if cell.refined}
    logged = {
        cell.name: named(read_scalars(folder.path / "tensorboard"), launch_of(cell.host, plugins))
        for folder, cell in cells
        if cell.command
    }
    steps = {
        name: max((value.step for values in tags.values() for value in values), default=0)
        for name, tags in logged.items()
    }
    prompts = _prompts(cells, spent, steps)
    rows = [
        {**cell.columns, **row}
        for folder, cell in cells
        for row in _rows(folder, cell, logged.get(cell.name, {}), spent.get(cell.name), prompts)
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict(COLUMNS))


def write_table(table: pd.DataFrame, run: Path) -> Path:
    """Write ``results.parquet``, whole or not at all."""
    path = run / FILE_NAME
    part = run / f".{FILE_NAME}.part"
    table.to_parquet(part, index=False)
    part.replace(path)
    return path


def read_table(run: Path) -> pd.DataFrame:
    """The table of a run.

    Raises:
        ConfigError: If there is none.
    """
    import pandas as pd

    path = run / FILE_NAME
    if not path.is_file():
        raise ConfigError(
            f"refine: {str(run)!r} holds no {FILE_NAME}. `refine-wrapper ablate PLAN --out {run}` writes it."
        )
    return pd.read_parquet(path)


def _prompts(
    cells: Iterable[tuple[CellFolder, Cell]], spent: Mapping[str, dict[int, Spent]], steps: Mapping[str, int]
) -> dict[tuple[str, str], float]:
    """Host and task -> prompts per step, from a refined cell: the same command launches all cells."""
    found: dict[tuple[str, str], float] = {}
    for _, cell in cells:
        prompts = prompts_per_step(spent.get(cell.name, {}), steps.get(cell.name, 0))
        if prompts is not None:
            found.setdefault((cell.host, cell.task), prompts)
    return found


def _rows(
    folder: CellFolder,
    cell: Cell,
    logged: Mapping[str, list[Value]],
    spent: dict[int, Spent] | None,
    prompts: Mapping[tuple[str, str], float],
) -> Iterator[dict[str, Any]]:
    """All but the columns of the cell."""
    per_step = cell.prompts or prompts.get((cell.host, cell.task))
    if spent is None and per_step is not None:
        spent = plain_spent(logged, per_step, cell.completions)
    axes = _axes(logged, spent or {})
    for metric, values in logged.items():
        for value in values:
            yield {"metric": metric, "step": value.step, "value": value.value, **axes.get(value.step, {})}
    last = max(axes, default=0)
    for metric, value in _evaluated(folder):
        yield {"metric": metric, "step": last, "value": value, **axes.get(last, {})}


def _axes(logged: Mapping[str, list[Value]], spent: Mapping[int, Spent]) -> dict[int, dict[str, float]]:
    """Step -> completions, tokens and seconds up to it."""
    times: dict[int, float] = {}
    for values in logged.values():
        for value in values:
            times[value.step] = min(times.get(value.step, value.time), value.time)
    steps = sorted(times)
    known = sorted(spent)
    completions = dict(zip(known, accumulate(spent[step].completions for step in known), strict=True))
    tokens = dict(zip(known, accumulate(spent[step].tokens for step in known), strict=True))
    shift = first_step(logged) - known[0] if known else 0
    axes: dict[int, dict[str, float]] = {}
    done = 0
    for step in steps:
        while done < len(known) and known[done] + shift <= step:
            done += 1
        until = known[done - 1] if done else None
        axes[step] = {
            "completions": nan if until is None else completions[until],
            "tokens": nan if until is None else tokens[until],
            "seconds": times[step] - times[steps[0]],
        }
    return axes


def _evaluated(folder: CellFolder) -> Iterator[tuple[str, float]]:
    """``eval/single_shot``, its standard error or interval over problems, ``eval/single_shot/pass@4`` ..."""
    measured = read_json(folder.path / "evaluation" / "evaluation.json")
    for name, measure in (measured or {}).get("measures", {}).items():
        for position, (figure, estimate) in enumerate(measure["figures"].items()):
            if estimate["value"] is None:
                continue
            if position == 0:  # avg@k
                yield f"eval/{name}", float(estimate["value"])
                yield (
                    f"eval/{name}/se",
                    float(estimate["standard_error"] if estimate["standard_error"] is not None else nan),
                )
                # Where all problems agree the standard error is 0 and says nothing.
                for end, bound in zip(("low", "high"), estimate.get("interval") or (), strict=False):
                    yield f"eval/{name}/{end}", float(bound)
            else:
                yield f"eval/{name}/{figure}", float(estimate["value"])
