"""Settings on a command line: the ``--refine.*`` flags, their help, and where values came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import FLAG_PREFIX, origins, resolve, split_flags

_FLAGS = "refine_wrapper.flags"
_COMMAND = "refine_wrapper.command"
_F = TypeVar("_F", bound=Callable[..., Any])
_TYPES: Mapping[Any, str] = {bool: "[true|false]", int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved settings.

    Attributes:
        config: The settings.
        flags: Those of them that were given as flags, for the process that is started.
        sources: Setting -> where its value came from: a flag, a variable, a file, or ``default``.
    """

    config: RefineConfig
    flags: Mapping[str, Any]
    sources: Mapping[str, str]


class SettingsCommand(click.Command):
    """A subcommand that takes ``--refine.*`` flags and, if ``takes_command``, a command after ``--``.

    With ``interspersed`` its own options may follow its arguments.

    The flags are read by :func:`~refine_wrapper.settings.sources.split_flags`, as everywhere, and click sees
    the rest.
    """

    def __init__(self, *args: Any, takes_command: bool = False, interspersed: bool = False, **kwargs: Any) -> None:
        # Not interspersed: what follows a stray word belongs to it, and is no mistyped option of ours.
        settings = {"allow_interspersed_args": interspersed, "allow_extra_args": takes_command}
        super().__init__(*args, context_settings=settings, **kwargs)
        self._takes_command = takes_command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if self._takes_command and "--" in args else len(args)
        ctx.meta[_FLAGS], rest = split_flags(args[:end])
        ctx.meta[_COMMAND] = args[end + 1 :]
        return super().parse_args(ctx, rest)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [
            "[--refine.NAME VALUE]...",
            *super().collect_usage_pieces(ctx),
            *(["--", "COMMAND..."] if self._takes_command else []),
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Settings (also REFINE_WRAPPER_NAME=VALUE, or NAME: VALUE in a file)"):
            formatter.write_dl(
                [
                    (f"{FLAG_PREFIX}config FILE", "A YAML file with settings."),
                    *((_usage(name, field), _help(field)) for name, field in RefineConfig.model_fields.items()),
                ]
            )


def given_flags(context: click.Context) -> dict[str, Any]:
    """The settings that were given as flags to a :class:`SettingsCommand`."""
    return dict(context.meta[_FLAGS])


def given_command(context: click.Context) -> list[str]:
    """What was given after ``--``."""
    return list(context.meta[_COMMAND])


def plugin_option(function: _F) -> _F:
    """The option ``--plugin MODULE``, as the argument ``plugin_modules``."""
    return click.option(
        "--plugin",
        "plugin_modules",
        metavar="MODULE",
        multiple=True,
        help="Python module to load as a plugin, beside installed ones. Can be repeated.",
    )(function)


def resolve_settings(flags: Mapping[str, Any], plugin_modules: Sequence[str] = ()) -> Settings:
    """Merge flags, environment and file, and say where each value came from.

    Args:
        flags: Settings given as flags.
        plugin_modules: Modules given with ``--plugin``; they come after those that other sources name.

    Raises:
        ConfigError: Naming the source and the setting.
    """
    given = dict(flags)
    for name in ("config", "trace_dir"):
        if given.get(name):
            # The command may change its folder before it reads them.
            given[name] = str(Path(given[name]).absolute())
    config = resolve(flags=given)
    sources = origins(flags=given)
    if plugin_modules:
        given["plugin_modules"] = list(dict.fromkeys((*config.plugin_modules, *plugin_modules)))
        config = resolve(flags=given)
        sources["plugin_modules"] = "--plugin"
    return Settings(config, given, sources)


def _usage(name: str, field: FieldInfo) -> str:
    annotation: Any = field.annotation
    alternatives = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is Literal:
        kind = f"[{'|'.join(alternatives)}]"
    elif annotation in _TYPES or (alternatives and alternatives[0] in _TYPES and get_origin(annotation) is not tuple):
        kind = _TYPES.get(annotation) or _TYPES.get(alternatives[0], "VALUE")
    else:
        kind = "YAML"
    if get_origin(annotation) is tuple:
        kind = "MODULE,..."
    if get_origin(annotation) is dict:
        kind = "JSON"
    return f"{FLAG_PREFIX}{name} {kind}"


def _help(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"{field.description}" + ("" if default is None or default in ({}, ()) else f"  [default: {shown}]")
