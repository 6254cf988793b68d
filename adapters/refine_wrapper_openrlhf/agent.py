"""An agent file of your own, for commands that must stay as they are: ``--train.agent_func_path my_agent.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from math import isclose
from typing import Any
from weakref import WeakValueDictionary

from openrlhf.utils.agent import SingleTurnAgentExecutor

from refine_wrapper.core.recorder import Recorder
from refine_wrapper.core.types import Group, GroupId, Progress
from refine_wrapper.errors import ConfigError
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import resolve
from refine_wrapper_openrlhf.call import Call, Response
from refine_wrapper_openrlhf.engine import EngineRollout, no_reward_error
from refine_wrapper_openrlhf.objectives import OWN_DYNAMIC_SAMPLING
from refine_wrapper_openrlhf.priorities import schedule_by_priority

LOGGED = (
    "refine/refined_share",
    "refine/trained_on_question",
    "refine/draft_tokens",
    "refine/refinement_tokens",
    "refine/completions",
    "refine/draft_failures",
    "refine/refinement_failures",
    "refine/fallbacks",
    "refine/stage2_seconds",
)
"""Metrics that every group has. OpenRLHF needs the same keys on all samples, so others are in the trace only."""

_NEED_STEPS = ("alternate", "adaptive")
"""Modes that depend on the step of the run, which an agent is not told."""


def make_agent_executor(
    *, reward: str | Sequence[str], train_temperature: float = 1.0, **settings: Any
) -> type[SingleTurnAgentExecutor]:
    """The class to be called ``AgentExecutor`` in an agent file.

    OpenRLHF does not tell an agent whether it trains or evaluates. So requests at ``train_temperature`` are training,
    and all others evaluation: give ``--eval.temperature`` another value than ``--rollout.temperature``.

    Args:
        reward: What ``--reward.remote_url`` would be: a ``.py`` file with ``reward_func``, or one or more addresses.
        train_temperature: The value of ``--rollout.temperature``.
        settings: Settings of :class:`~refine_wrapper.settings.config.RefineConfig`; environment and file are read too.

    Raises:
        ConfigError: For settings that need the launcher: ``match_budget``, ``objective``, ``on_no_draft="skip"``, and
            modes that depend on the step.
    """
    config = resolve(host=settings)
    _refuse_what_needs_the_launcher(config)
    config.check_pipelined("OpenRLHF")
    config.refuse_dynamic_sampling(*OWN_DYNAMIC_SAMPLING)
    reward_urls = (reward,) if isinstance(reward, str) else tuple(reward)

    class AgentExecutor(SingleTurnAgentExecutor):
        def __init__(self) -> None:
            super().__init__()
            schedule_by_priority()
            self._recorder = Recorder(config)
            self._rollout = EngineRollout(config, reward_urls, self._finish)
            self._numbers = count()
            self._arrivals: WeakValueDictionary[Hashable, _Arrivals] = WeakValueDictionary()

        async def execute(
            self,
            prompt: str,
            label: Any,
            sampling_params: Any,
            max_length: int,
            hf_tokenizer: Any,
            llm_engine: Any,
            **host: Any,
        ) -> Response:
            call = Call(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, host)
            trains = isclose(sampling_params.temperature, train_temperature, abs_tol=1e-6)
            if not config.active or not (trains or config.evaluation == "refine"):
                return await self._rollout.single_shot(call)
            key = _Identity(sampling_params)
            arrivals = self._arrivals.get(key)
            if arrivals is None:
                group = GroupId("train" if trains else "eval", 0, next(self._numbers))
                arrivals = self._arrivals[key] = _Arrivals(group)
            arrivals.number += 1
            # Upstream starts the members of a group together (one asyncio.gather): after one turn of the loop each has
            # come by the line above, and the group size is known.
            await asyncio.sleep(0)
            return await self._rollout.member(call, key, arrivals.group, arrivals.number, Progress())

        def _finish(self, group: Group, responses_S: Sequence[Response]) -> None:
            """Each sample carries the metrics of its own group; the host takes their mean over the batch."""
            metrics = self._recorder.record([group])
            _fill_in(group, responses_S)
            for response in responses_S:
                logged = {name: metrics[name] for name in LOGGED}
                response["extra_logs"] = {**response["extra_logs"], **logged}

    return AgentExecutor


@dataclass
class _Arrivals:
    """How many members of a group have come; lives as long as they run."""

    group: GroupId
    number: int = 0


class _Identity:
    """Key of a group: the object that all its members share. Holds it, so that its id is not given away again."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._shared is other._shared

    def __hash__(self) -> int:
        return id(self._shared)


def _refuse_what_needs_the_launcher(config: RefineConfig) -> None:
    launcher = "start training with `python -m refine_wrapper_openrlhf.train_ppo_ray`"
    if config.match_budget:
        raise ConfigError(
            "refine: an agent file cannot change the group size. Set --rollout.n_samples_per_prompt and "
            "--train.batch_size yourself instead of match_budget."
        )
    if config.on_no_draft == "skip":
        raise ConfigError(
            f"refine: an agent file cannot leave a group out of a batch. Use on_no_draft='plain', or {launcher}."
        )
    if config.objective is not None:
        raise ConfigError(
            "refine: an agent file cannot set the objective. Give OpenRLHF its flags (`refine-wrapper objectives` "
            f"lists them), or {launcher}."
        )
    if config.mode in _NEED_STEPS:
        raise ConfigError(
            f"refine: mode {config.mode!r} depends on the step of the run, which OpenRLHF does not tell an agent file. "
            f"Use another mode, or {launcher}."
        )


def _fill_in(group: Group, responses_S: Sequence[Response]) -> None:
    """A row whose reward failed gets the mean of its siblings, so that it pulls the policy nowhere.

    An agent cannot leave a group out, and the host ends at a missing reward.

    Raises:
        NoRewardError: If no row of the group has a reward.
    """
    rewards = [row.reward for row in group.rows_S if row.reward is not None]
    if not rewards:
        raise no_reward_error([group])
    mean = sum(rewards) / len(rewards)
    logged = next(
        response["extra_logs"] for response, row in zip(responses_S, group.rows_S, strict=True) if row.rewarded
    )
    for response, row in zip(responses_S, group.rows_S, strict=True):
        if not row.rewarded:
            response.update(reward=mean, scores=mean, extra_logs=dict(logged))
