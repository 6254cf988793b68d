"""Plain against refined, paired by seed: means with t intervals over seeds, and no more than they show.

Seeds are few, so intervals are Student's: a bootstrap of three values has three values. With many comparisons some
intervals miss zero by chance, so whether a difference is *shown* is decided on p-values that Holm's method corrected.
"""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.errors import RefineError

if TYPE_CHECKING:
    import pandas as pd

SETTING: Final[tuple[str, ...]] = (
    "host",
    "objective",
    "task",
    "refined",
    "mode",
    "num_drafts",
    "group_size",
    "selector",
    "template",
    "share",
    "options",
)
"""Columns of the results table that make a setting; cells of one setting differ in the seed only."""
CONFIDENCE: Final = 0.95


class ResultsError(RefineError, ValueError):
    """A results table cannot answer what was asked."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean: Of the seeds.
        low: Lower end of the interval; NaN with fewer than two seeds.
        high: Upper end.
        p: Two-sided p-value of the mean being zero; NaN with fewer than two seeds.
    """

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One refined setting against the plain one of the same host, objective and task.

    Attributes:
        task: What was trained.
        host: Where.
        objective: The wrapped objective.
        plain: Name of the plain setting, such as ``plain 8``.
        refined: Name of the refined setting, such as ``4 + 4, best``.
        seeds: Seeds that both have; only these count.
        plain_mean: Mean of the metric over those seeds.
        refined_mean: The same, refined.
        difference: Refined minus plain, mean over seeds.
        low: Lower end of its interval, for this comparison alone.
        high: Upper end.
        p: Its p-value, corrected for all comparisons of the table.
        verdict: What this shows, in a few words.
    """

    task: str
    host: str
    objective: str
    plain: str
    refined: str
    seeds: tuple[int, ...]
    plain_mean: float
    refined_mean: float
    difference: float
    low: float
    high: float
    p: float
    verdict: str


def interval(values: Sequence[float]) -> Interval:
    """Mean and Student's t interval of a few independent values."""
    from scipy import stats

    count = len(values)
    mean = fmean(values) if values else float("nan")
    if count < 2:
        return Interval(mean, float("nan"), float("nan"), float("nan"))
    error = stdev(values) / sqrt(count)
    if error == 0:
        return Interval(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    return Interval(mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


def final_values(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The last value of a metric in each cell, one row a cell.

    Raises:
        ResultsError: If no cell has that metric; with those that there are.
    """
    found = table[(table["metric"] == metric) & table["value"].notna()]
    if found.empty:
        names = ", ".join(sorted(set(table["metric"].tolist())))
        raise ResultsError(f"refine: no cell has a value of {metric!r}. There are: {names or 'no metrics at all'}.")
    return found.sort_values("step", kind="stable").drop_duplicates("cell", keep="last")


def summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Each setting's mean over seeds: the columns of :data:`SETTING`, then label, mean, low, high, seeds."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for setting, values in _by_setting(table, metric):
        found = interval(list(values.values()))
        rows.append(
            {
                **setting,
                "label": setting_label(setting),
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "seeds": len(values),
            }
        )
    return pd.DataFrame(rows)


def compare(table: pd.DataFrame, metric: str) -> list[Comparison]:
    """Every refined setting against the plain one of its host, objective and task, over the seeds that both have.

    Raises:
        ResultsError: If no cell has that metric.
    """
    plain: dict[tuple[str, ...], tuple[str, dict[int, float]]] = {}
    refined: list[tuple[tuple[str, ...], str, dict[int, float]]] = []
    for setting, values in _by_setting(table, metric):
        where = (str(setting["task"]), str(setting["host"]), str(setting["objective"]))
        if setting["refined"]:
            refined.append((where, setting_label(setting), values))
        else:
            plain[where] = (setting_label(setting), values)
    pairs = [_Pair(where, *plain[where], label, values) for where, label, values in refined if where in plain]
    corrected = _holm([pair.difference.p for pair in pairs])
    return [pair.compared(p) for pair, p in zip(pairs, corrected, strict=True)]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A refined setting and its plain one, with their values by seed."""

    where: tuple[str, ...]
    plain: str
    plain_values: dict[int, float]
    refined: str
    refined_values: dict[int, float]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(self.plain_values.keys() & self.refined_values.keys()))

    @property
    def difference(self) -> Interval:
        return interval([self.refined_values[seed] - self.plain_values[seed] for seed in self.seeds])

    def compared(self, p: float) -> Comparison:
        seeds, difference = self.seeds, self.difference
        return Comparison(
            task=self.where[0],
            host=self.where[1],
            objective=self.where[2],
            plain=self.plain,
            refined=self.refined,
            seeds=seeds,
            plain_mean=interval([self.plain_values[seed] for seed in seeds]).mean,
            refined_mean=interval([self.refined_values[seed] for seed in seeds]).mean,
            difference=difference.mean,
            low=difference.low,
            high=difference.high,
            p=p,
            verdict=_verdict(seeds, difference, p),
        )


def setting_label(setting: Mapping[str, Any]) -> str:
    """A setting in a few words: ``plain 8``, ``4 + 4, best``, ``joint 8, 4 drafts, best``, and what differs."""
    if not setting["group_size"]:
        return "before training"
    if not setting["refined"]:
        return f"plain {setting['group_size']}"
    mode, drafts, slots = setting.get("mode"), setting["num_drafts"], setting["group_size"]
    parts = [f"{drafts} + {slots}" if mode in (None, "paper") else f"{mode} {slots}, {drafts} drafts"]
    parts.append(str(setting["selector"]))
    if setting["template"] not in (None, "append"):
        parts.append(Path(str(setting["template"])).name)
    if setting["share"] not in (None, 1.0):
        parts.append(f"{setting['share']:.0%} of prompts")
    if setting.get("options"):
        parts.append(str(setting["options"]))
    return ", ".join(parts)


def sentence(comparisons: Sequence[Comparison], metric: str) -> str:
    """What all comparisons together show, in one or two plain sentences."""
    if not comparisons:
        return f"Nothing is compared: no objective has both a plain and a refined cell with a value of {metric}."
    if len(comparisons) == 1:
        return _of_one(comparisons[0], metric)
    shown = [found for found in comparisons if found.verdict.startswith("refined")]
    seeds = sorted({len(found.seeds) for found in comparisons})
    count = f"{len(comparisons)} comparisons"
    over = (
        f"at {seeds[0]} seed{'s' if seeds[0] != 1 else ''}"
        if len(seeds) == 1
        else f"at {seeds[0]} to {seeds[-1]} seeds"
    )
    if not shown:
        return f"{metric}: no difference shown in any of {count} {over}."
    higher = sum(found.verdict == "refined higher" for found in shown)
    return (
        f"{metric}, {count} {over}: refined higher in {higher}, lower in {len(shown) - higher}, no difference shown in "
        f"{len(comparisons) - len(shown)}."
    )


def caution(metric: str) -> str:
    """What must be said beside a comparison by this metric; empty for most."""
    if metric != "reward":
        return ""
    return (
        "Training rewards of refinements saw a draft, those of plain answers did not: they are not rewards of one "
        "problem, and say little about which model is better. Add `evaluate` to the plan to compare held-out accuracy."
    )


def _of_one(found: Comparison, metric: str) -> str:
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) != 1 else ''}"
    difference = f", {found.difference:+.3f} [{found.low:.3f}, {found.high:.3f}]" if len(found.seeds) > 1 else ""
    return f"{metric}, {found.refined} against {found.plain} at {seeds}: {found.verdict}{difference}."


def _by_setting(table: pd.DataFrame, metric: str) -> list[tuple[dict[str, Any], dict[int, float]]]:
    """Each setting with the final values of its seeds, in the order of the table."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], dict[int, float]]] = {}
    for row in final_values(table, metric).to_dict("records"):
        # NaN is how a table says None, and is equal to nothing.
        values_of = {name: row.get(name) for name in SETTING}  # tables from before modes lack some
        setting = {name: None if value != value else value for name, value in values_of.items()}
        _, values = found.setdefault(tuple(setting.values()), (setting, {}))
        values[int(row["seed"])] = float(row["value"])
    return list(found.values())


def _holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm (1979); NaN stays NaN and does not count."""
    corrected = [float("nan")] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not isnan(p))
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[index] = highest
    return corrected


def _verdict(seeds: tuple[int, ...], difference: Interval, p: float) -> str:
    if not seeds:
        return "no seed in common"
    if len(seeds) < 2:
        return "one seed: nothing can be said"
    if p < 1 - CONFIDENCE:
        return "refined higher" if difference.mean > 0 else "refined lower"
    return "no difference shown"
