"""Whether an adapter can work with the host that is installed here: versions and the names it stands on."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from refine_wrapper.errors import SeamError
from refine_wrapper.hosts.adapter import Adapter


@dataclass(frozen=True, slots=True)
class Finding:
    """One name of the host that the adapter stands on.

    Attributes:
        entry: As the adapter states it, ``module:Class.method(arguments)`` or a module to patch.
        problem: Why it cannot be used; empty if it can.
    """

    entry: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class HostReport:
    """What was found of one adapter's host.

    Attributes:
        host: Name of the host.
        distribution: Its distribution on the package index.
        version: The installed version, None if it is not installed.
        supported: The range that the adapter states.
        seam: Each name that the adapter stands on.
        problems: Why it cannot be used, and what to do.
        notes: What should be known, but does not hinder.
    """

    host: str
    distribution: str
    version: str | None
    supported: str
    seam: tuple[Finding, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether refinement can run on this host here."""
        return self.version is not None and not self.problems


def inspect_host(adapter: Adapter) -> HostReport:
    """Import the installed host and compare it with what the adapter needs. A broken host is a finding."""
    oldest, newest = adapter.supported
    supported = f">={oldest}" + (f",<{newest}" if newest else "")
    try:
        version = importlib.metadata.version(adapter.distribution)
    except importlib.metadata.PackageNotFoundError:
        problem = f"not installed: pip install 'refine-wrapper[{adapter.host}]'"
        return HostReport(adapter.host, adapter.distribution, None, supported, problems=(problem,))
    problems, notes = _compare(adapter, version)
    seam = tuple(Finding(entry, _check(_check_entry, entry)) for entry in adapter.seam)
    seam += tuple(Finding(module, _check(_check_patch, module, target)) for module, target in adapter.patches.items())
    broken = sum(bool(finding.problem) for finding in seam)
    if broken:
        problems.append(
            f"{broken} of {len(seam)} names that refinement stands on are not as expected. Install a "
            f"supported version (pip install '{adapter.distribution}{supported}') or a newer refine-wrapper."
        )
    return HostReport(adapter.host, adapter.distribution, version, supported, seam, tuple(problems), tuple(notes))


def require_seam(adapter: Adapter) -> None:
    """Refuse an installed host that the adapter cannot stand on, for adapters that the host itself imports.

    Raises:
        SeamError: Naming the host's version, and each name that is not as expected.
    """
    report = inspect_host(adapter)
    if report.usable:
        return
    broken = "".join(f"\n  {f.entry}: {f.problem}" for f in report.seam if f.problem)
    raise SeamError(
        f"refine: {report.distribution} {report.version or 'is not installed'} cannot be refined; supported is "
        f"{report.supported}. {'. '.join(report.problems)}{broken}"
    )


def _compare(adapter: Adapter, version: str) -> tuple[list[str], list[str]]:
    oldest, newest = adapter.supported
    try:
        installed = Version(version)
    except InvalidVersion:
        return [], [f"version {version!r} cannot be compared with the supported ones"]
    if installed < Version(oldest):
        return [f"too old: pip install -U '{adapter.distribution}>={oldest}'"], []
    if newest and installed >= Version(newest):
        return [], [f"newer than what refine-wrapper was tried with (<{newest}); what it stands on was checked below"]
    return [], []


def _check(check: Any, *arguments: str) -> str:
    """A problem as text. Whatever a broken host raises while it is imported is one too."""
    try:
        # Hosts print when they are imported; standard output is for the report.
        with contextlib.redirect_stdout(sys.stderr):
            return check(*arguments)
    except (Exception, SystemExit) as error:
        return f"cannot be imported: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _check_entry(entry: str) -> str:
    path, parenthesis, expected = entry.partition("(")
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split(".") if name else ():
        if not hasattr(found, part):
            return f"there is no {part!r} in {getattr(found, '__name__', module)}"
        found = getattr(found, part)
    if not parenthesis:
        return ""
    wanted, given = _parameters(expected.rstrip().removesuffix(")")), _parameters_of(found)
    return "" if wanted == given else f"takes ({', '.join(given)})"


def _check_patch(module: str, target: str) -> str:
    if importlib.util.find_spec(module) is None:
        return "there is no such module, so it would never be patched"
    patch, _, function = target.partition(":")
    if not callable(getattr(importlib.import_module(patch), function, None)):
        return f"its patch {target} does not exist"
    return ""


def _parameters(text: str) -> list[str]:
    """Names with their stars, without defaults: what a caller may rely on."""
    function = ast.parse(f"def _({text}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [argument.arg for argument in arguments.kwonlyargs]
    return names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])


def _parameters_of(function: Any) -> list[str]:
    names: list[str] = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if _added_by_a_decorator(parameter):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            names.append("*")
            starred = True
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        names.append(f"{stars}{parameter.name}")
    return names


def _added_by_a_decorator(parameter: inspect.Parameter) -> bool:
    """Private, keyword-only, optional: nobody has to know it. Ray adds ``_ray_trace_ctx`` to methods of actors."""
    optional = parameter.default is not parameter.empty
    return parameter.kind is parameter.KEYWORD_ONLY and optional and parameter.name.startswith("_")
