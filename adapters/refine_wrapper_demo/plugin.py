"""Registers the command, without importing what it trains with."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.plugins.hookspecs import hookimpl


@hookimpl
def register_commands() -> Mapping[str, str]:
    return {"demo": "refine_wrapper_demo.command:demo"}
