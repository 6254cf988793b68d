"""What a host logged, from its TensorBoard files: the tracker that all hosts can write without account or network."""

# tensorboard has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from refine_wrapper.hosts.adapter import Launch

_PATTERN: Final = "**/events.out.tfevents.*"
_EVERYTHING: Final = {"scalars": 0}


class Value(NamedTuple):
    """One logged value; ``time`` in seconds since the epoch."""

    step: int
    time: float
    value: float


def read_scalars(folder: Path) -> dict[str, list[Value]]:
    """Tag -> its values by step, from all event files below a folder; of a step that was logged twice the later one."""
    found: dict[str, dict[int, Value]] = {}
    for file in sorted(folder.glob(_PATTERN)):
        for tag, value in _scalars_of(file):
            known = found.setdefault(tag, {}).get(value.step)
            if known is None or known.time <= value.time:
                found[tag][value.step] = value
    return {tag: [values[step] for step in sorted(values)] for tag, values in found.items()}


def named(scalars: Mapping[str, list[Value]], launch: Launch) -> dict[str, list[Value]]:
    """The same under the names that all hosts share (``reward``, ``refine/uplift``); others as ``host/TAG``."""
    shared = {tag: name for name, tag in launch.metrics.items()}
    renamed: dict[str, list[Value]] = {}
    for tag, values in scalars.items():
        own = tag.removeprefix(launch.train_prefix)
        renamed[shared.get(tag) or (own if own.startswith("refine/") else f"host/{tag}")] = values
    return renamed


def last_step(folder: Path) -> int:
    """The last step that was logged, for a progress bar; 0 before the first."""
    return max((value.step for file in folder.glob(_PATTERN) for _, value in _scalars_of(file)), default=0)


def _scalars_of(file: Path) -> Iterator[tuple[str, Value]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(file), size_guidance=_EVERYTHING)
    events.Reload()
    tags: Mapping[str, Any] = events.Tags()
    for tag in tags["scalars"]:
        for event in events.Scalars(tag):
            yield tag, Value(int(event.step), float(event.wall_time), float(event.value))
    # PyTorch's writer of today stores scalars as tensors only where it is asked to; old and new readers see the same.
    for tag in tags["tensors"]:
        for event in events.Tensors(tag):
            numbers = list(event.tensor_proto.float_val)
            if len(numbers) == 1:
                yield tag, Value(int(event.step), float(event.wall_time), float(numbers[0]))
