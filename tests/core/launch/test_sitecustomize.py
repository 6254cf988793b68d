"""The injected sitecustomize, where `refine-wrapper run` cannot put it: in an interpreter without the package."""

from __future__ import annotations

import subprocess
import sys

from refine_wrapper.hosts.launch.environment import INJECT

SCRIPT = f"import runpy; runpy.run_path({str(INJECT / 'sitecustomize.py')!r}); print('went on')"


def _run(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # -S: only the standard library can be imported.
        [sys.executable, "-I", "-S", "-c", SCRIPT],
        env=environ,
        text=True,
        capture_output=True,
        timeout=30,
    )


def test_an_interpreter_without_the_package_says_so_and_goes_on() -> None:
    result = _run(REFINE_WRAPPER_LAUNCH="{}")
    assert (result.stdout, result.returncode) == ("went on\n", 0)
    assert result.stderr == (
        f"refine: {sys.executable} cannot import refine_wrapper (No module named 'refine_wrapper'); "
        "it refines nothing.\n"
    )


def test_it_does_nothing_in_a_process_that_run_did_not_start() -> None:
    result = _run()
    assert (result.stdout, result.stderr, result.returncode) == ("went on\n", "", 0)
