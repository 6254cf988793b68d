"""Learning curves of a results table: each seed, and mean with t interval over seeds where all seeds have a value."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, Final

from refine_wrapper.study.ablation.comparison import CONFIDENCE, SETTING, Interval, interval
from refine_wrapper.study.report.figures import with_interval
from refine_wrapper.study.report.run import setting_of

if TYPE_CHECKING:
    import pandas as pd

AXES: Final = ("step", "completions", "tokens", "seconds")
_WINDOWS_PER_CURVE: Final = 25
"""A smoothed curve is a running mean over this part of its steps."""
_MIN_TO_SMOOTH: Final = 30
"""A curve of fewer values is drawn as it is."""


@dataclass(frozen=True, slots=True)
class Line:
    """One drawn line.

    Attributes:
        x: For each axis the places of the points, or None where it was not recorded.
        y: The values.
        low: Lower ends of the interval, of a mean over at least two seeds.
        high: Upper ends.
    """

    x: Mapping[str, list[float] | None]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None

    def as_json(self) -> dict[str, Any]:
        return {"x": dict(self.x), "y": self.y, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one setting.

    Attributes:
        task: What was trained; empty if unknown.
        setting: Its name.
        seeds: The seeds, in the order of the lines in each pair of ``lines``.
        window: Steps in the running mean of the smoothed lines; 1 if there are none.
        lines: ``raw`` and perhaps ``smooth``: the mean, and a line per seed.
        late: Mean over the last quarter of the steps, over seeds.
    """

    task: str
    setting: str
    seeds: tuple[int, ...]
    window: int
    lines: Mapping[str, tuple[Line, tuple[Line, ...]]]
    late: Interval

    @property
    def late_text(self) -> str:
        return with_interval(self.late.mean, self.late.low, self.late.high)

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "setting": self.setting,
            "seeds": list(self.seeds),
            "window": self.window,
            **{
                name: {"mean": mean.as_json(), "seeds": [line.as_json() for line in seeds]}
                for name, (mean, seeds) in self.lines.items()
            },
        }


class Curves:
    """The curves of a results table; what does not depend on the metric is worked out once.

    Args:
        table: A results table.
        name_of: Gives a setting its name.
    """

    def __init__(self, table: pd.DataFrame, name_of: Callable[[Mapping[str, Any]], str]) -> None:
        self._settings = [_Setting(rows, name_of) for rows in by_setting(table)]

    def of(self, metric: str, *, points: int) -> list[Curve]:
        """The curves of a metric, a curve per task and setting, in the order of the table.

        Args:
            metric: Its name in the table.
            points: Most points of a line; of more, evenly spaced ones are taken, the last among them.
        """
        found = (setting.curve(metric, points) for setting in self._settings)
        return [curve for curve in found if curve is not None]


def by_setting(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each task and setting, in the order of the table."""
    if table.empty:
        return []
    groups = table.groupby(list(SETTING), dropna=False, sort=False, observed=True)
    return [rows for _, rows in groups]


class _Setting:
    """One task and setting: its rows by metric, and where each of its steps stands on the other axes."""

    def __init__(self, rows: pd.DataFrame, name_of: Callable[[Mapping[str, Any]], str]) -> None:
        head = setting_of(rows.iloc[0].to_dict())
        self._task, self._name = str(head["task"] or ""), name_of(head)
        self._by_metric = {
            str(metric): of_metric for metric, of_metric in rows[rows["value"].notna()].groupby("metric", observed=True)
        }
        places = rows.drop_duplicates(["step", "seed"], keep="last")
        self._places = {axis: _steps_by_seeds(places, axis) for axis in AXES[1:] if rows[axis].notna().any()}

    def curve(self, metric: str, points: int) -> Curve | None:
        if metric not in self._by_metric:
            return None
        # Of two values at one step the later row counts: it was measured again, or more thoroughly.
        raw = _steps_by_seeds(self._by_metric[metric].drop_duplicates(["step", "seed"], keep="last"), "value")
        window = max(1, round(len(raw) / _WINDOWS_PER_CURVE)) if len(raw) >= _MIN_TO_SMOOTH else 1
        lines = {"raw": _lines(raw, self._places, points)}
        if window > 1:
            # Steps without a value (no draft at the maximum in that batch, say) take what the window around them has,
            # so that seeds can be averaged; no seed goes on after its own last value.
            smooth = raw.rolling(window, min_periods=1).mean().where(raw.bfill().notna())
            lines["smooth"] = _lines(smooth, self._places, points)
        steps = raw.index.to_numpy()
        late = raw[steps > steps[0] + 0.75 * (steps[-1] - steps[0])] if len(steps) > 1 else raw
        return Curve(
            task=self._task,
            setting=self._name,
            seeds=tuple(int(seed) for seed in raw.columns),
            window=window,
            lines=lines,
            late=interval([float(value) for value in late.mean().dropna()]),
        )


def _steps_by_seeds(rows: pd.DataFrame, column: str) -> Any:
    return rows.set_index(["step", "seed"])[column].unstack("seed").sort_index()


def _lines(values: pd.DataFrame, places: Mapping[str, pd.DataFrame], points: int) -> tuple[Line, tuple[Line, ...]]:
    """The mean line and one line a seed; ``values`` and each of ``places`` are steps x seeds."""
    from scipy import stats

    per_seed: list[Line] = []
    for seed in values.columns:
        column = _thin(values[seed].dropna(), points)
        x: dict[str, list[float] | None] = {"step": _numbers(column.index)}
        for axis in AXES[1:]:
            known = places[axis][seed].reindex(column.index) if axis in places and seed in places[axis] else None
            x[axis] = _numbers(known) if known is not None and known.notna().all() else None
        per_seed.append(Line(x, _numbers(column)))
    common = _thin(values.dropna(), points)
    x = {"step": _numbers(common.index)}
    for axis in AXES[1:]:
        known = places[axis].reindex(common.index) if axis in places else None
        complete = known is not None and set(values.columns) <= set(known.columns)
        mean = known[list(values.columns)].mean(axis=1, skipna=False) if known is not None and complete else None
        x[axis] = _numbers(mean) if mean is not None and mean.notna().all() else None
    if len(values.columns) < 2:
        return Line(x, _numbers(common.mean(axis=1))), tuple(per_seed)
    # As `interval` does it, for all steps at once.
    count = len(values.columns)
    center = common.mean(axis=1)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * common.std(axis=1, ddof=1) / sqrt(count)
    mean_line = Line(x, _numbers(center), _numbers(center - reach), _numbers(center + reach))
    return mean_line, tuple(per_seed)


def _thin(rows: Any, points: int) -> Any:
    """At most so many rows, evenly spaced, the first and the last among them."""
    import numpy as np

    if len(rows) <= points:
        return rows
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, points).round().astype(int))]


def _numbers(values: Sequence[float] | Any) -> list[float]:
    """Five digits are more than a screen shows, and keep the page small."""
    return [float(f"{value:.5g}") if abs(value) < 1e5 else round(float(value)) for value in values]
