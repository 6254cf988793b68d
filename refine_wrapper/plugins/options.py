"""Making a registered class from its name and the options a user set: one way for selectors and modes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from refine_wrapper.errors import ConfigError, PluginError
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.plugins.manager import Plugins


def build(
    plugins: Plugins, kind: str, name: str, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Any:
    """The class registered under ``name``, a dataclass, with the options as its fields.

    Args:
        plugins: The loaded plugins.
        kind: ``selector`` or ``mode``; the setting of the options is called ``<kind>_options``.
        name: As registered.
        options: Field -> value, as settings have them.
        defaults: Values for fields of these names that no option sets.

    Raises:
        PluginError: If there is none of that name, or it is no dataclass.
        ConfigError: For an unknown option or a bad value; with those it has.
    """
    made: Any = plugins.get(kind, name)
    known = getattr(made, "__dataclass_fields__", None)
    if not isinstance(made, type) or known is None:
        raise PluginError(
            f"refine: plugin {plugins.owner(kind, name)!r} registers the {kind} {name!r}, which is no dataclass. "
            "Register a class under @dataclass(frozen=True)."
        )
    unknown = next((option for option in options if option not in known), None)
    if unknown is not None:
        has = f"It has: {', '.join(known)}. {did_you_mean(unknown, known)}" if known else "It has none."
        raise ConfigError(f"refine: {kind} {name!r} has no option {unknown!r} ({kind}_options). {has}")
    values = {key: value for key, value in (defaults or {}).items() if key in known} | dict(options)
    try:
        return TypeAdapter(made).validate_python(values)
    except ValidationError as error:
        found = error.errors()[0]
        own = found.get("ctx", {}).get("error")
        if isinstance(own, ConfigError):  # the class has checked its options itself, and says it better
            raise own from None
        where = ".".join(str(part) for part in found["loc"])
        raise ConfigError(
            f"refine: {kind} {name!r}, {kind}_options {where} = {found['input']!r}: {found['msg'][:1].lower()}"
            f"{found['msg'][1:]}."
        ) from None


def describe_options(made: type) -> str:
    """The options of a registered class with their defaults, for people; empty where it has none."""
    listed: tuple[Field[Any], ...] = fields(made) if hasattr(made, "__dataclass_fields__") else ()
    return ", ".join(f"{option.name}={_default(option)!r}" for option in listed)


def _default(option: Field[Any]) -> Any:
    if option.default is not MISSING:
        return getattr(option.default, "value", option.default)
    return option.default_factory() if option.default_factory is not MISSING else ...
