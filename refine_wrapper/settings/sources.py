"""Where settings come from, and which source wins.

Precedence, strongest first:

1. flags (``--refine.num_drafts 4``, also when ``refine-wrapper run`` hands them to a child process),
2. the host's own configuration (``RefineGRPOConfig(refine_num_drafts=4)``, Hydra keys, the host's YAML),
3. environment variables (``REFINE_WRAPPER_NUM_DRAFTS=4``),
4. a YAML file (``--refine.config refine.yaml`` or ``REFINE_WRAPPER_CONFIG``),
5. the defaults in :class:`~refine_wrapper.settings.config.RefineConfig`.

So a setting of one launch wins over a setting that was made for many launches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from refine_wrapper.errors import ConfigError
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.settings.config import RefineConfig, field_names

ENVIRONMENT_PREFIX = "REFINE_WRAPPER_"
FLAG_PREFIX = "--refine."

CONFIG_FILE_VARIABLE = "REFINE_WRAPPER_CONFIG"
FLAGS_VARIABLE = "REFINE_WRAPPER_FLAGS"
"""JSON of the flags that ``refine-wrapper run`` was given, for the process it starts. Not for people."""
PLUGINS_VARIABLE = "REFINE_WRAPPER_PLUGINS"
LAUNCH_VARIABLE = "REFINE_WRAPPER_LAUNCH"
CACHE_VARIABLE = "REFINE_WRAPPER_CACHE"
JUDGE_VARIABLE = "REFINE_WRAPPER_JUDGE"
"""The settings file of the registered reward `judge`."""
_NOT_SETTINGS = frozenset(
    {
        CONFIG_FILE_VARIABLE,
        FLAGS_VARIABLE,
        PLUGINS_VARIABLE,
        LAUNCH_VARIABLE,
        CACHE_VARIABLE,
        JUDGE_VARIABLE,
        "REFINE_WRAPPER_TEST_INSTALLED",
    }
)

DEFAULT = "default"
"""The origin of a value that no source states."""

_STRUCTURED = frozenset({"selector_options", "mode_options", "plugin_modules"})


def resolve(
    *,
    flags: Mapping[str, Any] | None = None,
    host: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | str | None = None,
) -> RefineConfig:
    """Merge all sources by the precedence above into one validated configuration.

    Args:
        flags: Settings from flags; if None, those that ``refine-wrapper run`` left in the environment.
        host: Settings the host's own configuration states (only those that were stated).
        environ: The environment, ``os.environ`` by default.
        file: A YAML file; by default the one named by ``REFINE_WRAPPER_CONFIG``, if any.

    Raises:
        ConfigError: Naming the source and the setting.
    """
    values: dict[str, Any] = {}
    for layer, _ in _layers(flags, host, os.environ if environ is None else environ, file):
        values.update(layer)
    return RefineConfig(**values)


def origins(
    *, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, file: Path | str | None = None
) -> dict[str, str]:
    """Setting -> where its value comes from: a flag, a variable, a file's name, or ``default``."""
    found = dict.fromkeys(field_names(), DEFAULT)
    for layer, label in _layers(flags, None, os.environ if environ is None else environ, file):
        found.update({name: label.format(name=name, variable=name.upper()) for name in layer})
    return found


def _layers(
    flags: Mapping[str, Any] | None, host: Mapping[str, Any] | None, environ: Mapping[str, str], file: Path | str | None
) -> list[tuple[Mapping[str, Any], str]]:
    """All sources with their labels, weakest first."""
    flag_values = dict(flags_from_environment(environ) if flags is None else flags)
    path = flag_values.pop("config", None) or file or environ.get(CONFIG_FILE_VARIABLE)
    in_file = read_yaml(path) if path else {}
    return [
        (in_file, str(path).replace("{", "{{").replace("}", "}}")),
        (read_environment(environ), ENVIRONMENT_PREFIX + "{variable}"),
        (host or {}, "the host's configuration"),
        (flag_values, FLAG_PREFIX + "{name}"),
    ]


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Settings from a YAML file: a mapping of names to values, or one under a top-level key ``refine``."""
    try:
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"refine: cannot read the configuration file {str(path)!r}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"refine: {str(path)!r} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"refine: {str(path)!r} must hold a mapping such as 'num_drafts: 4', not {type(content).__name__}."
        )
    settings = cast("dict[str, Any]", content)
    if set(settings) == {"refine"} and isinstance(settings["refine"], (dict, type(None))):
        settings = cast("dict[str, Any]", settings["refine"] or {})
    _refuse_unknown(settings, f"in {str(path)!r}")
    return settings


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Settings from ``REFINE_WRAPPER_*`` variables; lists and mappings are written as JSON or YAML."""
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _NOT_SETTINGS:
            name = variable[len(ENVIRONMENT_PREFIX) :].lower()
            if name not in field_names():
                raise ConfigError(
                    f"refine: the environment variable {variable} names no setting. {did_you_mean(name, field_names())}"
                )
            values[name] = parse_value(name, text)
    return values


def flags_from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The flags that ``refine-wrapper run`` was given, in the process it started."""
    text = environ.get(FLAGS_VARIABLE)
    return dict(json.loads(text)) if text else {}


def split_flags(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take ``--refine.NAME VALUE`` and ``--refine.NAME=VALUE`` out of a command line; return settings and the rest.

    A bare ``--refine.NAME`` (last, or followed by another flag) means true. Everything else is left in place and order.

    Raises:
        ConfigError: For an unknown name, with the nearest valid one.
    """
    settings: dict[str, Any] = {}
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith(FLAG_PREFIX):
            rest.append(argument)
            continue
        name, equals, value = argument[len(FLAG_PREFIX) :].partition("=")
        if not equals:
            if position < len(arguments) and not arguments[position].startswith("--"):
                value = arguments[position]
                position += 1
            else:
                value = "true"
        if name != "config":
            _refuse_unknown([name], f"as a flag ({argument})")
        settings[name] = parse_value(name, value)
    return settings, rest


def parse_value(name: str, text: str) -> Any:
    """A value written as text. ``none`` and the empty text unset; structured settings are YAML (so JSON too)."""
    if text.strip().lower() in {"", "none", "null"}:
        return () if name == "plugin_modules" else {} if name == "selector_options" else None
    if name in _STRUCTURED:
        if name == "plugin_modules" and not text.lstrip().startswith("["):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"refine: {name} = {text!r} is not valid JSON or YAML: {error}") from None
    return text


def _refuse_unknown(names: Mapping[str, Any] | Sequence[str], where: str) -> None:
    for name in names:
        if name not in field_names():
            raise ConfigError(f"refine: unknown setting {name!r} {where}. {did_you_mean(name, field_names())}")
