"""What the page says in words and numbers: comparisons, settings, charts to draw."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.ablation.comparison import SETTING, Comparison, compare, final_values, interval, summary
from refine_wrapper.errors import RefineError
from refine_wrapper.metrics import METRICS
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.report.curves import Curve, Curves, by_setting
from refine_wrapper.report.run_folder import ReportError, Run, setting_name, setting_of

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_METRIC: Final = "eval/single_shot"
_POINTS: Final = 300
_POINTS_OF_OTHERS: Final = 120
_HELD_OUT: Final = "eval/"
_ERROR: Final = "/se"

_TITLES: Final = {
    "eval/single_shot": "Held-out accuracy, single-shot",
    "eval/with_draft": "Held-out accuracy, with an own draft",
    "reward": "Training reward",
    "entropy": "Entropy",
    "completion_length": "Completion length",
    "loss": "Loss",
    "refine/gradient_active_share": "Gradient-active groups",
    "refine/gradient_active_share_draft_max": "Gradient-active, draft right already",
    "refine/gradient_active_share_draft_below_max": "Gradient-active, draft below maximum",
    "refine/copy_rate": "Copy rate",
    "refine/uplift": "Uplift",
    "refine/refinement_reward": "Refinement reward",
    "refine/draft_reward_mean": "Draft reward",
}
_NOTES: Final = {
    "eval/single_shot": "Answers to the question alone, as the method is evaluated.",
    "eval/with_draft": "Answers with one draft of the model's own in the prompt.",
    "reward": "Plain: of answers to the question. Refined: of refinements, which see a draft. Not the same problem: "
    "compare held-out accuracy.",
    "entropy": "Mean over tokens, as the host logs it. Refined: of refinements.",
    "completion_length": "Tokens, mean, as the host logs it.",
    "loss": "As the host logs it; of on-policy objectives it says little.",
    "refine/gradient_active_share": "Share of trained groups whose rewards differ. Others add nothing to a "
    "group-relative gradient.",
    "refine/gradient_active_share_draft_max": "The same, of refined groups whose draft has the highest reward.",
    "refine/gradient_active_share_draft_below_max": "The same, of refined groups whose draft has less.",
}
_DRAWN: Final = tuple(_TITLES)[:11]
"""What is drawn without being asked for, in this order, where the run has it."""
_LATE: Final = ("entropy", "refine/gradient_active_share", "refine/copy_rate", "refine/uplift")
"""What the summary says of the last quarter of the steps."""
_NONE: Final = "\N{EN DASH}"
_SHARES: Final = ("_share", "_rate", "_share_draft_max", "_share_draft_below_max")


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart and its numbers.

    Attributes:
        metric: Its name in the results table.
        title: For people.
        note: What it means.
        share: Whether its values are between 0 and 1.
        curves: A curve per task and setting.
    """

    metric: str
    title: str
    note: str
    share: bool
    curves: Sequence[Curve]

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "title": self.title,
            "note": self.note,
            "share": self.share,
            "curves": [curve.as_json() for curve in self.curves],
        }


def title_of(metric: str) -> str:
    """A metric's name for people, else the name itself."""
    return _TITLES.get(metric) or metric.replace(_HELD_OUT, "Held-out ", 1)


def charts(run: Run) -> tuple[list[Chart], list[Chart]]:
    """The charts that are drawn, and those of every other metric that can be asked for."""
    steps = run.table.groupby("metric", observed=True)["step"].nunique()
    measured = sorted(str(name) for name, count in steps.items() if count > 1 and not str(name).endswith(_ERROR))
    drawn = [name for name in _DRAWN if name in measured]
    others = [name for name in measured if name not in drawn]
    curves = Curves(run.table)
    return (
        [_chart(curves, name, _POINTS) for name in drawn],
        [_chart(curves, name, _POINTS_OF_OTHERS) for name in others],
    )


def chosen_metric(run: Run, asked: str | None) -> str | None:
    """The metric that settings are compared by: the one asked for, else held-out accuracy, else the reward.

    Raises:
        ReportError: If the one asked for was not measured.
    """
    names = [str(name) for name in run.table["metric"].unique()]
    if asked is not None and asked not in names:
        raise ReportError(
            f"refine: this run has no metric {asked!r}. {did_you_mean(asked, names)} "
            f"There are: {', '.join(sorted(names))}."
        )
    return next((name for name in (asked, DEFAULT_METRIC, "reward") if name in names), None)


def comparisons(run: Run, metric: str | None) -> list[Comparison]:
    """Refined against plain, if the run has both."""
    if metric is None or run.kind == "trace":
        return []
    try:
        return compare(run.table, metric)
    except RefineError:
        return []  # no cell that did not fail has that metric


