"""A run as the report sees it: a results table and its cells, wherever they came from."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.errors import RefineError
from refine_wrapper.study.ablation.cell import START
from refine_wrapper.study.ablation.comparison import SETTING, setting_label

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = ("cell", *SETTING, "seed", "metric", "step", "completions", "tokens", "seconds", "value")


class ReportError(RefineError, ValueError):
    """There is nothing to report on, or it cannot be read. The message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run.

    Attributes:
        name: Its name, unique in the run.
        setting: Values of the columns in :data:`SETTING`; empty where nobody noted them.
        seed: Its seed, if known.
        state: ``finished``, ``failed``, or ``unfinished``.
        why: Why it failed.
        log: The end of what a failed one printed.
        trace: Its ``groups.jsonl``, if it has one.
        max_reward: The highest reward there is.
    """

    name: str
    setting: Mapping[str, Any]
    seed: int | None = None
    state: str = "finished"
    why: str = ""
    log: str = ""
    trace: Path | None = None
    max_reward: float = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as far as it has got.

    Attributes:
        kind: ``table`` (of an ablation, say) or ``trace``.
        title: For people.
        table: Columns :data:`COLUMNS`, one row per value (refine_wrapper.study.ablation). Failed cells are not in it.
        cells: Every cell, failed ones too.
        plan: The plan as it was written, or nothing.
        notes: What a reader must know about what is missing.
    """

    kind: str
    title: str
    table: pd.DataFrame
    cells: tuple[Cell, ...]
    plan: str = ""
    notes: tuple[str, ...] = ()

    def name_of(self, setting: Mapping[str, Any]) -> str:
        """A setting in a few words, of this run: what host it is need not be said where there is but one."""
        return setting_name(setting, with_host=self.table.loc[self.table["host"] != "", "host"].nunique() > 1)


def setting_of(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The setting in a row of the table, NaN as None."""
    values = {name: row.get(name) for name in SETTING}
    return {name: None if value != value else value for name, value in values.items()}


def setting_name(setting: Mapping[str, Any], *, with_host: bool = True) -> str:
    """Host, objective and the rest of a setting, as far as they are known, in a few words."""
    if not setting:
        return ""
    if setting["objective"] == START:
        return "before training"
    known = [str(setting[name]) for name in ("host", "objective")[not with_host :] if setting[name]]
    return " · ".join([*known, setting_label(setting)])
