"""What a run folder holds: a results table with its cells, or nothing but a trace."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from refine_wrapper.core.trace import FILE_NAME
from refine_wrapper.files import read_json
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.study.report.run import COLUMNS, Cell, ReportError, Run, setting_of
from refine_wrapper.study.report.trace_table import trace_run

if TYPE_CHECKING:
    import pandas as pd

RESULTS: Final = "results.parquet"
_NEW: Final = ("mode", "options")
_LOG_LINES: Final = 60
_TRACES_NAMED: Final = 10


def read_run(path: Path, *, max_reward: float | None = None) -> Run:
    """Read a run folder.

    Args:
        path: A folder with a results table, as an ablation leaves it, or with a single ``groups.jsonl`` (or that file).
        max_reward: The highest reward there is, where the run did not note it.

    Raises:
        ReportError: If there is no such folder or nothing in it can be reported.
    """
    if not path.exists():
        raise ReportError(
            f"refine: there is no folder {str(path)!r}. Give the folder of a run: what `refine-wrapper ablate` "
            "wrote, or the one of --refine.trace_dir."
        )
    if path.is_file():
        if path.suffix != ".jsonl":
            raise ReportError(f"refine: {str(path)!r} is a file. Give the folder of the run that holds it.")
        return trace_run(path, max_reward=max_reward)
    if (path / RESULTS).exists():
        return _read_table_and_cells(path, max_reward)
    if (path / "cells").is_dir():
        raise ReportError(
            f"refine: {str(path)!r} has cells but no {RESULTS} yet: no cell is finished. Wait for the first, or go on "
            "with `refine-wrapper ablate`; a single cell's trace can be shown: give its folder."
        )
    traces = sorted(path.rglob(FILE_NAME))
    if len(traces) == 1:
        return trace_run(traces[0], max_reward=max_reward)
    if traces:
        listed = "\n".join(f"  {trace.parent}" for trace in traces[:_TRACES_NAMED])
        more = f"\n  and {len(traces) - _TRACES_NAMED} more" if len(traces) > _TRACES_NAMED else ""
        raise ReportError(
            f"refine: {str(path)!r} holds {len(traces)} traces, and no {RESULTS} that says what they are. Give one of "
            f"their folders:\n{listed}{more}"
        )
    raise ReportError(
        f"refine: nothing to report in {str(path)!r}: neither {RESULTS} (`refine-wrapper ablate`) nor {FILE_NAME} "
        "(train with --refine.trace_dir DIR, and --refine.trace_texts for texts)."
    )


def _read_table_and_cells(path: Path, max_reward: float | None) -> Run:
    table = _read_table(path / RESULTS)
    rows = table.drop_duplicates("cell").to_dict("records")
    settings = {str(row["cell"]): (setting_of(row), int(row["seed"])) for row in rows}
    folders = {folder.name: folder for folder in sorted((path / "cells").glob("*")) if folder.is_dir()}
    names = list(dict.fromkeys([*settings, *folders]))
    cells = tuple(_read_cell(name, folders.get(name), settings.get(name), max_reward) for name in names)
    failed = {cell.name for cell in cells if cell.state == "failed"}
    plan = path / "plan.yaml"
    return Run(
        kind="table",
        title=path.absolute().name,
        table=table[~table["cell"].isin(list(failed))],
        cells=cells,
        plan=plan.read_text(encoding="utf-8", errors="replace") if plan.exists() else "",
    )


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    try:
        table = pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ReportError(
            f"refine: {str(path)!r} cannot be read ({error}). It may be half written: write it again with "
            "`refine-wrapper ablate`, which repeats no finished cell."
        ) from None
    # Results from before modes, when all that was refined was in the mode `paper`.
    table = table.assign(**{name: None for name in _NEW if name not in table.columns})
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ReportError(f"refine: {str(path)!r} lacks the columns {', '.join(missing)}: it is not from `ablate`.")
    if not table["value"].notna().any():
        raise ReportError(f"refine: {str(path)!r} has no values: no cell has measured anything yet.")
    # A text that is missing is None, whichever of its NAs pandas reads; a value that is missing says nothing.
    texts = ("host", "objective", "task", "mode", "selector", "template", "options")
    table = table.assign(**{name: table[name].astype(object).where(table[name].notna(), None) for name in texts})
    return table[table["value"].notna()]


def _read_cell(
    name: str, folder: Path | None, noted: tuple[dict[str, Any], int] | None, max_reward: float | None
) -> Cell:
    described = read_json(folder / "cell.json") if folder else None
    # A cell that was killed, or has not started: what it has is shown.
    status = (read_json(folder / "status.json") if folder else None) or {}
    setting, seed = noted or ({}, None)
    state = str(status.get("state", "finished" if noted else "unfinished"))
    trace = folder / "trace" / FILE_NAME if folder else None
    return Cell(
        name=name,
        setting=setting,
        seed=seed,
        state=state,
        why=str(status.get("why", "")),
        log=_last_lines(folder / "log.txt") if folder and state == "failed" else "",
        trace=trace if trace and trace.exists() else None,
        max_reward=_max_reward(described) if max_reward is None else max_reward,
    )


def _max_reward(described: Mapping[str, Any] | None) -> float:
    """From the cell's refinement settings, which leave out what is as it is by default."""
    refine: Any = (described or {}).get("refine")
    stated: Any = cast("dict[str, Any]", refine).get("max_reward") if isinstance(refine, dict) else None
    return float(stated if isinstance(stated, (int, float)) else RefineConfig().max_reward)


def _last_lines(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, _LOG_LINES))
    except OSError:
        return ""
