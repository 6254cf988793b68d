"""Agent loops as users of veRL write them. Importing this registers them."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

REQUESTS: list[tuple[int, Any]] = []
"""(session_id, raw_prompt) of each run of ``strict_and_several``."""


class _Loop(AgentLoopBase):
    async def answered(self, prompt_ids: list[int], sampling_params: dict[str, Any]) -> AgentLoopOutput:
        answer: Any = await self.server_manager.generate(
            "r", prompt_ids=prompt_ids, sampling_params=dict(sampling_params)
        )
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=answer.token_ids,
            response_mask=[1] * len(answer.token_ids),
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields=dict(answer.extra_fields),
        )


@register("strict_and_several")
class StrictAndSeveral(_Loop):
    """Takes no argument that it does not know, and returns three outputs: on the prompt, on what followed, on a summary."""

    async def run(  # type: ignore[override]
        self, sampling_params, raw_prompt, uid, session_id, data_source, reward_model, extra_info, index, global_steps
    ):
        REQUESTS.append((session_id, raw_prompt))
        ids = await self.ct_build_initial_tokens(list(raw_prompt))
        first = await self.answered(ids, sampling_params)
        second = await self.answered([*ids, *first.response_ids, *self.tokenizer.encode(" And then?")], sampling_params)
        told = [{"role": "system", "content": "Go on."}, *raw_prompt]
        third = await self.answered(await self.ct_build_initial_tokens(told), sampling_params)
        return [first, second, third]


@register("appends_in_place")
class AppendsInPlace(_Loop):
    """Adds its answer to the row's own conversation."""

    async def run(self, sampling_params: dict[str, Any], raw_prompt: Any, **kwargs: Any) -> AgentLoopOutput:
        output = await self.answered(await self.ct_build_initial_tokens(list(raw_prompt)), sampling_params)
        raw_prompt.append({"role": "assistant", "content": self.tokenizer.decode(output.response_ids)})
        return output


@register("own_messages")
class OwnMessages(_Loop):
    """Builds its messages from another column than ``raw_prompt``."""

    async def run(self, sampling_params: dict[str, Any], extra_info: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        messages = [{"role": "user", "content": f"Task {extra_info['index']}"}]
        return await self.answered(await self.ct_build_initial_tokens(messages), sampling_params)
