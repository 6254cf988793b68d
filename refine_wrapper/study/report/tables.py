"""What the page says in words and numbers: comparisons, settings, charts to draw."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.core.metrics import MEANINGS
from refine_wrapper.errors import RefineError
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.study.ablation.cell import START
from refine_wrapper.study.ablation.comparison import SETTING, Comparison, compare, final_values, interval, summary
from refine_wrapper.study.report.curves import Curve, Curves, by_setting
from refine_wrapper.study.report.figures import NONE, number, with_interval
from refine_wrapper.study.report.run import ReportError, Run, setting_of

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_METRIC: Final = "eval/single_shot"
_POINTS: Final = 300
_POINTS_OF_OTHERS: Final = 120
_HELD_OUT: Final = "eval/"
_ERRORS: Final = ("/se", "/low", "/high")
"""Of a held-out figure over problems."""

_TITLES: Final = {
    "eval/single_shot": "Held-out accuracy, single-shot",
    "eval/with_draft": "Held-out accuracy, with an own draft",
    "reward": "Training reward",
    "entropy": "Entropy",
    "completion_length": "Completion length",
    "loss": "Loss",
    "refine/gradient_active_share": "Gradient-active groups",
    "refine/gradient_active_share_draft_max": "Gradient-active, draft at the maximum",
    "refine/gradient_active_share_draft_below_max": "Gradient-active, draft below the maximum",
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
_NEUTRAL: Final = 7
"""The grey after the colours that page.css has."""
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
    if metric in _TITLES:
        return _TITLES[metric]
    measure, _, figure = metric.rpartition("/")  # such as eval/single_shot/pass@4
    of_measure = _TITLES.get(measure, "Held-out")
    return f"{of_measure}: {figure}" if metric.startswith(_HELD_OUT) else metric


def charts(run: Run) -> tuple[list[Chart], list[Chart]]:
    """The charts that are drawn, and those of every other metric that can be asked for."""
    # Of one cell: held-out results at the end alone make no curve, beside those of the start model neither.
    steps = run.table.groupby(["metric", "cell"], observed=True)["step"].nunique().groupby("metric").max()
    measured = sorted(str(name) for name, count in steps.items() if count > 1 and not str(name).endswith(_ERRORS))
    drawn = [name for name in _DRAWN if name in measured]
    others = [name for name in measured if name not in drawn]
    curves = Curves(run.table, run.name_of)
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
class Table:
    """A table of settings.

    Attributes:
        title: What it shows.
        columns: Titles of the columns after task, setting and number of seeds.
        rows: Task, setting, number of seeds, and a text a column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, int, tuple[str, ...]], ...]


def settings_tables(run: Run, metric: str | None) -> list[Table]:
    """What was measured of each setting, and what it cost."""
    if run.table.empty:
        return []
    names = [str(name) for name in run.table["metric"].unique()]
    measured = [name for name in held_out_metrics(run) if name != metric and _in_summary(name)]
    measured = [metric, *measured] if metric else measured
    last = run.table.sort_values("step", kind="stable").drop_duplicates("cell", keep="last")
    seeds = {key: len(rows) for key, rows in _by_setting(last, run)}
    results = {name: _means(run, name) for name in measured}
    costs: dict[str, dict[tuple[str, str], str]] = {
        name.capitalize(): {
            key: f"{rows[name].mean():,.0f}" for key, rows in _by_setting(last, run) if rows[name].notna().any()
        }
        for name in ("completions", "tokens", "seconds")
        if last[name].notna().any()
    }
    late = [name for name in _LATE if name in names]
    curves = Curves(run.table[run.table["metric"].isin(late)], run.name_of)
    for name in late:
        of_setting = curves.of(name, points=2)
        costs[f"{title_of(name)}, late"] = {
            (curve.task, curve.setting): number(curve.late.mean) for curve in of_setting
        }
    tables = [
        (
            "Measured; intervals are of the seeds; of one seed \N{PLUS-MINUS SIGN} is its standard error over "
            "problems, or an interval over problems where all agree",
            {title_of(name): values for name, values in results.items()},
        ),
        ("Cost and diagnostics; late: the last quarter of the steps", costs),
    ]
    return [
        Table(
            title,
            tuple(columns),
            tuple(
                (*key, count, tuple(values.get(key, NONE) for values in columns.values()))
                for key, count in seeds.items()
                if any(key in values for values in columns.values())
            ),
        )
        for title, columns in tables
        if columns
    ]


