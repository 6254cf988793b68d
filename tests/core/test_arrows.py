"""Which room may import which: arrows go downwards only, and no circles.

    cli -> study -> hosts -> core -> rewards, plugins -> settings -> the modules at the top (errors, files, ...)

Adapters stand on hosts and what is below. The demo is a program on top of all of it. Read from the sources: imports inside
functions count, and so does a text that names a module of ours, because something will import it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
BELOW_CORE = frozenset({"rewards", "plugins", "settings", "top"})
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "top": frozenset(),
    "settings": frozenset({"top"}),
    "plugins": frozenset({"settings", "top"}),
    "rewards": frozenset({"plugins", "settings", "top"}),
    "core": BELOW_CORE,
    "hosts": BELOW_CORE | {"core"},
    "study": BELOW_CORE | {"core", "hosts"},
    "cli": BELOW_CORE | {"core", "hosts", "study"},
    "refine_wrapper_trl": BELOW_CORE | {"core", "hosts"},
    "refine_wrapper_openrlhf": BELOW_CORE | {"core", "hosts"},
    "refine_wrapper_verl": BELOW_CORE | {"core", "hosts"},
    "hydra_plugins": frozenset({"refine_wrapper_verl"}),
    "refine_wrapper_demo": BELOW_CORE | {"core", "hosts", "study", "refine_wrapper_trl"},
}
"""Room -> the other rooms that it may import."""

EXCEPTIONS = {
    # `from refine_wrapper import hookimpl, RefineConfig`: names for users, loaded when they are asked for.
    ("refine_wrapper", "refine_wrapper.plugins.hookspecs"),
    ("refine_wrapper", "refine_wrapper.settings.config"),
    # What is built in is loaded by name, through the hooks that any plugin has.
    ("refine_wrapper.plugins.manager", "refine_wrapper.core.selection.hooks"),
    ("refine_wrapper.plugins.manager", "refine_wrapper.core.prompts.hooks"),
    ("refine_wrapper.plugins.manager", "refine_wrapper.core.modes.hooks"),
    ("refine_wrapper.plugins.manager", "refine_wrapper.rewards.hooks"),
    # Starts `python -m refine_wrapper.cli run`: a command in a process of its own, as anybody would start it.
    ("refine_wrapper.study.ablation.cell", "refine_wrapper.cli"),
}
"""(importer, imported) that may point upwards."""
TYPES_ONLY = "refine_wrapper.plugins.hookspecs"
"""The contract names what plugins hand over, from all rooms: it alone may import upwards for its type annotations."""


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    how: Literal["import", "for types", "by name"]


@cache
def modules() -> Mapping[str, Path]:
    """Every module of ours: its name -> its file."""
    roots = [ROOT, ROOT / "adapters"]
    files = [(root, file) for root in roots for top in _packages(root) for file in sorted(top.rglob("*.py"))]
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for root, file in files
    }


@cache
def imports() -> tuple[Import, ...]:
    """Every import of a module of ours by another."""
    return tuple(
        found
        for name, file in modules().items()
        for found in imports_of(name, ast.parse(file.read_text(encoding="utf-8")))
        if found.imported != name
    )


def imports_of(name: str, tree: ast.Module) -> Iterator[Import]:
    """The modules of ours that a module imports or names."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        candidates: list[str] = []
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}, line {node.lineno}: imports here are absolute"
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            candidates = [node.value.partition(":")[0]]
        for candidate in candidates:
            # `from module import name`: the module, unless the name is a module itself.
            imported = candidate if candidate in modules() else candidate.rpartition(".")[0]
            if imported in modules() and (isinstance(node, (ast.Import, ast.ImportFrom)) or "." in candidate):
                how = (
                    "by name" if isinstance(node, ast.Constant) else "for types" if id(node) in for_types else "import"
                )
                yield Import(name, imported, node.lineno, how)


def room(module: str) -> str:
    package, _, rest = module.partition(".")
    if package != "refine_wrapper":
        return package
    return rest.partition(".")[0] if rest.partition(".")[0] in MAY_IMPORT else "top"


def is_allowed(found: Import) -> bool:
    here, there = room(found.importer), room(found.imported)
    return here == there or there in MAY_IMPORT[here] or is_exception(found)


def is_exception(found: Import) -> bool:
    return (found.importer, found.imported) in EXCEPTIONS or (found.importer == TYPES_ONLY and found.how == "for types")


def test_every_package_has_its_place() -> None:
    assert {room(name) for name in modules()} == set(MAY_IMPORT)


def test_arrows_go_downwards() -> None:
    wrong = [found for found in imports() if not is_allowed(found)]
    assert [f"{found.importer}, line {found.line}: imports {found.imported}" for found in wrong] == []


def test_no_exception_is_left_over() -> None:
    assert {(found.importer, found.imported) for found in imports()} >= EXCEPTIONS


def test_no_circles() -> None:
    needs: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        # A name that is handed to somebody (a host, a process) is no import of this module.
        if found.how != "by name" and not is_exception(found):
            needs[found.importer].add(found.imported)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("importer", "source", "allowed"),
    [
        ("refine_wrapper.core.types", "from refine_wrapper.hosts import adapter", False),
        ("refine_wrapper.core.types", "def late():\n    import refine_wrapper.cli.run", False),
        ("refine_wrapper.core.types", "if TYPE_CHECKING:\n    from refine_wrapper.hosts.adapter import Adapter", False),
        ("refine_wrapper.core.types", "NAME = 'refine_wrapper_trl.switch:switch_config'", False),
        ("refine_wrapper.core.types", "from refine_wrapper.errors import RefineError", True),
        (TYPES_ONLY, "if TYPE_CHECKING:\n    from refine_wrapper.hosts.adapter import Adapter", True),
        (TYPES_ONLY, "from refine_wrapper.hosts.adapter import Adapter", False),
        ("refine_wrapper_verl.manager", "from refine_wrapper.cli.run import run", False),
        ("refine_wrapper_verl.manager", "from refine_wrapper.hosts.seam import require_seam", True),
    ],
)
def test_the_test_sees_what_it_should(importer: str, source: str, allowed: bool) -> None:
    [found] = imports_of(importer, ast.parse(source))
    assert is_allowed(found) is allowed


def _packages(root: Path) -> list[Path]:
    own = [
        folder for folder in root.iterdir() if folder.is_dir() and folder.name.startswith(("refine_wrapper", "hydra_"))
    ]
    return sorted(own)
