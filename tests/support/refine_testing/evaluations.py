"""`refine-wrapper eval` in a process of its own, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from refine_testing.signals import take_interrupts
from refine_wrapper.trace import read_trace

PALINDROMES = ("palindromes", "palindromes.jsonl", "--reward", "reasoning-gym", "--max-new-tokens", "8")
PALINDROMES += ("--refine.template", "template.txt")
"""The small model that can do its task a little, its problems and its template."""


def evaluate(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, to its end."""
    return subprocess.run(
        _command(arguments),
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """The same, still running; standard output and error are one pipe."""
    return subprocess.Popen(
        _command(arguments),
        cwd=folder,
        env=_environment(),
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
    return read_trace(out / "answers.jsonl")


def _command(arguments: tuple[str | Path, ...]) -> list[str]:
    return [sys.executable, "-m", "refine_wrapper.cli", "eval", *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "REFINE_WRAPPER_PLUGINS": "", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
