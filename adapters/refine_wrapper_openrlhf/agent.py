"""An agent file of your own, for commands that must stay as they are: ``--train.agent_func_path my_agent.py``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import isclose
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import GroupOutcome
from refine_wrapper.errors import ConfigError
from refine_wrapper.settings.sources import resolve
from refine_wrapper_openrlhf.objectives import OWN_DYNAMIC_SAMPLING
from refine_wrapper_openrlhf.priorities import schedule_by_priority
from refine_wrapper_openrlhf.stages import Call, Response, Row, TwoStages, no_reward_error

LOGGED = (
    "refine/refined_share",
    "refine/draft_tokens",
    "refine/refinement_tokens",
    "refine/completions",
    "refine/draft_failures",
    "refine/refinement_failures",
    "refine/fallbacks",
    "refine/stage2_seconds",
)
"""Metrics that every group has. OpenRLHF needs the same keys on all samples, so others are in the trace only."""


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
        ConfigError: For settings that need the launcher: ``match_budget``, ``objective`` and ``on_no_draft="skip"``.
    """
    config = resolve(host=settings)
    if config.match_budget:
        raise ConfigError(
            "refine: an agent file cannot change the group size. Set --rollout.n_samples_per_prompt and "
            "--train.batch_size yourself instead of match_budget."
        )
    if config.on_no_draft == "skip":
        raise ConfigError(
            "refine: an agent file cannot leave a group out of a batch. Use on_no_draft='plain', or start training "
            "with `python -m refine_wrapper_openrlhf.train_ppo_ray`."
        )
    if config.objective is not None:
        raise ConfigError(
            "refine: an agent file cannot set the objective. Give OpenRLHF its flags (`refine-wrapper objectives` "
            "lists them), or start training with `python -m refine_wrapper_openrlhf.train_ppo_ray`."
        )
    config.check_pipelined("OpenRLHF")
    config.refuse_dynamic_sampling(*OWN_DYNAMIC_SAMPLING)
    reward_urls = (reward,) if isinstance(reward, str) else tuple(reward)

    class AgentExecutor(SingleTurnAgentExecutor):
        def __init__(self) -> None:
            super().__init__()
            schedule_by_priority()
            self._group_number = count()
            self._stages = TwoStages(config, reward_urls, _log, observe=True)

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
                return await self._stages.single_shot(call)
            # Members take a number each; the first one's becomes the group's.
            return await self._stages.refined(call, f"agent-{next(self._group_number)}", None)

    return AgentExecutor


def _log(refiner: Refiner, outcome: GroupOutcome, rows: Sequence[Row]) -> None:
    """Each sample carries the metrics of its own group; the host takes their mean over the batch."""
    metrics = refiner.finish([outcome])
    _fill_in(outcome, rows)
    for response, _ in rows:
        response["extra_logs"] = {**response["extra_logs"], **{name: metrics[name] for name in LOGGED}}


def _fill_in(outcome: GroupOutcome, rows: Sequence[Row]) -> None:
    """A refinement whose reward failed gets the mean of its siblings, so that it pulls the policy nowhere.

    An agent cannot leave a group out, and the host ends at a missing reward.

    Raises:
        NoRewardError: If no refinement of the group has a reward.
    """
    rewarded = [(response, refinement) for response, refinement in rows if not refinement.failure]
    if not rewarded:
        raise no_reward_error([outcome])
    mean = sum(refinement.reward or 0.0 for _, refinement in rewarded) / len(rewarded)
    for response, refinement in rows:
        if refinement.failure:
            response.update(reward=mean, scores=mean, extra_logs=dict(rewarded[0][0]["extra_logs"]))
