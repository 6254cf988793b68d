"""``refine-wrapper plugins``: what is loaded, and what can be chosen by name."""

from __future__ import annotations

import inspect
import re
from typing import Any, cast

import click

from refine_wrapper.cli.settings import plugin_option, resolve_settings
from refine_wrapper.hosts.adapter import Adapter
from refine_wrapper.plugins.manager import REGISTRIES, Plugins
from refine_wrapper.plugins.options import describe_options
from refine_wrapper.settings.config import field_names
from refine_wrapper.settings.sources import FLAG_PREFIX


@click.command
@plugin_option
def plugins(plugin_modules: tuple[str, ...]) -> None:
    """List the plugins and everything they registered.

    The name of the plugin that registered something stands in brackets.
    """
    loaded = Plugins(resolve_settings({}, plugin_modules).config.plugin_modules)
    formatter = click.HelpFormatter()
    with formatter.section("plugins, in the order in which they were loaded"):
        for name in loaded.names():
            formatter.write_text(name)
    for kind in REGISTRIES:
        flag = f" (choose with {FLAG_PREFIX}{kind})" if kind in field_names() else ""
        registered = loaded.all(kind)
        with formatter.section(f"{kind}s{flag}"):
            formatter.write_dl(
                [(name, f"{_describe(value)}  [{loaded.owner(kind, name)}]") for name, value in registered.items()]
                or [("none", "")]
            )
    click.echo(formatter.getvalue().rstrip("\n"))


def _describe(value: Any) -> str:
    """For data what it holds, otherwise the first sentence of the docstring, and the options."""
    if isinstance(value, Adapter):
        oldest, newest = value.supported
        return f"{value.distribution}>={oldest}" + (f",<{newest}" if newest else "")
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return f"for {', '.join(cast('dict[str, Any]', value))}"
    options = describe_options(value) if isinstance(value, type) else ""
    return _first_sentence(value) + (f" Options: {options}." if options else "")


def _first_sentence(value: Any) -> str:
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split()).replace("``", "`")
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]