@dataclass(frozen=True, slots=True)
class Row:
    """One setting in the summary table: its task, its name, how many seeds, and a cell a column."""

    task: str
    setting: str
    seeds: int
    values: tuple[str, ...]


def settings_table(run: Run, metric: str | None) -> tuple[list[str], list[Row]]:
    """Titles of the columns, and a row per task and setting: accuracies with intervals, and what it cost."""
    table = run.table
    if table.empty:
        return [], []
    names = [str(name) for name in table["metric"].unique()]
    held_out = sorted(name for name in names if name.startswith(_HELD_OUT) and not name.endswith(_ERROR))
    measured: list[str] = [*([metric] if metric else []), *(name for name in held_out if name != metric)]
    late = [name for name in _LATE if name in names]
    found: dict[tuple[str, str], dict[str, str]] = {}
    seeds: dict[tuple[str, str], int] = {}
    last = table.sort_values("step", kind="stable").drop_duplicates("cell", keep="last")
    costs = [name for name in ("completions", "tokens", "seconds") if last[name].notna().any()]
    for row in last.to_dict("records"):
        setting = setting_of(row)
        key = (str(setting["task"] or ""), setting_name(setting))
        seeds[key] = seeds.get(key, 0) + 1
        found.setdefault(key, {})
    for name in measured:
        for row in summary(table, name).to_dict("records"):
            setting = setting_of(row)
            key = (str(setting["task"] or ""), setting_name(setting))
            found[key][name] = with_interval(row["mean"], row["low"], row["high"])
    for name in costs:
        for setting, group in _by_setting(last):
            mean = group[name].mean()
            found[setting][name] = _NONE if isnan(mean) else f"{mean:,.0f}"
    curves = Curves(table[table["metric"].isin(late)])
    for name in late:
        for curve in curves.of(name, points=2):
            found[(curve.task, curve.setting)][name] = number(curve.late.mean)
    columns = [*measured, *costs, *late]
    titles = [
        *map(title_of, measured),
        *(name.capitalize() for name in costs),
        *(f"{title_of(name)}, late" for name in late),
    ]
    rows = [Row(*key, seeds[key], tuple(values.get(name, _NONE) for name in columns)) for key, values in found.items()]
    return titles, rows


def settings_drawn(run: Run) -> list[dict[str, Any]]:
    """How each setting is drawn: plain dashed; a plain and a refined of one objective in one colour if that is all."""
    rows: list[dict[Any, Any]] = run.table.drop_duplicates(list(SETTING)).to_dict("records")
    found = {setting_name(setting): setting for setting in map(setting_of, rows)}
    family = {name: (setting["host"], setting["objective"]) for name, setting in found.items()}
    members = [(family[name], bool(setting["refined"])) for name, setting in found.items()]
    in_pairs = len(members) == len(set(members))
    order: list[Any] = list(dict.fromkeys(family.values() if in_pairs else found))
    return [
        {
            "name": name,
            "colour": order.index(family[name] if in_pairs else name),
            "plain": not setting["refined"],
        }
        for name, setting in found.items()
    ]


def held_out(run: Run) -> list[dict[str, Any]]:
    """For each held-out measure the mean, interval and single seeds of each task and setting."""
    names = sorted({str(name) for name in run.table["metric"].unique() if str(name).startswith(_HELD_OUT)})
    found: list[dict[str, Any]] = []
    for metric in (name for name in names if not name.endswith(_ERROR)):
        rows: list[dict[str, Any]] = []
        for (task, setting), group in _by_setting(final_values(run.table, metric)):
            values = [float(value) for value in group["value"]]
            mean = interval(values)
            rows.append(
                {
                    "task": task,
                    "setting": setting,
                    "mean": mean.mean,
                    "low": mean.low,
                    "high": mean.high,
                    "values": values,
                }
            )
        found.append({"metric": metric, "title": title_of(metric), "rows": rows})
    return found


def number(value: float) -> str:
    """Three digits after the point, as far as they say anything."""
    if isnan(value):
        return _NONE
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def with_interval(mean: float, low: float, high: float) -> str:
    """``0.661 [0.640, 0.682]``, or the mean alone where there is no interval."""
    return number(mean) if isnan(low) else f"{number(mean)} [{number(low)}, {number(high)}]"


def _chart(curves: Curves, metric: str, points: int) -> Chart:
    share = metric.endswith(_SHARES) or metric.startswith(_HELD_OUT)
    note = _NOTES.get(metric) or METRICS.get(metric, "")
    return Chart(metric, title_of(metric), note, share, curves.of(metric, points=points))


def _by_setting(rows: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    found: list[tuple[tuple[str, str], pd.DataFrame]] = []
    for group in by_setting(rows):
        setting = setting_of(group.iloc[0].to_dict())
        found.append(((str(setting["task"] or ""), setting_name(setting)), group))
    return found
