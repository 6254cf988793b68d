"""``refine-wrapper objectives``: which objective can be wrapped on which host, as what exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import click
from rich import box
from rich.console import Console
from rich.table import Table

from refine_wrapper.cli.settings import plugin_option, resolve_settings
from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings
from refine_wrapper.hosts.objectives import objective_table
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.plugins.manager import Plugins


@click.command
@plugin_option
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Show this host only. Can be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def objectives(plugin_modules: tuple[str, ...], hosts: tuple[str, ...], as_json: bool) -> None:
    """List the objectives that can be wrapped, with the exact settings each becomes on each host.

    Choose one with `--refine.objective NAME`; it is set with refinement on and off, so that both arms of a
    comparison train the same objective.
    """
    plugins = Plugins(resolve_settings({}, plugin_modules).config.plugin_modules)
    table = objective_table(plugins)
    known = list(dict.fromkeys(host for on_hosts in table.values() for host in on_hosts))
    for host in hosts:
        if host not in known:
            raise ConfigError(f"refine: unknown host {host!r}. {did_you_mean(host, known)}")
    shown = list(hosts) or known
    if as_json:
        click.echo(
            json.dumps(
                {name: {host: asdict(on[host]) for host in shown if host in on} for name, on in table.items()}, indent=2
            )
        )
        return
    _print(table, shown)


def _print(table: Mapping[str, Mapping[str, ObjectiveSettings]], hosts: Sequence[str]) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=len(hosts) > 1)
    drawn.add_column("objective", no_wrap=True)
    for host in hosts:
        drawn.add_column(host, overflow="fold")
    for name, on_hosts in table.items():
        drawn.add_row(name, *(_cell(on_hosts.get(host)) for host in hosts))
    console.print(drawn)


def _cell(objective: ObjectiveSettings | None) -> str:
    if objective is None:
        return "-"
    if objective.settings is None:
        return f"no: {objective.missing}"
    settings = " ".join(f"{name}={value}" for name, value in objective.settings.items())
    parts = [f"{objective.trainer}: {settings}".strip(": ") if objective.trainer else settings or "as it is"]
    if objective.dynamic_sampling:
        parts.append(f"dynamic sampling by this package, at most {objective.dynamic_sampling} rounds a batch")
    if objective.missing:
        parts.append(f"missing: {objective.missing}")
    return "\n".join(parts)
