"""Imported by every Python that starts in a command of ``refine-wrapper run``. See ``refine_wrapper.hosts.launch``.

This folder is on PYTHONPATH and holds nothing else.
"""

import os
import sys


def _install_hook() -> None:
    """Before the user's own sitecustomize, so that host modules which that one imports are patched too."""
    if not os.environ.get("REFINE_WRAPPER_LAUNCH"):
        return
    try:
        from refine_wrapper.hosts.launch import hook
    except ImportError as error:
        # Not fatal: it may be a helper that does not train. `run` fails in the end if nothing was refined.
        message = f"{sys.executable} cannot import refine_wrapper ({error}); it refines nothing."
        print(f"refine: {message}", file=sys.stderr)  # noqa: T201
        return
    hook.install_from_environment()


def _run_next_sitecustomize() -> None:
    """Run the sitecustomize that this one hides, as if this one were not there."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))
    positions = [i for i, entry in enumerate(sys.path) if os.path.abspath(entry) == here]
    # Out of the way meanwhile: the next one may itself look for a next one, and must not find this one again.
    sys.path[:] = [entry for i, entry in enumerate(sys.path) if i not in positions]
    try:
        spec = PathFinder.find_spec("sitecustomize", sys.path)
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            sys.modules["sitecustomize"] = module
            spec.loader.exec_module(module)
    finally:
        # Back again: some launchers make the PYTHONPATH of their workers out of sys.path.
        if positions:
            sys.path.insert(min(positions[0], len(sys.path)), here)


try:
    _install_hook()
finally:
    _run_next_sitecustomize()
