"""What happened to each group, on disk: groups.jsonl, one JSON line per finished group."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refine_wrapper.core.types import (
    Cause,
    Group,
    GroupId,
    Outcome,
    PlannedRound,
    Prompt,
    Question,
    Round,
    Sample,
    Slot,
    TrainUnder,
    Use,
)
from refine_wrapper.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there an append of one line is not shared between processes
    fcntl = None

FILE_NAME = "groups.jsonl"
VERSION = 2
"""Of the records. Those of version 1 said drafts and refinements where these say rounds, samples and slots."""


class TraceWriter:
    """Appends finished groups to a file that several processes may share.

    Each line is one write under an advisory lock on a file opened for appending, so lines of several processes never
    mix, and a killed process leaves at most its last line incomplete; :func:`read_trace` skips such a line.

    Args:
        folder: Where ``groups.jsonl`` goes; made if missing.
        texts: Whether to write questions and samples too.

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

    def write(self, group: Group) -> None:
        """Append one group."""
        line = json.dumps(trace_record(group, texts=self._texts), ensure_ascii=False, default=str)
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


def group_of_record(record: Mapping[str, Any]) -> Group:
    """The group that :func:`trace_record` wrote, for example to summarize a trace with the metrics' own definitions.

    Texts are empty if they were not written.

    Raises:
        KeyError, TypeError, ValueError: If it is not such a record.
    """
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']!r} of the trace, and this is for version {VERSION}")
    samples = tuple(
        Sample(
            text=entry.get("text", ""),
            num_tokens=entry["num_tokens"],
            finished=entry["finished"],
            reward=entry["reward"],
            outcome=Outcome(entry["outcome"]),
            detail=entry.get("detail", ""),
            policy_version=entry.get("policy_version"),
            index=index,
            round=entry["round"],
            shown=entry["shown"],
            held=entry.get("held"),
            visible=entry.get("visible", entry.get("text", "")),
        )
        for index, entry in enumerate(record["samples"])
    )
    question = record.get("question", "")
    return Group(
        question=Question(GroupId(*record["id"]), question),
        mode=record["mode"],
        num_slots=record["num_slots"],
        samples=samples,
        rounds=tuple(_round_of_record(number, entry, question) for number, entry in enumerate(record["rounds"])),
        slots_S=tuple(Slot(*slot) for slot in record["slots"]),
        cause=Cause(record["cause"]) if record["cause"] else None,
        reason=record["reason"],
        selector=record["selector"],
        num_tied=record["tied"],
        step=record["step"],
        replaced=record.get("replaced", False),
    )


def _round_of_record(number: int, entry: Mapping[str, Any], question: Any) -> PlannedRound:
    ask = Round(
        size=entry["size"],
        use=Use(entry["use"]),
        show=entry["show"],
        train_under=TrainUnder(entry["train_under"]),
        final=entry["final"],
        reason=entry["reason"],
        arm=entry.get("arm", ""),
    )
    return PlannedRound(
        number=number,
        first_index=entry["first_index"],
        ask=ask,
        prompt=entry.get("prompt", question),
        shown_text=entry.get("shown_text", ""),
        shortened=entry["shortened"],
        seconds=entry["seconds"],
    )


def _ends_in_half_a_line(descriptor: int) -> bool:
    """Whether a killed process left its last line incomplete; what follows must not become part of it."""
    if os.lseek(descriptor, 0, os.SEEK_END) == 0:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def trace_record(group: Group, *, texts: bool) -> dict[str, Any]:
    """One group as JSON-ready values."""
    record: dict[str, Any] = {
        "version": VERSION,
        "group_id": str(group.id),
        "id": [group.id.purpose, group.id.step, group.id.place, group.id.attempt],
        "step": group.step,
        "mode": group.mode,
        "num_slots": group.num_slots,
        "refined": group.refined,
        "trained": group.trained,
        "cause": group.cause.value if group.cause else None,
        "reason": group.reason,
        "selector": group.selector,
        "tied": group.num_tied,
        "rounds": [_round_record(planned, texts=texts) for planned in group.rounds],
        "samples": [_sample_record(sample, texts=texts) for sample in group.samples],
        "slots": [[slot.sample, slot.on_question, slot.trained] for slot in group.slots_S],
        "time": round(time.time(), 3),
    }
    if group.replaced:
        record["replaced"] = True
    if texts:
        record["question"] = _prompt_text(group.question.prompt)
    return record


def _round_record(planned: PlannedRound, *, texts: bool) -> dict[str, Any]:
    ask = planned.ask
    record: dict[str, Any] = {
        "size": ask.size,
        "use": ask.use.value,
        "show": ask.show,
        "train_under": ask.train_under.value,
        "final": ask.final,
        "first_index": planned.first_index,
        "shortened": planned.shortened,
        "seconds": round(planned.seconds, 4),
        "reason": ask.reason,
    }
    if ask.arm:
        record["arm"] = ask.arm
    if texts and ask.show is not None:
        record["prompt"] = _prompt_text(planned.prompt)
        record["shown_text"] = planned.shown_text
    return record


def _sample_record(sample: Sample, *, texts: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "round": sample.round,
        "shown": sample.shown,
        "reward": sample.reward,
        "num_tokens": sample.num_tokens,
        "finished": sample.finished,
        "outcome": sample.outcome.value,
        "policy_version": sample.policy_version,
    }
    if sample.detail:
        record["detail"] = sample.detail
    if sample.held is not None:
        record["held"] = sample.held
    if texts:
        record["text"] = sample.text
        if sample.visible != sample.text:
            record["visible"] = sample.visible
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
