"""`refine-wrapper eval`, in this process or in one of its own, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from refine_testing.signals import take_interrupts
from refine_wrapper.cli import cli

PALINDROMES = ("palindromes", "palindromes.jsonl", "--reward", "reasoning-gym", "--max-new-tokens", "8")
PALINDROMES += ("--refine.template", "template.txt")
"""The small model that can do its task a little, its problems and its template."""

# One thread: two that wait for each other on a busy machine take many times as long on models this small.
_ENVIRONMENT = {"REFINE_WRAPPER_PLUGINS": "", "COLUMNS": "120", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


def evaluate(folder: Path, *arguments: str | Path | float) -> Ran:
    """The command in a folder, to its end, in this process: importing torch takes longer than most of what is tested."""
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        result = CliRunner().invoke(cli, ["eval", *map(str, arguments)], prog_name="refine-wrapper")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def start(folder: Path, *arguments: str | Path | float) -> subprocess.Popen[str]:
    """The command in a process of its own, still running; standard output and error are one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "refine_wrapper.cli", "eval", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=take_interrupts,
    )


def result_of(out: Path) -> dict[str, Any]:
    """The content of evaluation.json."""
    return json.loads((out / "evaluation.json").read_text())


def records_of(out: Path) -> list[dict[str, Any]]:
    """The lines of answers.jsonl."""
    return [json.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()]
