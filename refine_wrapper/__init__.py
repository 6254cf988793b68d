"""refine-wrapper: two-stage refinement (iGRPO, arXiv 2602.09000) around the RL objective you already train.

The core is backend-neutral: it imports neither torch nor a host. Hosts are adapters, for example
``refine_wrapper_trl``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from refine_wrapper.version import __version__

if TYPE_CHECKING:
    from refine_wrapper.plugins.hookspecs import hookimpl
    from refine_wrapper.settings.config import RefineConfig

__all__ = ["RefineConfig", "__version__", "hookimpl"]

_HOMES = {"RefineConfig": "refine_wrapper.settings.config", "hookimpl": "refine_wrapper.plugins.hookspecs"}


def __getattr__(name: str) -> object:
    # Loaded on first use (PEP 562): `import refine_wrapper` also runs in processes that never refine anything.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
