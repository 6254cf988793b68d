"""Installing the extra keeps the host that is there; the adapter finds the names it stands on."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from refine_wrapper.hosts.seam import inspect_host
from refine_wrapper_openrlhf.plugin import register_adapters


def test_the_extra_asks_for_nothing_but_an_openrlhf_that_is_there() -> None:
    """The requirements of refine-wrapper[openrlhf] are all satisfied by what is installed, so pip changes nothing.

    Not by pip itself: this environment leaves out packages that OpenRLHF asks for and a CPU cannot have (flash_attn,
    bitsandbytes), and pip would miss those whatever asked for OpenRLHF.
    """
    if os.environ.get("REFINE_WRAPPER_TEST_INSTALLED") != "1":
        pytest.skip("needs the wheel to be installed; nox does that")
    for text in importlib.metadata.requires("refine-wrapper") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": "openrlhf"}):
            assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), text


def test_pip_plans_no_change_without_the_hosts_own_requirements() -> None:
    if os.environ.get("REFINE_WRAPPER_TEST_INSTALLED") != "1":
        pytest.skip("needs the wheel to be installed; nox does that")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
    planned = subprocess.run(
        [*command, "refine-wrapper[openrlhf]", "openrlhf>=0.9.1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    assert "Would install" not in planned.stdout


def test_the_seam_is_as_expected() -> None:
    report = inspect_host(register_adapters()["openrlhf"])
    assert report.usable, [finding for finding in report.seam if finding.problem]


def test_the_plugin_imports_no_host(tmp_path: Path) -> None:
    code = (
        "import sys, refine_wrapper_openrlhf.plugin as plugin; plugin.register_adapters(); "
        "print(sorted({'torch', 'openrlhf', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
