"""What is shown while cells run: how many are done, how far each is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.progress import Progress, TaskID

from refine_wrapper.study.ablation.cell import FINISHED, Cell
from refine_wrapper.study.ablation.schedule import Run

_READ_EVERY = 5.0
"""Seconds between looks at how far cells are."""


class CellBars:
    """The progress display, and a line above it for each cell that ends."""

    def __init__(self, progress: Progress, run: Run, wanted: Sequence[Cell], jobs: int) -> None:
        self._progress, self._run, self._wanted, self._jobs = progress, run, wanted, jobs
        self._bars: dict[str, TaskID] = {}
        self._read = 0.0
        self._all = progress.add_task("cells", total=len(wanted), left="")

    def update(self, running: list[Cell], waiting: list[Cell]) -> None:
        """Draw the state."""
        ended = len(self._wanted) - len(running) - len(waiting)
        self._progress.update(self._all, completed=ended, left=self._left(running, waiting))
        names = {cell.name for cell in running}
        for name in [name for name in self._bars if name not in names]:
            self._progress.remove_task(self._bars.pop(name))
            self._say_ended(name)
        for cell in running:
            if cell.name not in self._bars:
                self._bars[cell.name] = self._progress.add_task(cell.name, total=cell.steps, left="")
        if time.monotonic() - self._read > _READ_EVERY:
            self._read = time.monotonic()
            for cell in running:
                if cell.steps:
                    self._progress.update(self._bars[cell.name], completed=self._steps(cell))

    def _steps(self, cell: Cell) -> int:
        from refine_wrapper.study.ablation.events import last_step

        try:
            return last_step(self._run.of(cell).path / "tensorboard")
        except Exception:  # a file that is being written; the bar is no reason to end a run
            return 0

    def _left(self, running: Sequence[Cell], waiting: Sequence[Cell]) -> str:
        seconds = mean_seconds(self._run)
        if seconds is None:
            return "time left: known after the first cell"
        now = time.monotonic()
        going = sum(max(0.0, seconds - (now - self._run.started.get(cell.name, now))) for cell in running)
        at_once = max(1, min(self._jobs, len(running) + len(waiting)))
        return f"about {shown_time((going + seconds * len(waiting)) / at_once)} left"

    def _say_ended(self, name: str) -> None:
        cell = next(cell for cell in self._run.cells if cell.name == name)
        status = self._run.of(cell).status
        if status is not None:
            seconds = shown_time(status["seconds"])
            self._progress.console.print(
                f"{status['state']} {name} in {seconds}" + (f": {status['why']}" if status["why"] else "")
            )


def mean_seconds(run: Run) -> float | None:
    """What a finished cell took, training and measuring; None before the first one."""
    seconds = [
        status["ended"] - status["started"]
        for cell in run.in_state(FINISHED)
        if cell.command and "ended" in (status := run.of(cell).status or {})
    ]
    return sum(seconds) / len(seconds) if seconds else None


def shown_time(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3.5 h``."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
