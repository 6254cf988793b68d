from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

import pytest

from refine_wrapper.version import __version__

GOOD_SEAM = '("fakehost.trainer:Trainer.train(self, steps)",)'


def _doctor(invoke: Any, *arguments: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The report, the part of the fake host, and the exit code."""
    result = invoke("doctor", "--json", "--plugin", "fake_plugin", *arguments)
    report = json.loads(result.stdout)
    host = next((host for host in report["hosts"] if host["host"] == "fakehost"), {})
    return report, host, result.exit_code


def test_a_good_host(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINE_WRAPPER_SEED", "3")
    report, host, code = _doctor(invoke)
    assert host == {
        "host": "fakehost",
        "distribution": "fakehost",
        "version": "1.2",
        "supported": ">=1.0,<2.0",
        "seam": [
            {"entry": "fakehost.trainer:Trainer.train(self, steps)", "problem": ""},
            {"entry": "fakehost.trainer", "problem": ""},
        ],
        "problems": [],
        "notes": [],
        "usable": True,
    }
    assert code == 0
    assert (report["refine_wrapper"], report["python"]) == (__version__, platform.python_version())
    assert "fake_plugin" in report["plugins"]
    assert report["environment"] == {"REFINE_WRAPPER_PLUGINS": "", "REFINE_WRAPPER_SEED": "3"}


def test_what_a_host_prints_when_imported_does_not_spoil_the_json(project: Any, invoke: Any) -> None:
    project.write("lib/fakehost/__init__.py", "print('hello from the host')")
    assert _doctor(invoke)[2] == 0


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("fakehost.trainer:Trainer.train(self)", "takes (self, steps)"),
        ("fakehost.trainer:Trainer.train(self, steps, *, x=1, **y)", "takes (self, steps)"),
        ("fakehost.trainer:Trainer.fit(self)", "there is no 'fit' in Trainer"),
        ("fakehost.trainer:Trainr", "there is no 'Trainr' in fakehost.trainer"),
        ("fakehost.gone:Trainer", "cannot be imported: ModuleNotFoundError: No module named 'fakehost.gone'"),
    ],
)
def test_a_changed_seam(project: Any, invoke: Any, entry: str, problem: str) -> None:
    plugin = (project.lib / "fake_plugin.py").read_text().replace(GOOD_SEAM, f"({entry!r},)")
    project.write("lib/fake_plugin.py", plugin)
    _, host, code = _doctor(invoke)
    assert (host["seam"][0], host["usable"], code) == ({"entry": entry, "problem": problem}, False, 1)
    assert host["problems"] == [
        "1 of 2 names that refinement stands on are not as expected. Install a supported version "
        "(pip install 'fakehost>=1.0,<2.0') or a newer refine-wrapper."
    ]


@pytest.mark.parametrize(
    "arguments", ["self, a, /, b, *c, d, **e", "self, a, *, b=1, **c", "self, *a, b", "self", "self, a=2"]
)
def test_arguments_are_compared_by_name_and_kind(project: Any, invoke: Any, arguments: str) -> None:
    project.write("lib/fakehost/trainer.py", f"class Trainer:\n    def train({arguments}): ...\n")
    entry = f"fakehost.trainer:Trainer.train({arguments})"
    plugin = (project.lib / "fake_plugin.py").read_text().replace(GOOD_SEAM, f"({entry!r},)")
    project.write("lib/fake_plugin.py", plugin)
    assert _doctor(invoke)[1]["seam"][0] == {"entry": entry, "problem": ""}


@pytest.mark.parametrize(("added", "same"), [("_ctx=None", True), ("ctx=None", False), ("_ctx", False)])
def test_what_a_decorator_added_is_nobodys_business(project: Any, invoke: Any, added: str, same: bool) -> None:
    """Ray adds a private optional keyword to the methods of actors. A public one, or one without default, is a change."""
    project.write("lib/fakehost/trainer.py", f"class Trainer:\n    def train(self, steps, *, {added}): ...\n")
    assert (_doctor(invoke)[1]["seam"][0]["problem"] == "") is same


def test_an_adapter_can_require_its_seam(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from refine_wrapper.errors import SeamError
    from refine_wrapper.hosts.adapter import Adapter
    from refine_wrapper.hosts.seam import require_seam

    adapter = Adapter("pluggy", "pluggy", ("1.0", None), seam=("pluggy:PluginManager.register(self, plugin, name)",))
    require_seam(adapter)
    changed = Adapter("pluggy", "pluggy", ("1.0", None), seam=("pluggy:PluginManager.gone(self)",))
    version = importlib.metadata.version("pluggy")
    with pytest.raises(
        SeamError, match=f"pluggy {version} cannot be refined; (?s:.*)there is no 'gone' in PluginManager"
    ):
        require_seam(changed)
    with pytest.raises(SeamError, match="no-such-host is not installed cannot be refined"):
        require_seam(Adapter("x", "no-such-host", ("1.0", None)))


def test_a_host_that_cannot_be_imported(project: Any, invoke: Any) -> None:
    project.write("lib/fakehost/trainer.py", "raise OSError('libcuda.so is missing\\nmore')")
    _, host, code = _doctor(invoke)
    assert host["seam"][0]["problem"] == "cannot be imported: OSError: libcuda.so is missing"
    assert (host["usable"], code) == (False, 1)


def test_a_patch_that_does_not_exist(project: Any, invoke: Any) -> None:
    project.write("lib/fake_patch.py", "")
    _, host, code = _doctor(invoke)
    assert host["seam"][1] == {"entry": "fakehost.trainer", "problem": "its patch fake_patch:patch does not exist"}
    assert code == 1


@pytest.mark.parametrize(
    ("version", "problems", "notes", "code"),
    [
        ("0.9", ["too old: pip install -U 'fakehost>=1.0'"], [], 1),
        ("1.0", [], [], 0),
        (
            "2.0",
            [],
            ["newer than what refine-wrapper was tried with (<2.0); what it stands on was checked below"],
            0,
        ),
        ("2.0.dev1", [], [], 0),
        ("nightly", [], ["version 'nightly' cannot be compared with the supported ones"], 0),
    ],
)
def test_versions(project: Any, invoke: Any, version: str, problems: list[str], notes: list[str], code: int) -> None:
    metadata = project.lib / "fakehost-1.2.dist-info" / "METADATA"
    metadata.write_text(f"Metadata-Version: 2.1\nName: fakehost\nVersion: {version}\n")
    _, host, exit_code = _doctor(invoke)
    assert (host["version"], host["problems"], host["notes"], exit_code) == (version, problems, notes, code)


def test_a_host_that_is_not_installed(project: Any, invoke: Any) -> None:
    (project.lib / "fakehost-1.2.dist-info" / "METADATA").unlink()
    (project.lib / "fakehost-1.2.dist-info").rmdir()
    _, host, code = _doctor(invoke)
    assert (host["version"], host["seam"], host["usable"], code) == (None, [], False, 1)
    assert host["problems"] == ["not installed: pip install 'refine-wrapper[fakehost]'"]


def test_a_plugin_that_cannot_be_loaded_is_a_finding(invoke: Any) -> None:
    result = invoke("doctor", "--json", "--plugin", "no_such_plugin")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"] == [
        "refine: the plugin module 'no_such_plugin' cannot be imported: No module named 'no_such_plugin'. It must be "
        "importable from where the trainer starts; add its folder to PYTHONPATH."
    ]


def test_the_table(project: Any) -> None:
    result = project.cli("doctor", "--plugin", "fake_plugin", REFINE_WRAPPER_SEED="3")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "host installed supported usable" in lines
    assert "fakehost 1.2 >=1.0,<2.0 yes" in lines
    assert "fakehost: ok fakehost.trainer:Trainer.train(self, steps)" in lines
    assert "REFINE_WRAPPER_SEED=3" in lines
    assert (result.stderr, result.returncode) == ("", 0)


def test_the_table_says_what_to_do(project: Any) -> None:
    project.write("lib/fakehost/trainer.py", "class Trainer:\n    def train(self, n): ...\n")
    result = project.cli("doctor", "--plugin", "fake_plugin")
    assert "fakehost: BAD fakehost.trainer:Trainer.train(self, steps)\n    takes (self, n)\n" in result.stdout
    assert "No host can be used here. Install one, for example: pip install 'refine-wrapper[trl]'\n" in result.stdout
    assert result.returncode == 1
