"""RefineFields: the ``refine_*`` settings as fields of a TRL config, so that TrlParser, YAML and code know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.budget import matched_batch_size, matched_group_size
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.hosts.start import num_context
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import parse_value, resolve
from refine_wrapper_trl.objectives import apply_objective

PREFIX = "refine_"


def _parser_type(annotation: Any) -> Any:
    """The type as HfArgumentParser understands it.

    What text it cannot check, RefineConfig checks with a better message.
    """
    plain = (
        [part for part in get_args(annotation) if part is not type(None)] if get_origin(annotation) is not None else []
    )
    kinds = plain or [annotation]
    for kind in (bool, int, float):
        if kind in kinds:
            return Union[kind, None]  # noqa: UP007 - HfArgumentParser of transformers 4 and 5 reads this form
    if get_origin(annotation) is Literal or kinds == [str] or "Path" in str(annotation):
        return Union[str, None]  # noqa: UP007
    return Union[dict[str, Any], str, None]  # noqa: UP007 - the form of TRL's own model_init_kwargs: a mapping, or JSON text


def _fields() -> list[tuple[str, Any, Any]]:
    listed: list[tuple[str, Any, Any]] = []
    for name, setting in RefineConfig.model_fields.items():
        if name == "enabled":
            continue  # `refine` itself is the switch
        text = f"{setting.description} Default: {setting.get_default(call_default_factory=True)!r}."
        # None means "not stated here": then the environment, a file or the default decides.
        listed.append(
            (
                PREFIX + name,
                _parser_type(setting.annotation),
                field(default=None, metadata={"help": text.replace("%", "%%")}),
            )
        )
    return listed


@dataclass
class _Switch:
    refine: bool = field(
        default=True,
        metadata={
            "help": "Two-stage refinement: sample drafts, put the best into the prompt, train on refinements of it."
        },
    )
    refine_plain_generations: int | None = field(
        default=None,
        metadata={"help": "Filled in by refine_match_budget: the group size of the plain run. Leave it unset."},
    )


if TYPE_CHECKING:
    _Settings = _Switch
else:
    _Settings = make_dataclass("_Settings", _fields(), bases=(_Switch,))


class RefineSettings(_Settings):
    """What refinement adds to a TRL config. The launch hook puts it into TRL's own classes.

    A class of its own beside :class:`RefineFields`, so that ``class Mine(RefineFields, GRPOConfig)`` has an order of
    methods also where the launch hook got to ``GRPOConfig`` before.

    Raises:
        ConfigError: From ``__post_init__``, for a bad ``refine_*`` value.
        BudgetError: If ``refine_match_budget`` cannot make the numbers come out whole.
    """

    def __post_init__(self) -> None:
        self.refine_config = self.resolve_refine_config()
        if self.refine_config.objective is not None:
            self._take_objective(self.refine_config.objective)
        if self.refine_config.active and self.refine_config.match_budget and self.refine_plain_generations is None:
            self._match_budget(self.refine_config)
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue] - the TRL config that is mixed in

    def __getstate__(self) -> dict[str, Any]:
        # Plain values: what TRL saves beside a checkpoint (training_args.bin) must load without this package.
        return {**self.__dict__, "refine_config": self.refine_config.model_dump(mode="json")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.refine_config = RefineConfig(**state["refine_config"])

    def resolve_refine_config(self, nearer: Mapping[str, Any] | None = None) -> RefineConfig:
        """The resolved settings: flags, ``nearer``, what this config states, environment, file, defaults.

        Args:
            nearer: Settings of the trainer that this config is handed to (``refine(cls, **settings)``).
        """
        stated: dict[str, Any] = {} if self.refine else {"enabled": False}
        for setting in fields(_Settings):
            name = setting.name.removeprefix(PREFIX)
            value = getattr(self, setting.name)
            if setting.name in ("refine", "refine_plain_generations") or value is None:
                continue
            stated[name] = parse_value(name, value) if isinstance(value, str) else value
        try:
            return resolve(host={**stated, **(nearer or {})})
        except ConfigError as error:
            raise ConfigError(
                f"{error} (In a TRL config the settings are called refine_..., for example refine_num_drafts=4.)"
            ) from None

    def _take_objective(self, name: str) -> None:
        """Have the host train the named objective, whether it is refined or not."""
        plugins = Plugins(self.refine_config.plugin_modules)
        apply_objective(self, name, settings_on("trl", name, plugins))

    def _match_budget(self, refine: RefineConfig) -> None:
        """Shrink groups by what is sampled beside them, and batches too: a step keeps its prompts and completions."""
        config: Any = self
        plain = int(config.num_generations)
        beside = num_context(refine, plain, Plugins(refine.plugin_modules))
        if beside:
            config.num_generations = matched_group_size(plain, beside)
            config.per_device_train_batch_size = matched_batch_size(
                config.per_device_train_batch_size, plain, beside, setting="per_device_train_batch_size"
            )
            if config.generation_batch_size is not None:
                config.generation_batch_size = matched_batch_size(
                    config.generation_batch_size, plain, beside, setting="generation_batch_size"
                )
        if config.num_generations_eval is None:
            config.num_generations_eval = plain  # evaluation is the plain run's
        self.refine_plain_generations = plain


class RefineFields(RefineSettings):
    """Mixin for TRL configs: ``class RefineGRPOConfig(RefineFields, GRPOConfig)`` under ``@dataclass``."""


def refine_config_class(base: type) -> type:
    """A TRL config class with the ``refine_*`` fields; the same if it has them already."""
    if issubclass(base, RefineSettings):
        return base
    return dataclass(
        type(f"Refine{base.__name__}", (RefineFields, base), {"__doc__": base.__doc__, "__module__": __name__})
    )
