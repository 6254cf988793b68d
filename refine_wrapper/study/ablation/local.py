"""Cells as processes of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from refine_wrapper.study.ablation.cell import CellFolder

_DEVICES: Final = "devices"
"""File of a cell's folder: the devices that it has."""


class LocalCells:
    """Starts cells and watches them, also those that a killed ``ablate`` left running.

    Args:
        devices: What cells may see of the accelerators, one text per cell that runs at once, such as ``0,1``; nothing:
            each cell sees all.
    """

    def __init__(self, devices: Sequence[str] = ()) -> None:
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._devices = tuple(devices)

    def start(self, folder: CellFolder) -> None:
        """Start the cell of a folder, in a session of its own: Ctrl-C is passed on by :meth:`stop`."""
        python = folder.cell().python
        environ = dict(os.environ)
        if self._devices:
            devices = self._free(folder)
            (folder.path / _DEVICES).write_text(devices, encoding="utf-8")
            environ["CUDA_VISIBLE_DEVICES"] = devices
        with (folder.path / "cell.log").open("wb") as log:
            self._processes[folder.path] = subprocess.Popen(
                [python, "-m", "refine_wrapper.study.ablation.run_cell", str(folder.path)],
                env=environ,
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

    def _free(self, folder: CellFolder) -> str:
        """Devices that no cell of this run has, also none that a killed ``ablate`` started."""
        siblings = [path for path in folder.path.parent.iterdir() if self.running(CellFolder(path))]
        taken = [(path / _DEVICES).read_text(encoding="utf-8") for path in siblings if (path / _DEVICES).is_file()]
        return next((devices for devices in self._devices if devices not in taken), self._devices[0])


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
