"""Cells as processes of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from pathlib import Path

from refine_wrapper.ablation.cell import CellFolder


class LocalCells:
    """Starts cells and watches them, also those that a killed ``ablate`` left running."""

    def __init__(self) -> None:
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, folder: CellFolder) -> None:
        """Start the cell of a folder, in a session of its own: Ctrl-C is passed on by :meth:`stop`."""
        python = folder.cell().python
        with (folder.path / "cell.log").open("wb") as log:
            self._processes[folder.path] = subprocess.Popen(
                [python, "-m", "refine_wrapper.ablation.run_cell", str(folder.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self, folder: CellFolder) -> bool:
        """Whether the cell or its command lives."""
        process = self._processes.get(folder.path)
        return (process is not None and process.poll() is None) or is_locked(folder.path)

    def stop(self, folder: CellFolder) -> None:
        """Ask the cell to end; it ends its command first."""
        process = self._processes.get(folder.path)
        number = process.pid if process is not None and process.poll() is None else locked_by(folder.path)
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGINT)


def is_locked(folder: Path) -> bool:
    """Whether a process runs the cell of a folder."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def locked_by(folder: Path) -> int | None:
    """Which process runs the cell of a folder; None if none does."""
    if not is_locked(folder):
        return None
    text = (folder / "lock").read_text(encoding="ascii", errors="replace").strip()
    return int(text) if text.isdecimal() else None
