"""All cells of a run: claims the folder, runs what is not finished, never what is."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Protocol

from refine_wrapper.errors import ConfigError
from refine_wrapper.files import read_json, write_whole
from refine_wrapper.study.ablation.cell import FAILED, FINISHED, Cell, CellFolder

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


class Cells(Protocol):
    """Where cells run: processes here, or jobs of a cluster."""

    def start(self, folder: CellFolder) -> None:
        """Start a cell."""
        ...

    def running(self, folder: CellFolder) -> bool:
        """Whether it still runs."""
        ...

    def stop(self, folder: CellFolder) -> None:
        """Ask it to end."""
        ...


@dataclass(slots=True)
class Run:
    """A run folder and its cells.

    Attributes:
        folder: Of the run.
        cells: All of them, in their order.
        started: When this call started each cell that it started, in seconds of the monotonic clock.
    """

    folder: Path
    cells: Sequence[Cell]
    started: dict[str, float] = field(default_factory=dict[str, float])

    def of(self, cell: Cell) -> CellFolder:
        """The folder of a cell."""
        return CellFolder(self.folder / "cells" / cell.name)

    def in_state(self, state: str) -> list[Cell]:
        """The cells that ended so."""
        return [cell for cell in self.cells if (self.of(cell).status or {}).get("state") == state]

    def selected(self, pattern: str | None) -> list[Cell]:
        """Cells whose name matches.

        Raises:
            ConfigError: If none does.
        """
        found = [cell for cell in self.cells if pattern is None or fnmatchcase(cell.name, pattern)]
        if not found:
            names = "\n  ".join(cell.name for cell in self.cells[:20])
            raise ConfigError(f"refine: no cell is called {pattern!r}. Cells:\n  {names}")
        return found

    def check(self) -> None:
        """Refuse a folder whose cells were made by another plan.

        Raises:
            ConfigError: Naming the cell and what differs.
        """
        for cell in self.cells:
            there = read_json(self.of(cell).path / "cell.json")
            if there is None:
                continue
            before = self.of(cell).cell()
            differing = [name for name in Cell.__dataclass_fields__ if _plain(before, name) != _plain(cell, name)]
            if differing:
                changes = "\n".join(
                    f"  {name}: {_SHORT.repr(_plain(before, name))}, now {_SHORT.repr(_plain(cell, name))}"
                    for name in differing
                )
                raise ConfigError(
                    f"refine: {self.of(cell).path} was made with another {', '.join(differing)}. Give the changed plan "
                    f"a new --out, or delete that folder if its results are not wanted.\n{changes}"
                )

    def claim(self) -> None:
        """Make the folders of all cells."""
        for cell in self.cells:
            path = self.of(cell).path
            path.mkdir(parents=True, exist_ok=True)
            write_whole(path / "cell.json", cell.to_json())


def _plain(cell: Cell, name: str) -> object:
    value = getattr(cell, name)
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def run_cells(
    run: Run, cells: Sequence[Cell], where: Cells, jobs: int, tick: Callable[[list[Cell], list[Cell]], None]
) -> None:
    """Run cells until each is finished or failed, those that failed before once more.

    Args:
        run: The run.
        cells: Those of its cells that are wanted.
        where: Where they run.
        jobs: How many at once.
        tick: Called about twice a second with the cells that run and those that wait.

    Raises:
        KeyboardInterrupt: After all running cells were asked to end and did.
    """
    waiting = [cell for cell in cells if (run.of(cell).status or {}).get("state") != FINISHED]
    # A killed `ablate` leaves its cells running: they are watched, not started again.
    running = [cell for cell in waiting if where.running(run.of(cell))]
    waiting = [cell for cell in waiting if cell not in running]
    try:
        while waiting or running:
            for cell in [cell for cell in running if not where.running(run.of(cell))]:
                running.remove(cell)
                _note_lost(run.of(cell))
            for cell in list(_ready(run, waiting, running)):
                if len(running) >= jobs:
                    break
                waiting.remove(cell)
                run.started[cell.name] = time.monotonic()
                where.start(run.of(cell))
                running.append(cell)
            tick(running, waiting)
            if waiting or running:
                time.sleep(0.5)
    except KeyboardInterrupt:
        _stop(run, running, where, tick)
        raise


def _ready(run: Run, waiting: Sequence[Cell], running: Sequence[Cell]) -> Iterator[Cell]:
    """Cells that need no other that is still to come. One whose plain cell failed is tried, and says why it fails."""
    unfinished = {cell.name for cell in (*waiting, *running)}
    return (cell for cell in waiting if cell.plain_cell not in unfinished)


def _note_lost(folder: CellFolder) -> None:
    """A cell that ended without a word was killed, with its supervisor: by hand, or for want of memory."""
    if folder.status is None:
        why = "ended without a word: killed, perhaps for want of memory. The same command starts it anew."
        write_whole(
            folder.path / "status.json", f'{{"state": "{FAILED}", "code": 137, "why": "{why}", "seconds": 0}}\n'
        )


def _stop(run: Run, running: list[Cell], where: Cells, tick: Callable[[list[Cell], list[Cell]], None]) -> None:
    for cell in running:
        where.stop(run.of(cell))
    while running:
        running[:] = [cell for cell in running if where.running(run.of(cell))]
        tick(running, [])
        time.sleep(0.2)
