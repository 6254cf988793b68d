"""A trace read without holding it in memory: where each group is, what each step was, as a results table."""

# The stubs of pandas leave types of columns and rows unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from refine_wrapper.core.metrics import CausesSeen, summarize
from refine_wrapper.core.trace import VERSION, group_of_record, parse_line
from refine_wrapper.core.types import Group
from refine_wrapper.rewards.answers import extract_answer
from refine_wrapper.study.report.run import COLUMNS, Cell, ReportError, Run, setting_of

NO_STEP: Final = -1
"""Stands for the step of groups whose host did not say one."""
_MEASURED: Final = ("metric", "step", "completions", "tokens", "seconds", "value")
_LOOKED_AT: Final = 64
"""Groups in which a refined one is looked for, to see what N and G are."""


@dataclass(slots=True)
class TraceIndex:
    """Where the groups of a trace are. Of two with one id, which a resumed run sampled twice, the later one counts.

    Attributes:
        path: The ``groups.jsonl``.
        steps_P: Step of each group, :data:`NO_STEP` if unknown.
        offsets_P: Where its line starts, in bytes.
        incomplete: Lines that a killed process left.
    """

    path: Path
    steps_P: array[int] = field(default_factory=lambda: array("q"))
    offsets_P: array[int] = field(default_factory=lambda: array("Q"))
    incomplete: int = 0

    def __len__(self) -> int:
        return len(self.steps_P)

    def by_step(self) -> list[int]:
        """Positions of all groups in the order of their steps, then of the file."""
        return sorted(range(len(self)), key=self.steps_P.__getitem__)

    def records(self, positions: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The groups at these positions, one at a time."""
        with self.path.open("rb") as file:
            for position in positions:
                file.seek(self.offsets_P[position])
                record = parse_line(file.readline())
                assert record is not None, "it was complete when it was indexed, and a trace is only appended to"
                yield record


def index_trace(path: Path) -> TraceIndex:
    """Read a trace once, line by line.

    Raises:
        ReportError: If it cannot be read, holds no complete group, or is of another version.
    """
    index = TraceIndex(path)
    positions: dict[Any, int] = {}
    offset = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                record = parse_line(line)
                if record is not None:
                    _check_version(path, record)
                    step = record.get("step")
                    step = step if isinstance(step, int) else NO_STEP
                    position = positions.setdefault(record["group_id"], len(index))
                    if position < len(index):
                        index.steps_P[position], index.offsets_P[position] = step, offset
                    else:
                        index.steps_P.append(step)
                        index.offsets_P.append(offset)
                elif line.strip():
                    index.incomplete += 1
                offset += len(line)
    except OSError as error:
        raise ReportError(f"refine: {str(path)!r} cannot be read: {error.strerror}.") from None
    if not index:
        what = f"{index.incomplete} incomplete line(s) and no complete one" if index.incomplete else "nothing"
        raise ReportError(
            f"refine: {str(path)!r} holds {what}: no group was finished when the run ended. Give the trace of a run "
            "that made at least one step, or run it again with --refine.trace_dir."
        )
    return index


def _check_version(path: Path, record: dict[str, Any]) -> None:
    version = record.get("version", 1)
    if version == 1 and {"drafts", "refinements"} & set(record):
        raise ReportError(
            f"refine: {str(path)!r} was written by refine-wrapper from before there were modes (trace version 1). "
            "Train again, or make its report with the version that trained it (0.1)."
        )
    if isinstance(version, int) and version > VERSION:
        raise ReportError(
            f"refine: {str(path)!r} was written by a newer refine-wrapper (trace version {version}; this one reads "
            f"{VERSION}). Make its report with that one."
        )


def trace_run(path: Path, *, max_reward: float | None) -> Run:
    """A trace by itself as a run of one cell, summarized step by step with the metrics' own definitions.

    Raises:
        ReportError: If there is no complete group in it, or it is not a trace.
    """
    import pandas as pd

    highest = 1.0 if max_reward is None else max_reward
    index = index_trace(path)
    try:
        looked_at = list(index.records(range(min(len(index), _LOOKED_AT))))
        first = next((record for record in looked_at if record["refined"]), looked_at[0])
        setting = _setting(first)
        # A generator: groups of one step at a time become numbers, texts are never kept.
        measured = pd.DataFrame(list(_rows(index, highest)), columns=list(_MEASURED))
        same = {"cell": path.parent.name, **setting, "seed": 0}
        table = measured.assign(**same)[list(COLUMNS)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ReportError(
            f"refine: {str(path)!r} is not a trace that refine-wrapper wrote ({type(error).__name__}: {error}). Give a "
            "groups.jsonl from --refine.trace_dir."
        ) from error
    notes: list[str] = []
    if "question" not in first:
        notes.append(
            "The trace has no texts, so neither questions and drafts nor the copy rate can be shown. "
            "Train with --refine.trace_texts to have them."
        )
    if index.incomplete:
        notes.append(f"Incomplete lines left out: {index.incomplete}; a process was ended while writing the trace.")
    if table.empty:
        notes.append("The host noted no steps in this trace, so there are no curves.")
    cell = Cell(name=path.parent.name, setting=setting, trace=path, max_reward=highest)
    return Run("trace", path.absolute().parent.name, table, (cell,), notes=tuple(notes))


def _setting(record: dict[str, Any]) -> dict[str, Any]:
    group = group_of_record(record)
    return setting_of(
        {
            "refined": True,
            "mode": group.mode,
            "num_drafts": len(group.drafts),
            "group_size": group.num_slots,
            "selector": record["selector"] or "-",
        }
    )


def _rows(index: TraceIndex, max_reward: float) -> Iterator[tuple[str, int, float, float, float, float]]:
    """Values of the columns :data:`_MEASURED`."""
    completions = tokens = 0.0
    started: float | None = None
    seen = CausesSeen()
    for step, records in _steps(index):
        groups = [group_of_record(record) for record in records if record["id"][0] == "train"]
        if not groups:
            continue
        metrics = seen.keep(summarize(groups, max_reward=max_reward, extract_answer=extract_answer))
        if not _has_texts(groups):  # texts that were not written are all equal
            metrics = {name: value for name, value in metrics.items() if not name.startswith("refine/copy_rate")}
        completions += metrics["refine/completions"]
        tokens += metrics["refine/draft_tokens"] + metrics["refine/refinement_tokens"]
        if started is None:
            started = min(r["time"] - sum(of_round["seconds"] for of_round in r["rounds"]) for r in records)
        seconds = max(record["time"] for record in records) - started
        for metric, value in metrics.items():
            yield metric, step, completions, tokens, seconds, value


def _steps(index: TraceIndex) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Step by step, in order, the groups of each; asynchronous hosts write them in any order."""
    order = [position for position in index.by_step() if index.steps_P[position] != NO_STEP]
    start = 0
    while start < len(order):
        step = index.steps_P[order[start]]
        end = start
        while end < len(order) and index.steps_P[order[end]] == step:
            end += 1
        yield step, list(index.records(order[start:end]))
        start = end


def _has_texts(groups: list[Group]) -> bool:
    return any(sample.text for group in groups for sample in group.samples)
