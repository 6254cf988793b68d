"""What happened to each group, on disk: groups.jsonl, one JSON line per finished group."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refine_wrapper.core.types import (
    Action,
    Draft,
    DraftOutcome,
    FallbackCause,
    GroupOutcome,
    GroupPlan,
    Prompt,
    Refinement,
    Selection,
)
from refine_wrapper.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there an append of one line is not shared between processes
    fcntl = None

FILE_NAME = "groups.jsonl"


class TraceWriter:
    """Appends finished groups to a file that several processes may share.

    Each line is one write under an advisory lock on a file opened for appending, so lines of several processes never
    mix, and a killed process leaves at most its last line incomplete; :func:`read_trace` skips such a line.

    Args:
        folder: Where ``groups.jsonl`` goes; made if missing.
        texts: Whether to write questions, drafts and refinements too.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, *, texts: bool = False) -> None:
        self._texts = texts
        self._path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab"):
                pass
        except OSError as error:
            raise ConfigError(f"refine: trace_dir = {str(folder)!r} cannot be written: {error.strerror}.") from None

    def write(self, outcome: GroupOutcome) -> None:
        """Append one group."""
        line = json.dumps(trace_record(outcome, texts=self._texts), ensure_ascii=False, default=str)
        content = (line + "\n").encode("utf-8", errors="replace")
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _ends_in_half_a_line(descriptor):
                content = b"\n" + content
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)  # releases the lock


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The groups of a trace folder or file; incomplete lines (a process was killed while writing) are left out."""
    file = path / FILE_NAME if path.is_dir() else path
    # In bytes a line ends at b"\n" only: texts may hold other line separators (U+2028).
    with file.open("rb") as lines:
        return [record for line in lines if (record := parse_line(line)) is not None]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One line of ``groups.jsonl``, or None if it is incomplete. A killed process may leave half a character."""
    try:
        record: Any = json.loads(line.decode("utf-8", errors="replace"))
    except json.JSONDecodeError:
        return None
    # The rest of a line that was cut can be valid JSON by itself, such as a number.
    return record if isinstance(record, dict) and "group_id" in record else None  # pyright: ignore[reportUnknownVariableType]


def outcome_of_record(record: Mapping[str, Any]) -> GroupOutcome:
    """The group that :func:`trace_record` wrote, for example to summarize a trace with the metrics' own definitions.

    Texts are empty if they were not written.

    Raises:
        KeyError, TypeError, ValueError: If it is not such a record.
    """
    drafts_N = tuple(
        Draft(
            index=index,
            text=entry.get("text", ""),
            reward=entry["reward"],
            num_tokens=entry["num_tokens"],
            finished=entry["finished"],
            outcome=DraftOutcome(entry["outcome"]),
            detail=entry.get("detail", ""),
            policy_version=entry.get("policy_version"),
        )
        for index, entry in enumerate(record["drafts"])
    )
    selected = record["selected"]
    plan = GroupPlan(
        group_id=record["group_id"],
        action=Action(record["action"]),
        question=record.get("question", ""),
        prompt=record.get("prompt", ""),
        drafts_N=drafts_N,
        selection=None if selected is None else Selection(drafts_N[int(selected)], record["selector"], record["tied"]),
        draft_text=record.get("draft_text", ""),
        draft_shortened=record["draft_shortened"],
        cause=FallbackCause(record["cause"]) if record["cause"] else None,
        stage1_seconds=record["stage1_seconds"],
    )
    refinements_G = tuple(
        Refinement(
            text=entry.get("text", ""),
            reward=entry["reward"],
            num_tokens=entry["num_tokens"],
            finished=entry["finished"],
            failure=entry.get("failure", ""),
        )
        for entry in record["refinements"]
    )
    return GroupOutcome(plan, refinements_G, record["stage2_seconds"], record["step"], record.get("policy_version"))


def _ends_in_half_a_line(descriptor: int) -> bool:
    """Whether a killed process left its last line incomplete; what follows must not become part of it."""
    if os.lseek(descriptor, 0, os.SEEK_END) == 0:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def trace_record(outcome: GroupOutcome, *, texts: bool) -> dict[str, Any]:
    """One group as JSON-ready values."""
    plan = outcome.plan
    record: dict[str, Any] = {
        "group_id": plan.group_id,
        "step": outcome.step,
        "action": plan.action.value,
        "cause": plan.cause.value if plan.cause else None,
        "selected": plan.selection.draft.index if plan.selection else None,
        "selector": plan.selection.selector if plan.selection else None,
        "tied": plan.selection.num_tied if plan.selection else None,
        "draft_shortened": plan.draft_shortened,
        "drafts": [_draft_record(draft) for draft in plan.drafts_N],
        "refinements": [
            {
                "reward": r.reward,
                "num_tokens": r.num_tokens,
                "finished": r.finished,
                **({"failure": r.failure} if r.failure else {}),
            }
            for r in outcome.refinements_G
        ],
        "stage1_seconds": round(plan.stage1_seconds, 4),
        "stage2_seconds": round(outcome.stage2_seconds, 4),
        "policy_version": outcome.policy_version,
        "time": round(time.time(), 3),
    }
    if outcome.replaced:
        record["replaced"] = True
    if texts:
        record["question"] = _prompt_text(plan.question)
        record["prompt"] = _prompt_text(plan.prompt)
        record["draft_text"] = plan.draft_text
        for entry, draft in zip(record["drafts"], plan.drafts_N, strict=True):
            entry["text"] = draft.text
        for entry, refinement in zip(record["refinements"], outcome.refinements_G, strict=True):
            entry["text"] = refinement.text
    return record


def _draft_record(draft: Draft) -> dict[str, Any]:
    record: dict[str, Any] = {
        "reward": draft.reward,
        "num_tokens": draft.num_tokens,
        "finished": draft.finished,
        "outcome": draft.outcome.value,
        "policy_version": draft.policy_version,
    }
    if draft.detail:
        record["detail"] = draft.detail
    return record


def _prompt_text(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [{"role": turn.get("role"), "content": _content_text(turn.get("content"))} for turn in prompt]


def _content_text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts: list[Any] = content  # pyright: ignore[reportUnknownVariableType]
    # Images are named, not written: a trace line must stay a line.
    return [part if isinstance(part, dict) and part.get("type") == "text" else f"<{_type_of(part)}>" for part in parts]  # pyright: ignore[reportUnknownMemberType]


def _type_of(part: Any) -> str:
    return str(part.get("type", "part")) if isinstance(part, dict) else type(part).__name__  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
