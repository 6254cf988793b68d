"""A comparison for people: on the screen, and as Markdown for a README or an issue."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from refine_wrapper.study.ablation.comparison import Comparison, caution, sentence

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "task",
    "host",
    "objective",
    "refined",
    "plain",
    "refined",
    "difference, 95 %",
    "p (Holm)",
    "seeds",
    "shown",
)


def comparison_table(comparisons: Sequence[Comparison], metric: str) -> Table:
    """One row per refined setting, in as few columns as say what differs."""
    table = Table(title=metric, box=box.SIMPLE_HEAD)
    where = [name for name in ("task", "host", "objective") if len({getattr(c, name) for c in comparisons}) > 1]
    for heading in (*where, "setting"):
        table.add_column(heading)
    for heading in ("plain", "refined", "difference, 95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("seeds", "shown"):
        table.add_column(heading)
    for found in comparisons:
        table.add_row(
            *(str(getattr(found, name)) for name in where),
            found.refined,
            _number(found.plain_mean),
            _number(found.refined_mean),
            _interval(found.difference, found.low, found.high, sign="+"),
            str(len(found.seeds)),
            found.verdict,
        )
    return table


def markdown(summary: pd.DataFrame, comparisons: Sequence[Comparison], metric: str, states: str) -> str:
    """The content of summary.md."""
    said = filter(None, (sentence(comparisons, metric), caution(metric), f"Cells: {states}."))
    lines = [f"# {metric}", "", *(line for paragraph in said for line in (paragraph, ""))]
    lines += [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(found))} |" for found in comparisons]
    lines += ["", "| task | host | objective | setting | mean, 95 % | seeds |", "|---|---|---|---|---|---|"]
    for row in summary.to_dict("records"):
        named = [str(row[name]) for name in ("task", "host", "objective", "label")]
        lines.append(f"| {' | '.join(named)} | {_interval(row['mean'], row['low'], row['high'])} | {row['seeds']} |")
    lines += [
        "",
        "Means over seeds with Student's 95 % intervals. Differences are refined minus plain, paired by seed; one "
        "counts as shown if its p-value, corrected by Holm's method for all comparisons of the table, is below 0.05.",
        "",
    ]
    return "\n".join(lines)


def _cells(found: Comparison) -> list[str]:
    return [
        found.task,
        found.host,
        found.objective,
        found.refined,
        _number(found.plain_mean),
        _number(found.refined_mean),
        _interval(found.difference, found.low, found.high, sign="+"),
        _number(found.p),
        str(len(found.seeds)),
        found.verdict,
    ]


def _interval(mean: float, low: float, high: float, sign: str = "") -> str:
    if isnan(mean):
        return ""
    shown = format(mean, f"{sign}.3f")
    return shown if isnan(low) else f"{shown} ({low:{sign}.3f} to {high:{sign}.3f})"


def _number(value: float) -> str:
    return "" if isnan(value) else f"{value:.3f}"
