"""What came out: a table, the same as Markdown, and a picture of the curves; of an interrupted run too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.table import Table

from refine_wrapper_demo.arms import ARMS, PROGRESS_FILE
from refine_wrapper_demo.results import lines_of

COLUMNS = ("arm", "single-shot", "with draft", "sampled", "tokens", "s", "active", "copy")
LEGEND = (
    "Held-out accuracy ± standard error, single-shot on the question and with one own draft in the prompt; completions "
    "sampled and tokens generated, drafts included; seconds of training; share of groups with a gradient; share of "
    "refinements that repeat their draft (both over the last quarter of the steps)."
)
_COLOURS = {"plain": "#555555", "refined": "#c2410c"}


def rows(start: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Table rows: the warm start, then each arm with what it used; accuracies with standard errors.

    With several seeds the error is that of the mean over seeds, with one seed that over held-out problems.
    """
    listed = [_row("warm start", start)] if start else []
    listed += [_row(arm, of_arm) for arm in ARMS if (of_arm := [r for r in results if r["arm"] == arm])]
    return listed


def table(title: str, listed: Sequence[tuple[str, ...]]) -> Table:
    """The rows for the screen."""
    drawn = Table(title=title, title_justify="left", caption=LEGEND, caption_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(COLUMNS):
        drawn.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in listed:
        drawn.add_row(*row)
    return drawn


def markdown(listed: Sequence[tuple[str, ...]]) -> str:
    """The rows for a document."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *listed]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def verdict(results: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on single-shot accuracy: the difference with its error, and no more than that."""
    by_arm = {arm: {r["seed"]: r for r in results if r["arm"] == arm} for arm in ARMS}
    seeds = sorted(set(by_arm["plain"]) & set(by_arm["refined"]))
    if not seeds:
        return "No seed finished both arms: nothing can be compared yet."
    differences = [by_arm["refined"][s]["single_shot"] - by_arm["plain"][s]["single_shot"] for s in seeds]
    difference = fmean(differences)
    if len(seeds) > 1:
        error, basis = stdev(differences) / math.sqrt(len(seeds)), f"paired over {len(seeds)} seeds"
    else:
        pair = (by_arm["refined"][seeds[0]], by_arm["plain"][seeds[0]])
        error, basis = math.hypot(*(r["single_shot_error"] for r in pair)), "over held-out problems of one seed"
    told = f"refined minus plain, single-shot: {difference:+.3f} (standard error {error:.3f}, {basis})"
    if abs(difference) <= 2 * error:
        return f"No difference shown: {told}."
    better = "refined" if difference > 0 else "plain"
    more = "" if len(seeds) > 2 else " Few seeds: another seed may say otherwise."
    return f"Here the {better} objective is ahead: {told}.{more}"


def picture(folder: Path, title: str) -> Path | None:
    """Draw the curves of all arms and seeds found below a folder; None if there is nothing to draw."""
    curves = {path.parent.name: _lines(path) for path in folder.glob(f"cells/*/{PROGRESS_FILE}")}
    curves = {key: lines for key, lines in curves.items() if lines}
    if not curves:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    panels = (
        (axes[0, 0], "reward", "training reward (refined: of refinements, on q')", 10),
        (axes[0, 1], "single_shot", "held-out single-shot accuracy (200 problems)", 1),
        (axes[1, 0], "gradient_active_share", "share of groups with a gradient", 10),
        (axes[1, 1], "refine/copy_rate", "refinements that repeat their draft", 10),
    )
    for axis, name, label, window in panels:
        seen: set[str] = set()
        for cell, lines in sorted(curves.items()):
            arm = cell.rpartition("-")[0]
            points = [(line["completions_so_far"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                xs, ys = zip(*points, strict=True)
                legend = arm if arm not in seen else None
                axis.plot(
                    xs, _smooth(ys, window), color=_COLOURS[arm], label=legend, marker="o" if window == 1 else None
                )
                seen.add(arm)
        axis.set(title=label, xlabel="completions sampled (drafts included)", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
        if seen:
            axis.legend(frameon=False)
    figure.suptitle(title)
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _row(name: str, results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    def accuracy(key: str) -> str:
        values = [float(r[key]) for r in results]
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float(results[0][f"{key}_error"])
        return f"{fmean(values):.3f}±{error:.3f}"

    def mean(key: str, form: str) -> str:
        values = [float(r[key]) for r in results if r.get(key) is not None]
        return format(fmean(values), form) if values else "-"

    return (
        name,
        accuracy("single_shot"),
        accuracy("with_draft"),
        mean("completions", ",.0f"),
        mean("tokens", ",.0f"),
        mean("seconds", ".0f"),
        mean("gradient_active_share", ".2f"),
        mean("copy_rate", ".2f"),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = list(lines_of(path))
    so_far = accumulate(line["completions"] for line in lines)
    return [{**line, "completions_so_far": total} for line, total in zip(lines, so_far, strict=True)]


def _smooth(values: Sequence[float], window: int) -> list[float]:
    return [fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
