"""The import hook on its own, in this process."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import pickle
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.launch import hook

Install = Callable[..., list[ModuleType]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; the import system is put back afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("REFINE_WRAPPER_LAUNCH", raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def patched(folder: Path) -> Install:
    """Install the hook for modules, with a patch that notes the module in the list that is returned."""

    def install(*names: str) -> list[ModuleType]:
        (folder / "recording_patch.py").write_text("seen = []\ndef patch(module): seen.append(module)\n")
        hook.install(dict.fromkeys(names, "recording_patch:patch"))
        return importlib.import_module("recording_patch").seen

    return install


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_the_patch_gets_the_executed_module_once(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "class Trainer: pass\n")
    _write(folder, "host_b.py", "")
    seen = patched("host_a")
    import host_a  # pyright: ignore
    import host_b  # pyright: ignore  # noqa: F401

    assert seen == [host_a]
    assert hasattr(host_a, "Trainer")


def test_an_imported_module_is_as_without_the_hook(folder: Path, patched: Install) -> None:
    text = "import sys\nfound = (type(__loader__), type(__spec__.loader))\ndef f():\n    return 1\n"
    path = _write(folder, "host_a.py", text)
    patched("host_a")
    module = importlib.import_module("host_a")
    assert module.found == (SourceFileLoader, SourceFileLoader)  # also while it was executed
    assert type(module.__loader__) is SourceFileLoader
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert module.__spec__.origin == module.__file__ == str(path)
    assert inspect.getsource(module.f) == "def f():\n    return 1\n"
    assert importlib.util.find_spec("host_a") is module.__spec__


def test_a_spec_that_is_only_looked_at(folder: Path, patched: Install) -> None:
    path = _write(folder, "host_a.py", "x = 1\n")
    seen = patched("host_a")
    spec = importlib.util.find_spec("host_a")
    assert spec is not None
    loader: Any = spec.loader
    assert loader.get_source("host_a") == "x = 1\n"
    assert loader.get_filename("host_a") == str(path)
    assert not loader.is_package("host_a")
    for other in (pickle.loads(pickle.dumps(loader)), copy.copy(loader), copy.deepcopy(loader)):
        assert type(other) is SourceFileLoader
        assert other.path == str(path)
    assert seen == []


def test_classes_of_a_patched_module_pickle(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "class Trainer: pass\n")
    patched("host_a")
    module = importlib.import_module("host_a")
    assert type(pickle.loads(pickle.dumps(module.Trainer()))) is module.Trainer


def test_a_reload_is_patched_again(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "")
    seen = patched("host_a")
    module = importlib.import_module("host_a")
    assert importlib.reload(module) is module
    assert seen == [module, module]
    assert type(module.__loader__) is SourceFileLoader


def test_a_submodule_of_a_package(folder: Path, patched: Install) -> None:
    _write(folder, "host_p/__init__.py", "")
    _write(folder, "host_p/trainer.py", "")
    seen = patched("host_p", "host_p.trainer")
    trainer = importlib.import_module("host_p.trainer")
    assert [module.__name__ for module in seen] == ["host_p", "host_p.trainer"]
    assert sys.modules["host_p"].trainer is trainer


def test_a_module_that_replaces_itself(folder: Path, patched: Install) -> None:
    _write(
        folder,
        "host_a.py",
        """
        import sys, types
        sys.modules[__name__] = types.ModuleType(__name__)
        sys.modules[__name__].lazy = True
        """,
    )
    seen = patched("host_a")
    assert importlib.import_module("host_a").lazy
    assert [module.lazy for module in seen] == [True]


def test_a_lazily_loaded_module(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "x = 1\n")
    seen = patched("host_a")
    spec = importlib.util.find_spec("host_a")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["host_a"] = module
    spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]
    assert seen == []
    assert module.x == 1
    assert seen == [module]


def test_modules_in_a_zip_file_share_a_loader(folder: Path, patched: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = folder / "hosts.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("host_a.py", "x = 1\n")
        file.writestr("host_b.py", "x = 2\n")
    monkeypatch.syspath_prepend(str(archive))
    seen = patched("host_a")
    host_a, host_b = importlib.import_module("host_a"), importlib.import_module("host_b")
    assert (host_a.x, host_b.x, seen) == (1, 2, [host_a])


def test_installing_again_adds_to_one_finder(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "")
    _write(folder, "host_b.py", "")
    patched("host_a")
    patched("host_a")
    seen = patched("host_b")
    assert sum(isinstance(finder, hook.PatchFinder) for finder in sys.meta_path) == 1
    modules = [importlib.import_module(name) for name in ("host_a", "host_b")]
    assert seen == modules


def test_what_is_imported_already_is_patched_at_once(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "")
    module = importlib.import_module("host_a")
    assert patched("host_a") == [module]
    assert patched("host_a") == [module]


class _Wrapping:
    """The loader of another import hook."""

    def __init__(self, loader: Any) -> None:
        self.create_module = loader.create_module
        self.exec_module = loader.exec_module


class _Research:
    """A finder as other import hooks have: it starts the whole search again and wraps what that gives."""

    def __init__(self) -> None:
        self.asked = False
        self.found: list[str] = []

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "host_a" or self.asked:
            return None
        self.asked = True
        try:
            self.found.append(fullname)
            spec: Any = importlib.util.find_spec(fullname)
            spec.loader = _Wrapping(spec.loader)
            return spec
        finally:
            self.asked = False


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_beside_a_finder_that_searches_again(folder: Path, patched: Install, first: bool) -> None:
    _write(folder, "host_a.py", "")
    seen = patched("host_a")
    other = _Research()
    sys.meta_path.insert(0 if first else 1, other)
    assert seen == []
    module = importlib.import_module("host_a")
    assert (seen, other.found) == ([module], ["host_a"])


class _Keeping:
    """A finder that gives the same spec each time."""

    def __init__(self) -> None:
        self.spec = PathFinder.find_spec("host_a")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        return self.spec if fullname == "host_a" else None


def test_a_finder_that_keeps_its_specs(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "")
    seen = patched("host_a")
    sys.meta_path.insert(1, _Keeping())
    importlib.util.find_spec("host_a")
    module = importlib.import_module("host_a")
    assert seen == [module]


def test_only_finders_after_it_are_asked(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "")
    patched("host_a")
    other = _Keeping()
    other.spec = None
    calls: list[str] = []
    other.find_spec = lambda fullname, path=None, target=None: calls.append(fullname)  # pyright: ignore
    sys.meta_path.insert(0, other)
    importlib.import_module("host_a")
    assert calls.count("host_a") == 1


def test_a_module_that_does_not_exist(folder: Path, patched: Install) -> None:
    patched("host_nowhere")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'host_nowhere'$"):
        importlib.import_module("host_nowhere")


def test_a_host_that_cannot_be_imported_is_not_patched(folder: Path, patched: Install) -> None:
    _write(folder, "host_a.py", "1 / 0")
    seen = patched("host_a")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("host_a")
    assert seen == []
    assert "host_a" not in sys.modules


def test_what_the_patch_raises_ends_the_import(folder: Path) -> None:
    _write(folder, "host_a.py", "")
    _write(folder, "failing_patch.py", "def patch(module): raise KeyError('changed')")
    hook.install({"host_a": "failing_patch:patch"})
    with pytest.raises(KeyError, match="changed"):
        importlib.import_module("host_a")
    assert "host_a" not in sys.modules


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("no_such_patch:patch", "ModuleNotFoundError: No module named 'no_such_patch'"),
        ("empty_patch:patch", "AttributeError: module 'empty_patch' has no attribute 'patch'"),
    ],
)
def test_a_missing_patch_is_no_import_error(folder: Path, target: str, cause: str) -> None:
    _write(folder, "host_a.py", "")
    _write(folder, "empty_patch.py", "")
    hook.install({"host_a": target})
    with pytest.raises(SeamError) as error:
        importlib.import_module("host_a")
    assert str(error.value) == (
        f"refine: 'host_a' was imported but cannot be patched: {target} is missing in {sys.executable} ({cause}). "
        "Install refine-wrapper and the adapter in this environment."
    )


def test_a_namespace_package_has_nothing_to_patch(folder: Path, patched: Install) -> None:
    (folder / "host_n").mkdir()
    patched("host_n")
    with pytest.raises(SeamError, match=r"^refine: 'host_n' has no code that recording_patch:patch could patch"):
        importlib.import_module("host_n")
