"""Installing the extra keeps the host that is there."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest


@pytest.mark.oldest
def test_the_extra_changes_no_installed_package() -> None:
    """pip, with no index to get anything from, finds every requirement of the extra satisfied by what is installed.

    In the session of the oldest TRL that TRL is an overlay on PYTHONPATH, which pip sees as installed.
    """
    if os.environ.get("REFINE_WRAPPER_TEST_INSTALLED") != "1":
        pytest.skip("needs the wheel to be installed; nox does that")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check"]
    planned = subprocess.run(
        [*command, "refine-wrapper[trl]"], capture_output=True, text=True, timeout=120, check=False
    )
    assert planned.returncode == 0, planned.stderr
    assert "Would install" not in planned.stdout
    trl = importlib.metadata.version("trl")
    assert "Requirement already satisfied: trl" in planned.stdout
    assert f"({trl})" in planned.stdout


def test_the_extra_has_lower_bounds_only() -> None:
    for requirement in importlib.metadata.requires("refine-wrapper") or []:
        specifier = requirement.partition(";")[0]
        assert not any(operator in specifier for operator in ("==", "<", "~=", "!=")), requirement
