"""A STAND-IN for the rollout engine, for tests of the executor alone: the real executor of OpenRLHF, real tokenizers and
real rewards around it. The real engine runs in the tests that start the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from refine_testing.tiny import tiny_tokenizer
from refine_wrapper.core.types import GroupId
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_openrlhf.request import Request, RunSettings

TOKENIZER = tiny_tokenizer()
NOTE = "It may be wrong"

Script = Callable[[str, int], str]
"""What the engine answers to a prompt, the n-th time it is asked it; may raise."""


@dataclass
class Params:
    """The fields of vLLM's SamplingParams that OpenRLHF's executor and ours use."""

    temperature: float = 1.0
    max_tokens: int | None = 24
    logprobs: int | None = None
    extra_args: dict[str, Any] | None = None


@dataclass
class Engine:
    """Answers by a script; notes what it was asked."""

    script: Script
    prompts: list[str] = field(default_factory=list)
    params: list[Any] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)

    async def generate(self, token_ids: list[int], params: Any, multi_modal_data: Any = None) -> Any:
        prompt = TOKENIZER.decode(token_ids)
        number = self.prompts.count(prompt)
        self.prompts.append(prompt)
        self.params.append(params)
        self.images.append(multi_modal_data)
        await asyncio.sleep(0)
        text = self.script(prompt, number)
        answer = TOKENIZER.encode(text, add_special_tokens=False)
        finished = len(answer) < (params.max_tokens or 10**9)
        answer = [*answer, TOKENIZER.eos_token_id] if finished else answer[: params.max_tokens]
        logprobs = [{token: SimpleNamespace(logprob=-1.0 - n)} for n, token in enumerate(answer)]
        output = SimpleNamespace(
            token_ids=answer,
            text=text,
            finish_reason="stop" if finished else "length",
            logprobs=logprobs if params.logprobs is not None else None,
        )
        return SimpleNamespace(outputs=[output])

    @property
    def drafted(self) -> list[str]:
        return [prompt for prompt in self.prompts if NOTE not in prompt]

    @property
    def refined(self) -> list[str]:
        return [prompt for prompt in self.prompts if NOTE in prompt]


def chat(question: str) -> str:
    """A question as OpenRLHF's data set renders it."""
    return TOKENIZER.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )


def marked(
    reward: str,
    *,
    refine: bool = True,
    place: int = 0,
    size: int = 2,
    params: Params | None = None,
    **settings: Any,
) -> Any:
    """Sampling parameters as our samples generator sends them."""
    config = RefineConfig(**{"num_drafts": 3, **settings}).model_dump(mode="json")
    return Request(RunSettings(config, (reward,)), refine, GroupId("train", 4, place), size).mark(params or Params())


async def sample_group(
    executor: Any,
    engine: Engine,
    prompt: str,
    label: Any,
    params: Any,
    size: int = 2,
    max_length: int = 512,
    **host: Any,
) -> list[dict[str, Any]]:
    """What upstream's RolloutRayActor.generate_responses does: all members of a group at once, one object of parameters."""
    return await asyncio.gather(
        *(
            executor.execute(
                prompt=prompt,
                label=label,
                sampling_params=params,
                max_length=max_length,
                hf_tokenizer=host.get("tokenizer", TOKENIZER),
                llm_engine=engine,
                **{name: value for name, value in host.items() if name != "tokenizer"},
            )
            for _ in range(size)
        )
    )
