"""The agent file that the launcher gives to ``--train.agent_func_path``: loaded by OpenRLHF in each engine actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from refine_wrapper.core.types import Group, Progress
from refine_wrapper_openrlhf.call import Call, Response
from refine_wrapper_openrlhf.engine import EngineRollout
from refine_wrapper_openrlhf.priorities import schedule_by_priority
from refine_wrapper_openrlhf.request import Request

GROUP = "refine_group"
"""Key of a response under which its finished group travels to the trainer, which has all groups and records them."""


class AgentExecutor(SingleTurnAgentExecutor):
    """Learns from each request whether to refine, with which settings and which reward."""

    def __init__(self) -> None:
        super().__init__()
        schedule_by_priority()
        self._rollout: EngineRollout | None = None

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
        request = Request.of(sampling_params)
        if self._rollout is None:
            settings = request.settings
            self._rollout = EngineRollout(settings.refine_config(), settings.reward_urls, _attach)
        call = Call(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, host)
        if not request.refine:
            return await self._rollout.single_shot(call)
        progress = Progress(request.group.step, request.num_steps)
        return await self._rollout.member(call, request.group, request.group, request.num_slots, progress)


def _attach(group: Group, responses_S: Sequence[Response]) -> None:
    slim = group.slim()
    for response in responses_S:
        response[GROUP] = slim