def held_out_metrics(run: Run) -> list[str]:
    """Names of what was measured on held-out problems, single-shot first."""
    names = [str(name) for name in run.table["metric"].unique()]
    found = sorted(name for name in names if name.startswith(_HELD_OUT) and not name.endswith(_ERRORS))
    return sorted(found, key=lambda name: not name.startswith(DEFAULT_METRIC))


def _in_summary(metric: str) -> bool:
    """Accuracies, pass@k and what a draft changed; all the rest can be chosen in the chart."""
    figure = metric.rpartition("/")[2]
    return metric in _TITLES or figure.startswith("pass@") or figure == "minus_single_shot"


def settings_drawn(run: Run) -> list[dict[str, Any]]:
    """How each setting is drawn: plain dashed; a plain and a refined of one objective in one colour if that is all."""
    rows: list[dict[Any, Any]] = run.table.drop_duplicates(list(SETTING)).to_dict("records")
    found = {run.name_of(setting): setting for setting in map(setting_of, rows)}
    trained = {name: setting for name, setting in found.items() if setting["objective"] != START}
    family = {name: (setting["host"], setting["objective"]) for name, setting in trained.items()}
    members = [(family[name], bool(setting["refined"])) for name, setting in trained.items()]
    # A single pair is told apart by colour too.
    in_pairs = len(members) == len(set(members)) and len(set(family.values())) > 1
    colour_of: dict[str, Any] = {name: family[name] if in_pairs else name for name in trained}
    order = list(dict.fromkeys(colour_of.values()))

    def drawn(name: str) -> tuple[int, int]:
        """Which colour, and which dash where colours do not suffice."""
        if name not in trained:
            return _NEUTRAL, 0
        dash, colour = divmod(order.index(colour_of[name]), _NEUTRAL)
        return colour, dash

    return [
        {"name": name, "plain": not setting["refined"], "colour": drawn(name)[0], "dash": drawn(name)[1]}
        for name, setting in found.items()
    ]


def held_out(run: Run) -> list[dict[str, Any]]:
    """For each held-out measure the mean, interval and single seeds of each task and setting."""
    return [
        {
            "metric": metric,
            "title": title_of(metric),
            "rows": [
                {"task": task, "setting": setting, **_values_and_mean([float(value) for value in rows["value"]])}
                for (task, setting), rows in _by_setting(final_values(run.table, metric), run)
            ],
        }
        for metric in held_out_metrics(run)
    ]


def _values_and_mean(values: list[float]) -> dict[str, Any]:
    mean = interval(values)
    return {"mean": mean.mean, "low": mean.low, "high": mean.high, "values": values}


def _means(run: Run, metric: str) -> dict[tuple[str, str], str]:
    """Final values of a metric: mean and interval over seeds, or the one seed and its error over problems."""
    measured = set(run.table["metric"])
    of_problems = {
        error: _final_by_setting(run, metric + error) if metric + error in measured else {} for error in _ERRORS
    }
    found: dict[tuple[str, str], str] = {}
    for key, row in _final_by_setting(run, metric).items():
        error, low, high = (of_problems[name].get(key) for name in _ERRORS)
        if row["seeds"] == 1 and low and high:  # all problems agree
            found[key] = with_interval(row["mean"], low["mean"], high["mean"])
        elif row["seeds"] == 1 and error:
            found[key] = f"{number(row['mean'])} \N{PLUS-MINUS SIGN} {number(error['mean'])}"
        else:
            found[key] = with_interval(row["mean"], row["low"], row["high"])
    return found


def _final_by_setting(run: Run, metric: str) -> dict[tuple[str, str], Mapping[Any, Any]]:
    rows = summary(run.table, metric).to_dict("records")
    return {_key(setting_of(row), run): row for row in rows}


def _chart(curves: Curves, metric: str, points: int) -> Chart:
    share = metric.endswith(_SHARES) or metric in (DEFAULT_METRIC, "eval/with_draft")
    note = _NOTES.get(metric) or MEANINGS.get(metric, "")
    return Chart(metric, title_of(metric), note, share, curves.of(metric, points=points))


def _by_setting(rows: pd.DataFrame, run: Run) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    return [(_key(setting_of(group.iloc[0].to_dict()), run), group) for group in by_setting(rows)]


def _key(setting: Mapping[str, Any], run: Run) -> tuple[str, str]:
    """Task and name."""
    return str(setting["task"] or ""), run.name_of(setting)
