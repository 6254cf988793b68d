"""Groups to look at: a sample of each trace, even over its steps, with texts of bounded length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from refine_wrapper.rewards.answers import extract_answer
from refine_wrapper.study.report.run import Cell, Run
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
    """Read the traces one after another, and keep at most so many groups, as many of each cell."""
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
        shown += [_group(record, number, cell) for record in index.records(_even(index, share))]
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
    """One group as the page needs it; fields of another version of the trace may be missing."""
    drafts: Sequence[Mapping[str, Any]] = record.get("drafts") or []
    refinements: Sequence[Mapping[str, Any]] = record.get("refinements") or []
    selected = record.get("selected")
    reward = drafts[selected].get("reward") if isinstance(selected, int) and selected < len(drafts) else None
    step = record.get("step")
    draft_text = record.get("draft_text")
    refined = record.get("action") == "refine"
    answer = extract_answer(draft_text) if refined and isinstance(draft_text, str) else None
    return {
        "cell": cell_number,
        "id": str(record.get("group_id")),
        "step": step if isinstance(step, int) and step != NO_STEP else None,
        "action": str(record.get("action")),
        "cause": record.get("cause"),
        "selected": selected,
        "selector": record.get("selector"),
        "tied": record.get("tied"),
        "shortened": bool(record.get("draft_shortened")),
        "at_max": reward >= cell.max_reward if refined and isinstance(reward, (int, float)) else None,
        "mixed": _mixed([entry.get("reward") for entry in refinements]),
        "question": _text(record.get("question")),
        "prompt": _text(record.get("prompt")) if refined else None,
        "drafts": [_sample(entry) for entry in drafts],
        "refinements": [{**_sample(entry), "copy": _copies(entry, answer)} for entry in refinements],
    }


def _sample(entry: Mapping[str, Any]) -> dict[str, Any]:
    outcome = str(entry.get("outcome", "ok"))
    problem = entry.get("failure") or (f"{outcome}: {entry.get('detail', '')}".rstrip(": ") if outcome != "ok" else "")
    return {
        "reward": entry.get("reward"),
        "tokens": entry.get("num_tokens"),
        "finished": bool(entry.get("finished", True)),
        "problem": clip(str(problem)),
        "text": _text(entry.get("text")),
    }


def _copies(entry: Mapping[str, Any], answer: str | None) -> bool:
    text = entry.get("text")
    return answer is not None and isinstance(text, str) and extract_answer(text) == answer


def _mixed(rewards: Sequence[Any]) -> bool:
    """As :func:`refine_wrapper.core.metrics.gradient_active`: equal rewards give no group-relative gradient."""
    known = [reward for reward in rewards if isinstance(reward, (int, float)) and reward == reward]
    return len(known) > 1 and max(known) - min(known) > 1e-8


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
