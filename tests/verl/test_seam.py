"""What the adapter stands on, and what is said when the installed veRL is something else."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.seam import inspect_host, require_seam
from refine_wrapper_verl.plugin import ADAPTER


@pytest.mark.oldest
def test_the_installed_host_is_what_was_written_against() -> None:
    report = inspect_host(ADAPTER)
    assert report.problems == ()
    assert [finding.entry for finding in report.seam if finding.problem] == []
    require_seam(ADAPTER)


def test_a_missing_method_is_named_with_the_hosts_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.experimental.agent_loop import AgentLoopWorker

    monkeypatch.delattr(AgentLoopWorker, "_compute_score")
    monkeypatch.delitem(sys.modules, "refine_wrapper_verl.manager", raising=False)
    version = importlib.metadata.version("verl")
    with pytest.raises(SeamError, match=f"verl {version} cannot be refined.*(?s:.*)there is no '_compute_score'"):
        importlib.import_module("refine_wrapper_verl.manager")


def test_other_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.experimental.agent_loop import AgentLoopWorker

    async def other(self: Any, sampling_params: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(AgentLoopWorker, "_run_agent_loop", other)
    with pytest.raises(SeamError, match=r"_run_agent_loop(?s:.*)takes \(self, sampling_params, \*\*kwargs\)"):
        require_seam(ADAPTER)


@pytest.mark.parametrize("version", ["0.8.0", "0.7.1"])
def test_an_older_host_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    own = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "verl" else own(name))
    with pytest.raises(SeamError, match=rf"verl {version} cannot be refined; supported is >=0\.9\.0,<0\.10.*too old"):
        require_seam(ADAPTER)


def test_naming_the_group_imports_no_host(tmp_path: Path) -> None:
    """The callback runs in the driver before veRL is imported; a plugin of Hydra runs in every Hydra application."""
    import subprocess

    script = (
        "import sys, refine_wrapper_verl.hydra_start, refine_wrapper_verl.switch, refine_wrapper_verl.plugin\n"
        "import hydra_plugins.refine_wrapper_verl_searchpath\n"
        "print(sorted({'torch', 'verl', 'ray', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "[]"
