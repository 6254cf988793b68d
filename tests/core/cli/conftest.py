"""A fake host with a fake adapter, and the real command line around it.

These are unit tests of launching: that the real hosts are reached is shown in their own folders.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HOST = """
class Trainer:
    def train(self, steps=1):
        print("plain training")
"""

PLUGIN = """
from refine_wrapper import hookimpl
from refine_wrapper.hosts.adapter import Adapter

@hookimpl
def register_adapters():
    return {
        "fakehost": Adapter(
            host="fakehost",
            distribution="fakehost",
            supported=("1.0", "2.0"),
            patches={"fakehost.trainer": "fake_patch:patch"},
            seam=("fakehost.trainer:Trainer.train(self, steps)",),
        )
    }
"""

PATCH = """
from refine_wrapper.settings.sources import resolve
from refine_wrapper.hosts.launch.report import note_refined

def patch(module):
    original = module.Trainer.train

    def train(self, steps=1):
        note_refined("fakehost", steps=steps)
        print(f"refined training, {resolve().num_drafts} drafts")
        return original(self, steps)

    module.Trainer.train = train
"""

TRAIN = """
from fakehost.trainer import Trainer

Trainer().train()
"""


class Project:
    """A folder with the fake host, its adapter and a user's unmodified script, and ways to run things in it."""

    def __init__(self, root: Path) -> None:
        self.lib = root / "lib"
        self.temporary = root / "tmp"
        self.work = root / "work"
        for folder in (self.lib / "fakehost", self.temporary, self.work):
            folder.mkdir(parents=True)
        self.write("lib/fakehost/__init__.py", "")
        self.write("lib/fakehost/trainer.py", HOST)
        self.write("lib/fakehost-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: fakehost\nVersion: 1.2\n")
        self.write("lib/fake_plugin.py", PLUGIN)
        self.write("lib/fake_patch.py", PATCH)
        self.write("lib/train_module.py", TRAIN)
        self.write("work/train.py", TRAIN)

    def write(self, name: str, text: str) -> Path:
        path = self.lib.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REFINE_WRAPPER_")}
        path = os.pathsep.join(filter(None, (str(self.lib), inherited.get("PYTHONPATH"))))
        # Unbuffered, so that lines of `run` and of its command come in the order in which they were written.
        own = {"PYTHONPATH": path, "TMPDIR": str(self.temporary), "REFINE_WRAPPER_PLUGINS": "", "PYTHONUNBUFFERED": "1"}
        return {**inherited, **own, **(extra or {})}

    def cli(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run the command line; whatever it does, it must leave no temporary file."""
        result = subprocess.run(
            [sys.executable, "-m", "refine_wrapper.cli", *arguments],
            cwd=self.work,
            env=self.environment(extra),
            text=True,
            capture_output=True,
            timeout=50,
        )
        assert list(self.temporary.iterdir()) == []
        return result

    def run(self, *command: str, flags: tuple[str, ...] = (), **extra: str) -> subprocess.CompletedProcess[str]:
        """`refine-wrapper run` with the fake adapter."""
        return self.cli("run", "--plugin", "fake_plugin", *flags, "--", *command, **extra)

    @contextmanager
    def started(self, *command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """`refine-wrapper run`, still running; its standard output is a pipe. Killed at the end if need be."""

        def own_session() -> None:
            os.setsid()
            # Ignored where the tests run in the background of a shell, and that would be inherited.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if "stdin" in options:
                import fcntl
                import termios

                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            [sys.executable, "-m", "refine_wrapper.cli", "run", "--plugin", "fake_plugin", "--", *command],
            cwd=self.work,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=own_session,
            **options,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def invoke(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command line in this process, for what starts nothing: returns click's result."""
    from click.testing import CliRunner

    from refine_wrapper.cli import cli

    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(project.lib))
    monkeypatch.chdir(project.work)
    monkeypatch.delenv("REFINE_WRAPPER_TEST_INSTALLED", raising=False)  # `doctor` shows such variables

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, list(arguments), prog_name="refine-wrapper", terminal_width=100)

    yield run
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("fakehost", "fake_plugin", "fake_patch", "other_plugin"):
            del sys.modules[name]
