"""Groups to look at: a sample of each trace, even over its steps, with texts of bounded length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from refine_wrapper.core.metrics import gradient_active
from refine_wrapper.core.trace import group_of_record
from refine_wrapper.core.types import Sample
from refine_wrapper.rewards.answers import extract_answer
from refine_wrapper.study.report.run import Cell, ReportError, Run
from refine_wrapper.study.report.trace_table import NO_STEP, TraceIndex, index_trace

_HEAD, _TAIL = 2500, 1500
"""Characters kept of a longer text. The answer is at its end."""
MAX_GROUPS: Final = 400


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups on the page.

    Attributes:
        cells: Cells that have a trace, as JSON-ready values; groups refer to them by position.
        groups: The groups, as JSON-ready values.
        total: How many groups the traces hold.
        incomplete: Lines that a killed process left.
    """

    cells: tuple[dict[str, Any], ...]
    groups: tuple[dict[str, Any], ...]
    total: int
    incomplete: int


def sample_groups(run: Run, max_groups: int) -> Groups:
    """Read the traces one after another, and keep at most so many groups, as many of each cell.

    Raises:
        ReportError: If one is no trace.
    """
    cells = [cell for cell in run.cells if cell.trace is not None]
    shown: list[dict[str, Any]] = []
    total = incomplete = 0
    for number, cell in enumerate(cells):
        assert cell.trace is not None
        if not cell.trace.stat().st_size:
            continue
        index = index_trace(cell.trace)
        total += len(index)
        incomplete += index.incomplete
        left = len(cells) - number
        share = -(-(max_groups - len(shown)) // left)
        try:
            shown += [_group(record, number, cell) for record in index.records(_even(index, share))]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ReportError(
                f"refine: {str(cell.trace)!r} is not a trace that refine-wrapper wrote ({type(error).__name__}: "
                f"{error})."
            ) from error
    return Groups(tuple(_cell(cell, run) for cell in cells), tuple(shown), total, incomplete)


def clip(text: str) -> str:
    """A text, or its beginning and end with a note of what was left out."""
    if len(text) <= _HEAD + _TAIL + 100:
        return text
    return f"{text[:_HEAD]}\n[... {len(text) - _HEAD - _TAIL:,} characters left out ...]\n{text[-_TAIL:]}"


def _even(index: TraceIndex, count: int) -> list[int]:
    """Positions of so many groups, in the order of steps: evenly spaced, so that every part of the run is seen."""
    order = index.by_step()
    if count >= len(order):
        return order
    if count < 2:
        return order[:count]
    return [order[number * (len(order) - 1) // (count - 1)] for number in range(count)]


def _cell(cell: Cell, run: Run) -> dict[str, Any]:
    return {
        "name": cell.name,
        "setting": run.name_of(cell.setting),
        "task": str(cell.setting.get("task") or ""),
        "seed": cell.seed,
        "max_reward": cell.max_reward,
    }


def _group(record: Mapping[str, Any], cell_number: int, cell: Cell) -> dict[str, Any]:
    """One group as the page needs it: what was sampled under which prompt, and what became of each sample."""
    group = group_of_record(record)
    shown = group.last_shown()
    slot_of = {slot.sample: (number, slot) for number, slot in enumerate(group.slots_S)}
    answers = {
        planned.number: extract_answer(planned.shown_text)
        for planned in group.rounds
        if planned.ask.show is not None and "question" in record
    }
    return {
        "cell": cell_number,
        "id": str(group.id),
        "step": group.step if group.step != NO_STEP else None,
        "mode": group.mode,
        "action": "refine" if group.refined else "plain" if group.trained or group.replaced else "skip",
        "trained": group.trained,
        "replaced": group.replaced,
        "cause": group.cause.value if group.cause else None,
        "reason": group.reason,
        "selector": group.selector,
        "tied": group.num_tied,
        "at_max": None if shown is None or shown.reward is None else shown.reward >= cell.max_reward,
        "mixed": gradient_active(group),
        "question": _text(record.get("question")),
        "rounds": [
            {
                "use": planned.ask.use.value,
                "show": planned.ask.show,
                "final": planned.ask.final,
                "shortened": planned.shortened,
                "reason": planned.ask.reason,
                "prompt": _text(entry.get("prompt")),
            }
            for planned, entry in zip(group.rounds, record["rounds"], strict=True)
        ],
        "samples": [
            {
                **_sample(sample, texts="question" in record),
                "copy": sample.round in answers and extract_answer(sample.visible) == answers[sample.round],
                "slot": slot_of[sample.index][0] if sample.index in slot_of else None,
                "on_question": sample.index in slot_of and slot_of[sample.index][1].on_question,
            }
            for sample in group.samples
        ],
    }


def _sample(sample: Sample, *, texts: bool) -> dict[str, Any]:
    problem = "" if sample.usable else f"{sample.outcome.value}: {sample.detail}".rstrip(": ")
    return {
        "round": sample.round,
        "held": sample.held,
        "reward": sample.reward,
        "tokens": sample.num_tokens,
        "finished": sample.finished,
        "problem": clip(problem),
        "text": clip(sample.text) if texts else None,
    }


def _text(value: Any) -> str | None:
    """A text, or a conversation with its roles."""
    if value is None or isinstance(value, str):
        return None if value is None else clip(value)
    if isinstance(value, list):
        return clip("\n\n".join(map(_turn, cast("list[Any]", value))))
    return clip(str(value))


def _turn(turn: Any) -> str:
    if not isinstance(turn, dict):
        return str(turn)
    known = cast("dict[str, Any]", turn)
    content: Any = known.get("content")
    if isinstance(content, list):
        content = "".join(map(_part, cast("list[Any]", content)))
    return f"[{known.get('role')}]\n{content}"


def _part(part: Any) -> str:
    return str(cast("dict[str, Any]", part).get("text", "")) if isinstance(part, dict) else str(part)
