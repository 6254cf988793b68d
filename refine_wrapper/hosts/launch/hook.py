"""The import hook: calls ``package.module:function`` with a host module right after the module was executed.

Runs in every Python process of a launched command, so it imports only what is cheap.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.launch import report


def install_from_environment() -> None:
    """Install the hook that ``refine-wrapper run`` asks for, if it started this process."""
    settings = report.launch_settings()
    if settings is not None:
        report.mark("hook")
        install(settings["patches"])


def install(patches: Mapping[str, str]) -> None:
    """Patch modules when they are imported, and those that are imported already.

    Installing again adds to what is installed; there is never more than one finder.

    Args:
        patches: Module name -> ``package.module:function``, as in ``Adapter.patches``.

    Raises:
        SeamError: If the function that patches an already imported module does not exist.
    """
    finder = next((finder for finder in sys.meta_path if isinstance(finder, PatchFinder)), None)
    if finder is None:
        finder = PatchFinder()
        sys.meta_path.insert(0, finder)
    new = {name: target for name, target in patches.items() if finder.patches.get(name) != target}
    finder.patches.update(new)
    for name, target in new.items():
        if name in sys.modules:
            _patch(sys.modules[name], name, target)


class PatchFinder:
    """A finder on ``sys.meta_path`` that asks those after it, and wraps the loader that they give."""

    def __init__(self) -> None:
        self.patches: dict[str, str] = {}
        # (thread, module) being asked for: a finder after this one may start the whole search again.
        self._asked: set[tuple[int, str]] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, made to patch once executed. None for any module not to patch."""
        patch = self.patches.get(fullname)
        asked = (get_ident(), fullname)
        if patch is None or asked in self._asked:
            return None
        self._asked.add(asked)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            self._asked.discard(asked)
        if spec is None or isinstance(spec.loader, _PatchingLoader):  # a finder may keep its specs
            return spec
        if not hasattr(spec.loader, "exec_module"):
            raise SeamError(
                f"refine: {fullname!r} has no code that {patch} could patch (found: {spec!r}). "
                "Is the host's installation complete?"
            )
        spec.loader = _PatchingLoader(spec.loader, patch)  # pyright: ignore[reportAttributeAccessIssue]
        return spec

    def _ask_others(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        finders: list[Any] = list(sys.meta_path)
        # Those before this one had their turn: they were asked, and had nothing.
        for finder in finders[finders.index(self) + 1 if self in finders else 0 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = None if find_spec is None else find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None


class _PatchingLoader:
    """Stands in for a module's own loader until the module is executed, then gives it its place back.

    All else (``get_source``, ``get_data``, resources ...) is the own loader's, for those who look at a spec
    without importing. Afterwards ``__loader__`` and ``__spec__`` are what they are without the hook.
    """

    def __init__(self, loader: Any, patch: str) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._loader, "create_module", None)
        return None if create is None else create(spec)

    def exec_module(self, module: ModuleType) -> None:
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._loader
        spec: Any = module.__spec__
        if spec is not None and spec.loader is self:
            spec.loader = self._loader
        self._loader.exec_module(module)
        # A module may replace itself while it is executed (lazy packages do): importers get its replacement.
        name = module.__name__
        _patch(sys.modules.get(name, module), name, self._patch)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while being unpickled or copied there is none yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_loader, (self._loader,)  # pickled, it is the own loader


def _own_loader(loader: Any) -> Any:
    return loader


def _patch(module: ModuleType, name: str, target: str) -> None:
    """Call the adapter. What it raises ends the import: to train on without refinement would be worse."""
    report.mark(f"patched-{name}")
    module_name, _, function_name = target.partition(":")
    try:
        function = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        # Not an ImportError: hosts and scripts take those for "not installed", and go on.
        raise SeamError(
            f"refine: {name!r} was imported but cannot be patched: {target} is missing in {sys.executable} "
            f"({type(error).__name__}: {error}). Install refine-wrapper and the adapter in this environment."
        ) from error
    function(module)
