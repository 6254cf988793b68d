"""The agent file that the launcher gives to ``--train.agent_func_path``: loaded by OpenRLHF in each engine actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import GroupOutcome
from refine_wrapper_openrlhf.priorities import schedule_by_priority
from refine_wrapper_openrlhf.request import Request
from refine_wrapper_openrlhf.stages import Call, Response, Row, TwoStages

OUTCOME = "refine_outcome"
"""Key of a response under which its group's outcome travels to the trainer."""


class AgentExecutor(SingleTurnAgentExecutor):
    """Learns from each request whether to refine, with which settings and which reward."""

    def __init__(self) -> None:
        super().__init__()
        schedule_by_priority()
        self._stages: TwoStages | None = None

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
        if self._stages is None:
            settings = request.settings
            # The trainer has all groups, and so it is the one that observes them.
            self._stages = TwoStages(settings.refine_config(), settings.reward_urls, _attach, observe=False)
        call = Call(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, host)
        if not request.refine:
            return await self._stages.single_shot(call)
        return await self._stages.refined(call, request.group_id, request.step)


def _attach(refiner: Refiner, outcome: GroupOutcome, rows: Sequence[Row]) -> None:
    for response, refinement in rows:
        response[OUTCOME] = outcome
        if refinement.failure:
            # The trainer leaves the group out; until then nothing in it may have a shape that tensors do not take.
            response.update(reward=None, scores=None, extra_logs={})
