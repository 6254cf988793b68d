"""Installing the extra keeps the host that is there."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest


@pytest.mark.oldest
def test_the_extra_changes_no_installed_package() -> None:
    """pip, with no index to get anything from, would install nothing for the extra in an environment that has veRL."""
    if os.environ.get("REFINE_WRAPPER_TEST_INSTALLED") != "1":
        pytest.skip("needs the wheel to be installed; nox does that")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check"]
    planned = subprocess.run(
        [*command, "refine-wrapper[verl]"], capture_output=True, text=True, timeout=120, check=False
    )
    assert planned.returncode == 0, planned.stderr
    assert "Would install" not in planned.stdout
    assert f"({importlib.metadata.version('verl')})" in planned.stdout
