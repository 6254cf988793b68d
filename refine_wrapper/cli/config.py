"""``refine-wrapper config``: what the settings are, and why."""

from __future__ import annotations

import json
from typing import Any

import click
import yaml

from refine_wrapper.cli.settings import SettingsCommand, given_flags, plugin_option, resolve_settings


@click.command(cls=SettingsCommand)
@plugin_option
@click.pass_context
def config(context: click.Context, plugin_modules: tuple[str, ...]) -> None:
    """Print the resolved settings and where each value came from.

    The output is YAML that `--refine.config FILE` reads back.
    """
    settings = resolve_settings(given_flags(context), plugin_modules)
    values = settings.config.model_dump(mode="json")
    lines = {name: _line(name, value) for name, value in values.items()}
    width = max(map(len, lines.values()))
    for name, line in lines.items():
        click.echo(f"{line:<{width}}  # {settings.sources[name]}")


def _line(name: str, value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{name}: {json.dumps(value)}"
    line = yaml.safe_dump({name: value}, width=float("inf"), allow_unicode=True).rstrip("\n")
    # One line for each setting, so that its comment stands beside it. JSON is YAML too.
    return line if "\n" not in line else f"{name}: {json.dumps(value)}"
