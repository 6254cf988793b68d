"""``refine-wrapper demo``: forwards to the demo of the TRL adapter."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, cast

import click

from refine_wrapper.errors import RefineError

# What the extra `demo` installs, and what comes with it.
_EXTRA: Final = frozenset(
    {
        "trl",
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "reasoning_gym",
        "matplotlib",
        "refine_wrapper_trl",
    }
)


class DemoError(RefineError, ImportError):
    """What the demo needs is not installed."""


# No --help of its own: the demo's is the one that helps.
@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def demo(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Train a small model with and without refinement, and compare."""
    try:
        command = cast("click.Command", import_module("refine_wrapper_trl.demo.command").demo)
        # Not standalone: errors and exit codes are this program's.
        code: Any = command.main(list(arguments), prog_name="refine-wrapper demo", standalone_mode=False)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        raise DemoError(
            f"refine: the demo needs {error.name}, which is not installed. Install it with: "
            "pip install 'refine-wrapper[demo]'"
        ) from error
    context.exit(code if isinstance(code, int) else 0)
