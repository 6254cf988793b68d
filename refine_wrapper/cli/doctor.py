"""``refine-wrapper doctor``: can refinement run here, and if not, what to do."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from refine_wrapper.cli.settings import plugin_option, resolve_settings
from refine_wrapper.errors import RefineError
from refine_wrapper.hosts.seam import HostReport, inspect_host
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.sources import ENVIRONMENT_PREFIX
from refine_wrapper.version import __version__


@click.command
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def doctor(context: click.Context, plugin_modules: tuple[str, ...], as_json: bool) -> None:
    """Check the hosts that are installed here, and what refinement needs of them.

    Imports each installed host and compares the private names that its adapter stands on. The exit code is 0
    if at least one host can be used, otherwise 1.
    """
    problems: list[str] = []
    plugins = _load(plugin_modules, problems)
    hosts = [inspect_host(adapter) for adapter in plugins.all("adapter").values()] if plugins else []
    facts = {
        "refine_wrapper": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "plugins": plugins.names() if plugins else [],
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT_PREFIX)},
        "problems": problems,
    }
    if as_json:
        click.echo(
            json.dumps({**facts, "hosts": [{**asdict(host), "usable": host.usable} for host in hosts]}, indent=2)
        )
    else:
        _print(facts, hosts)
    context.exit(0 if any(host.usable for host in hosts) and not problems else 1)


def _load(plugin_modules: Sequence[str], problems: list[str]) -> Plugins | None:
    """The plugins; as many as can be loaded, for what is wrong is what doctor is asked for."""
    try:
        return Plugins(resolve_settings({}, plugin_modules).config.plugin_modules)
    except RefineError as error:
        problems.append(str(error))
    try:
        return Plugins(entry_points=False)
    except RefineError:
        return None


def _print(facts: Mapping[str, Any], hosts: Sequence[HostReport]) -> None:
    console = Console(markup=False, highlight=False, emoji=False)

    def write(text: str) -> None:
        console.print(text, soft_wrap=True)

    write(f"refine-wrapper {facts['refine_wrapper']}, Python {facts['python']} ({facts['executable']})")
    write(f"{facts['platform']}")
    write(f"Plugins: {', '.join(facts['plugins']) or 'none'}")
    for variable, value in facts["environment"].items():
        write(f"{variable}={value}")
    for problem in facts["problems"]:
        write(f"Problem: {problem}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("host", "installed", "supported", "usable"):
        table.add_column(column, overflow="fold")
    for host in hosts:
        table.add_row(host.host, host.version or "no", host.supported, "yes" if host.usable else "no")
    console.print(table)
    for host in hosts:
        for text in (*host.problems, *host.notes):
            write(f"{host.host}: {text}")
        for finding in host.seam:
            write(f"{host.host}: {'ok ' if not finding.problem else 'BAD'} {finding.entry}")
            if finding.problem:
                write(f"    {finding.problem}")
    if not any(host.usable for host in hosts):
        write("No host can be used here. Install one, for example: pip install 'refine-wrapper[trl]'")
