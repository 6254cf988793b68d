"""``python -m refine_wrapper.study.ablation.run_cell FOLDER``: trains and measures one cell.

A process of its own, so that a cell goes on when whoever started it is killed. It holds a lock on the cell's folder as
long as it or its command lives; ``status.json`` is the last thing that it writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from refine_wrapper.errors import RefineError
from refine_wrapper.files import read_json, write_whole
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.study.ablation.cell import FAILED, FINISHED, Cell, CellFolder

LOCKED: Final = 75
"""Exit code where another process runs the cell (EX_TEMPFAIL)."""
_PATIENCE: Final = 60.0
"""Seconds that an interrupted command has to end by itself."""
_TRAINED, _EVALUATION, _PILOT = "trained.json", "evaluation", "pilot"


class CellFailed(RefineError, RuntimeError):
    """A cell cannot go on; the message is its ``why``."""

    def __init__(self, why: str, code: int = 1) -> None:
        super().__init__(why)
        self.code = code


class Stopped(BaseException):
    """Somebody asked for an end: the cell is neither finished nor failed, and starts anew the next time."""


def main(arguments: Sequence[str]) -> int:
    """Run the cell of a folder; the exit code says little, ``status.json`` says all."""
    folder = CellFolder(Path(arguments[0]).absolute())
    with _lock(folder.path) as lock:
        if lock is None:
            return LOCKED
        if folder.status is not None and folder.status["state"] == FINISHED:
            return 0
        (folder.path / "status.json").unlink(missing_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        started = time.time()
        try:
            _CellRun(folder, lock).run()
            status: dict[str, Any] = {"state": FINISHED, "code": 0, "why": ""}
        except Stopped:
            return 130
        except CellFailed as failure:
            status = {"state": FAILED, "code": failure.code, "why": str(failure)}
        except RefineError as error:
            status = {"state": FAILED, "code": 2, "why": str(error)}
        trained = read_json(folder.path / _TRAINED) or {}
        status |= {"seconds": trained.get("seconds", time.time() - started), "started": started, "ended": time.time()}
        write_whole(folder.path / "status.json", json.dumps(status, indent=2) + "\n")
        return 0 if status["state"] == FINISHED else 1


class _CellRun:
    """One cell on its way."""

    def __init__(self, folder: CellFolder, lock: int) -> None:
        self._folder, self._lock, self._cell = folder, lock, folder.cell()

    def run(self) -> None:
        path, cell = self._folder.path, self._cell
        trained = read_json(path / _TRAINED)
        if trained is None and cell.command:
            for name in ("output", "tensorboard", "trace", _PILOT, _EVALUATION):
                shutil.rmtree(path / name, ignore_errors=True)
            self._folder.log.unlink(missing_ok=True)
            steps = self._matched_steps() if cell.plain_cell else cell.steps
            started = time.time()
            self._execute(cell.arguments(path, steps), cell.environment(path, steps))
            self._check_prompts()
            trained = {"steps": steps, "started": started, "seconds": time.time() - started}
            write_whole(path / _TRAINED, json.dumps(trained) + "\n")
        if cell.evaluate is not None:
            model = Path(cell.model) if cell.model else trained_model(cell, path)
            measure = [cell.python, "-m", "refine_wrapper.study.ablation.measure", str(path), str(model)]
            self._execute(measure, cell.environment(path, None))

    def _check_prompts(self) -> None:
        """A comparison at matched completions needs as many prompts per step in both arms."""
        from refine_wrapper.study.ablation.spent import prompts_of

        cell = self._cell
        if not cell.refined or cell.prompts is None:
            return
        found = prompts_of(cell, self._folder.path)
        # More are no mistake: a host that filters groups by itself samples others in their place.
        if found is not None and found < 0.99 * cell.prompts:
            raise CellFailed(
                f"it sampled {found:.4g} prompts per step where the plan says {cell.prompts}, so that it cannot be "
                "compared with the plain cell. `match_budget` takes the drafts out of the host's group size and batch "
                "size: does the command compute one of them from the other? It must take both as they are given."
            )

    def _matched_steps(self) -> int:
        """Steps that generate as many tokens as the plain cell did, by a pilot of this cell's own settings."""
        from refine_wrapper.study.ablation.spent import matched_steps

        cell, pilot = self._cell, self._folder.path / _PILOT
        pilot.mkdir()
        self._execute(cell.arguments(pilot, cell.pilot_steps), cell.environment(pilot, cell.pilot_steps))
        return matched_steps(cell, self._folder.path.parent / cell.plain_cell, pilot)

    def _execute(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        with self._folder.log.open("ab") as log:
            log.write(f"\n$ {shlex.join(command)}\n".encode())
            log.flush()
            try:
                process = subprocess.Popen(
                    command,
                    env=dict(environ),
                    cwd=self._cell.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[self._lock],
                )
            except OSError as error:
                raise CellFailed(f"refine: cannot start {command[0]!r}: {error.strerror}.", 127) from None
            try:
                code = process.wait()
            except Stopped:
                _end(process)
                raise
        if code:
            ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise CellFailed(f"`{shlex.join(command[1:4])} ...` {ended}", code)


def trained_model(cell: Cell, folder: Path) -> Path:
    """Where the host left the trained model.

    Raises:
        CellFailed: If it left none; with where it was looked for.
    """
    from refine_wrapper.study.ablation.plan import launch_of

    output = folder / "output"
    patterns = launch_of(cell.host, Plugins(cell.plugin_modules)).models
    for pattern in patterns:
        found = [output] if pattern == "." else output.glob(pattern)
        models = [path for path in found if any((path / name).is_file() for name in _MODEL_FILES)]
        if models:
            return max(models, key=lambda path: path.stat().st_mtime)
    raise CellFailed(
        f"the command ended well but left no model: none of {', '.join(patterns)} below {output} holds "
        f"{' or '.join(_MODEL_FILES)}. Let it save the trained model there ({{output}}), or leave `evaluate` out."
    )


_MODEL_FILES: Final = ("config.json", "adapter_config.json")


@contextlib.contextmanager
def _lock(folder: Path) -> Generator[int | None]:
    """The cell's lock, or None where another process holds it; the file says who."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _stop(number: int, frame: FrameType | None) -> None:
    # Once: what follows must be able to wait for the command's own clean-up.
    signal.signal(number, signal.SIG_IGN)
    raise Stopped


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C in a terminal would: the whole group is asked, then told, then ended."""
    for number, patience in ((signal.SIGINT, _PATIENCE), (signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience)
            break
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
