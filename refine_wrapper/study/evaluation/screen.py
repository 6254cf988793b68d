"""An evaluation as a table on the screen."""

from __future__ import annotations

from rich import box
from rich.table import Table

from refine_wrapper.study.evaluation.statistics import Estimate
from refine_wrapper.study.evaluation.summary import Evaluation

_TITLES = {
    "single_shot": "single-shot",
    "with_draft": "with own draft",
    "with_oracle_draft": "with oracle's draft",
    "minus_single_shot": "minus single-shot",
}
LEGEND = (
    "avg@k: share of the answers that are right. pass@j: at least one of j is right. reward, tokens, finished (by an "
    "end token): means over answers. Beside a draft: copied repeat its answer; repaired, of those beside a wrong "
    "draft, are right; broken, of those beside a right draft, are wrong."
)


def table(evaluation: Evaluation) -> Table:
    """Figures as rows, measures as columns; each with its standard error over problems."""
    drawn = Table(
        box=box.SIMPLE_HEAD,
        title=f"{evaluation.num_problems} problems, value ± standard error over problems, or [95 %] where all agree",
        title_justify="left",
    )
    drawn.add_column("", no_wrap=True)
    for name in evaluation.measures:
        drawn.add_column(_TITLES[name], justify="right", no_wrap=True)
    figures = dict.fromkeys(figure for measure in evaluation.measures.values() for figure in measure.figures)
    for figure in figures:
        if figure == "pass@1":  # by its definition avg@k
            continue
        cells = [_shown(figure, measure.figures.get(figure)) for measure in evaluation.measures.values()]
        drawn.add_row(_TITLES.get(figure, figure), *cells)
    return drawn


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the table must know, one sentence each."""
    said: list[str] = []
    if "with_oracle_draft" in evaluation.measures:
        said.append(
            "With the oracle's draft: the reward chose it by the held-out label. It shows what training conditions on, "
            "not an accuracy that can be had in use."
        )
    if evaluation.unscored:
        said.append(f"{evaluation.unscored} problems have no reward and are in no figure.")
    if evaluation.skipped:
        said.append(f"{evaluation.skipped} problems were left out: the question is too long.")
    for name, measure in evaluation.measures.items():
        if measure.counts["without_reward"]:
            said.append(
                f"{_TITLES[name]}: {measure.counts['without_reward']} answers count as wrong: their reward failed."
            )
        for cause, count in measure.counts.items():
            if cause.startswith("plain/"):
                said.append(
                    f"{_TITLES[name]}: {count} answers are on the plain question ({cause.removeprefix('plain/')})."
                )
    return said


def _shown(figure: str, estimate: Estimate | None) -> str:
    return "" if estimate is None else estimate.shown(1 if figure == "tokens" else 3)
