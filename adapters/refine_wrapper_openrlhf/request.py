"""What the trainer tells the engine about one request: it travels in ``SamplingParams.extra_args``.

That is the one field of OpenRLHF's call of a rollout actor that crosses Ray, is free for us to fill and reaches the
executor. Neither files nor environment variables do on a cluster of several machines, or under ``ray job submit``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, astuple, dataclass
from typing import Any

from refine_wrapper.core.types import GroupId
from refine_wrapper.errors import SeamError
from refine_wrapper.settings.config import RefineConfig

_KEY = "refine_wrapper"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What is the same in all requests of one run; made where flags are parsed. Plain values, for JSON.

    Attributes:
        config: The resolved settings, JSON-ready.
        reward_urls: What ``--reward.remote_url`` names, a ``.py`` file or addresses.
        launch: The value of ``REFINE_WRAPPER_LAUNCH`` where ``refine-wrapper run`` started the command.
    """

    config: Mapping[str, Any]
    reward_urls: tuple[str, ...]
    launch: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunSettings:
        """From the mapping that :meth:`to_json` made."""
        return cls(values["config"], tuple(values["reward_urls"]), values["launch"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def refine_config(self) -> RefineConfig:
        return RefineConfig(**self.config)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, of which the engine samples a group.

    Attributes:
        settings: Of the run.
        refine: Whether the group is refined; False in single-shot evaluation.
        group: Identity of the group, the same on all its members.
        num_slots: S, how many members the host asks for.
        num_steps: How many steps the run will have, where that is known.
    """

    settings: RunSettings
    refine: bool
    group: GroupId
    num_slots: int
    num_steps: int | None = None

    def mark(self, sampling_params: Any) -> Any:
        """A copy of the host's sampling parameters that carries this request, as plain values."""
        marked = copy(sampling_params)
        marked.extra_args = {
            **(sampling_params.extra_args or {}),
            _KEY: {
                "settings": self.settings.to_json(),
                "refine": self.refine,
                "group": list(astuple(self.group)),
                "num_slots": self.num_slots,
                "num_steps": self.num_steps,
            },
        }
        return marked

    @classmethod
    def of(cls, sampling_params: Any) -> Request:
        """The request that a call of the executor belongs to.

        Raises:
            SeamError: If there is none: the trainer does not run our samples generator.
        """
        values = (getattr(sampling_params, "extra_args", None) or {}).get(_KEY)
        if values is None:
            raise SeamError(
                "refine: a request reached the engine without settings of refinement: the trainer runs another samples "
                "generator than refine_wrapper_openrlhf's. Start training with `python -m "
                "refine_wrapper_openrlhf.train_ppo_ray`, or use an agent file of your own (make_agent_executor)."
            )
        return cls(
            RunSettings.of(values["settings"]),
            values["refine"],
            GroupId(*values["group"]),
            values["num_slots"],
            values["num_steps"],
        )


def unmarked(sampling_params: Any) -> Any:
    """A copy of the sampling parameters as the host made them, to be changed or handed to the engine."""
    plain = copy(sampling_params)
    extra = {name: value for name, value in (getattr(plain, "extra_args", None) or {}).items() if name != _KEY}
    if hasattr(plain, "extra_args"):
        plain.extra_args = extra or None
    return plain
