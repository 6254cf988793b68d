"""Real launches: `refine-wrapper run` around commands that train with the real TRL, each in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from refine_testing.tiny import save_tiny
from refine_testing.traces import read_groups

SCRIPTS = Path(__file__).parent / "scripts"
NUM_ROWS = 24
TIMEOUT = 240


@dataclass(frozen=True)
class Launched:
    """A finished launch."""

    code: int
    output: str  # standard output
    screen: str  # standard error
    folder: Path

    @property
    def groups(self) -> list[dict[str, Any]]:
        return read_groups(self.folder / "trace")

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What the host logged at each step."""
        history = json.loads((self.folder / "out" / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in history if "loss" in entry]

    def trained(self) -> list[list[int]]:
        """Token ids, prompt and completion, of each row that had a gradient: of all ranks, noted by train.py."""
        files = sorted((self.folder / "out").glob("trained-*.jsonl"))
        return [row for file in files for line in file.read_text().splitlines() for row in json.loads(line)]


class Workshop:
    """A model, data, and a way to launch: nothing outside its folder may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = save_tiny(root / "model")
        self.data = self._write(
            "data.jsonl", [{"prompt": f"{n} plus {n + 1} is", "answer": str(2 * n + 1)} for n in range(NUM_ROWS)]
        )
        self.chats = self._write(
            "chats.jsonl",
            [
                {"prompt": [{"role": "user", "content": f"{n} + {n}?"}], "solution": f"${2 * n}$"}
                for n in range(NUM_ROWS)
            ],
        )
        self._count = 0

    def _write(self, name: str, rows: list[dict[str, Any]]) -> str:
        path = self.root / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def folder(self) -> Path:
        """A fresh folder to launch from."""
        self._count += 1
        folder = self.root / f"launch-{self._count}"
        (folder / "tmp").mkdir(parents=True)
        return folder

    def environment(self, folder: Path) -> dict[str, str]:
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("REFINE_WRAPPER_", "ACCELERATE_", "PYTEST_"))
        }
        return {
            **inherited,
            "HF_HOME": str(self.root / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(folder / "tmp"),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            "TRANSFORMERS_VERBOSITY": "error",
        }

    def run(
        self, *command: str, flags: tuple[str, ...] = (), folder: Path | None = None, trace: bool = True
    ) -> Launched:
        """`refine-wrapper run FLAGS -- COMMAND`, with a trace that has the texts."""
        folder = folder or self.folder()
        traced = ("--refine.trace_dir", str(folder / "trace"), "--refine.trace_texts", "true") if trace else ()
        return self.plain(
            sys.executable, "-m", "refine_wrapper.cli", "run", *flags, *traced, "--", *command, folder=folder
        )

    def plain(self, *command: str, folder: Path | None = None) -> Launched:
        """A command, in a session of its own; fails if it takes too long or leaves a process."""
        folder = folder or self.folder()
        with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
            process = subprocess.Popen(
                list(command), cwd=folder, env=self.environment(folder), stdout=out, stderr=err, start_new_session=True
            )
            try:
                code = process.wait(timeout=TIMEOUT)
            finally:
                left = _left_behind(folder, seconds=10 if process.poll() is not None else 0)
                for number in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                process.wait()
        launched = Launched(code, (folder / "stdout").read_text(), (folder / "stderr").read_text(), folder)
        assert not left, f"processes were left behind\n{launched.screen}"
        return launched


def _left_behind(folder: Path, seconds: float) -> list[int]:
    """Processes of a launch that still run when these seconds to end are over."""
    end = time.monotonic() + seconds
    while (processes := _processes(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    return processes


def _processes(folder: Path) -> list[int]:
    """Known by their environment, because launchers give workers sessions of their own."""
    mark = f"TMPDIR={folder / 'tmp'}\0".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes() + b"\0" and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile, or not ours
    return found


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("launch"))
