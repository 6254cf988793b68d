"""veRL's own agent loop workers without Ray and without an engine: real loops, tokenizer, reward loop and post-processing.

Two things are FAKES, for the many small cases: the engine (:class:`Engine` answers from a script) and TransferQueue
(:class:`Queue` remembers what is put). The runs of ``verl_host`` use the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from refine_testing.verl_reward import checksum
from refine_wrapper_verl.chunks import GroupIds

Answer = Callable[[str, int], str]
"""(decoded prompt, number of the request) -> text; may raise, or be a coroutine function."""


def compose_config(model: str, *overrides: str, reward: str | None = None) -> DictConfig:
    """veRL's own configuration, as ``main_ppo`` composes it."""
    changes = [
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=3",
        "data.max_prompt_length=128",
        "data.max_response_length=64",
        "actor_rollout_ref.rollout.prompt_length=900",
        "actor_rollout_ref.rollout.max_model_len=2048",
        "transfer_queue.enable=True",  # as main_ppo sets it for the V1 trainers
        *([f"reward.custom_reward_function.path={reward}"] if reward else []),
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*changes, *overrides])


class Engine:
    """A FAKE of veRL's ``LLMServerClient``: answers from a script, and remembers what it was asked.

    Not a dataclass: Hydra, which makes the loops, would take it for a configuration.
    """

    def __init__(self, answer: Any) -> None:
        self.tokenizer: Any = None
        self.answer = answer
        self.version = 7
        self.prompts: list[str] = []
        self.params: list[dict[str, Any]] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        number = len(self.prompts)
        self.prompts.append(self.tokenizer.decode(prompt_ids))
        self.params.append(dict(sampling_params))
        sampling_params.pop("logprobs", None)  # as the real server does with what it is given
        await asyncio.sleep(0)
        text = self.answer(self.prompts[-1], number)
        text = await text if asyncio.iscoroutine(text) else text
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        versions = {"min_global_steps": self.version, "max_global_steps": self.version}
        return TokenOutput(token_ids=ids, log_probs=[-1.0] * len(ids), extra_fields=versions)


class RewardHandle:
    """Stands in for a Ray handle: calls the real ``RewardLoopWorker`` in this process, and keeps what it was given."""

    def __init__(self, worker: Any) -> None:
        self.given: list[Any] = []
        self.scored: list[float] = []

        async def remote(data: Any) -> dict[str, Any]:
            self.given.append(data)
            result = await worker.compute_score(data)
            self.scored.append(result["reward_score"])
            return result

        self.compute_score = SimpleNamespace(remote=remote)


class Queue:
    """A FAKE of the module ``transfer_queue``: remembers what is put into it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.status: dict[str, str] = {}

    def init(self, *_: Any) -> None: ...

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        self.status[key] = tag["status"]

    async def async_kv_batch_put(self, keys: list[str], fields: Any, tags: list[Any], partition_id: str) -> None:
        for position, key in enumerate(keys):
            self.rows[key] = {name: _plain(fields[name][position]) for name in fields.keys()}  # noqa: SIM118


def _plain(value: Any) -> Any:
    return getattr(value, "data", value) if type(value).__name__ == "NonTensorData" else value


@dataclass
class Bench:
    """A worker on a bench: run prompts through it and look at everything that came out."""

    worker: Any
    engine: Engine
    reward: RewardHandle
    queue: Queue
    loop: asyncio.AbstractEventLoop
    """One for the life of the worker, as in its process; the host keeps it."""
    ids: GroupIds = field(default_factory=GroupIds)

    def run(self, work: Any) -> Any:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(work)

    def prompts(self, *prompts: dict[str, Any], validate: bool = False, step: int = 1) -> None:
        """Run V1 prompts to their end, as ``generate_sequences`` would start them."""

        async def all_of_them() -> None:
            await asyncio.gather(*(self.start(prompt, validate=validate, step=step) for prompt in prompts))

        self.run(all_of_them())

    async def start(self, prompt: dict[str, Any], *, validate: bool = False, step: int = 1) -> None:
        trajectory = {"step": step, "sample_index": 0, "rollout_n": 0, "validate": validate}
        [group_id] = self.ids.next([prompt["uid"]], step, validate)
        params = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
        row = {**prompt, "refine_group_id": group_id}  # as the manager hands it out
        await self.worker._run_prompt(row, params, trajectory=trajectory)

    def rows_of(self, uid: str) -> list[dict[str, Any]]:
        return [fields for key, fields in sorted(self.queue.rows.items()) if key.rsplit("_", 2)[0] == uid]

    def text(self, ids: Any) -> str:
        return self.worker.tokenizer.decode(ids)


def prompt(uid: str, text: str = "What is 2+2?", **changes: Any) -> dict[str, Any]:
    """One prompt as a V1 worker gets it."""
    info = changes.pop("extra_info", {"index": 0})
    return {
        "uid": uid,
        "raw_prompt": [{"role": "user", "content": text}],
        "agent_name": "single_turn_agent",
        "data_source": "tiny",
        "reward_model": {"style": "rule", "ground_truth": f"truth of {uid}"},
        "extra_info": info,
        "index": 0,
        "global_steps": 1,
        **changes,
    }


def answers(prompt_text: str, number: int) -> str:
    """Different texts, so that rewards differ."""
    return f"answer {number} " + "xyz"[number % 3] * (number % 5)


def best(texts: list[str]) -> str:
    """The draft that the training reward likes most, first of equals."""
    return max(texts, key=lambda text: checksum(text))


def make_bench(
    config: DictConfig, monkeypatch: Any, answer: Any = answers, *, kind: str = "RefineAgentLoopWorkerTQ"
) -> Bench:
    """A worker of ours on a configuration, with the real reward loop worker of the host behind it."""
    import verl.trainer.ppo.v1.agent_loop_tq as host
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    import refine_wrapper_verl.worker as ours

    queue = Queue()
    monkeypatch.setattr(host, "tq", queue)
    worker_class = getattr(ours, kind)
    engine = Engine(answer)

    async def build() -> tuple[Any, RewardHandle]:
        reward = RewardHandle(RewardLoopWorker(config))
        return worker_class(config, engine, None, [reward]), reward

    loop = asyncio.new_event_loop()
    # veRL tokenises in threads: with several, the engine's requests would come in another order each time.
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    worker, reward = loop.run_until_complete(build())
    engine.tokenizer = worker.tokenizer
    return Bench(worker, engine, reward, queue, loop)


def reward_file(folder: Path, body: str) -> str:
    """A user's reward file."""
    path = folder / "reward.py"
    path.write_text("import json, math, time\n" + body)
    return str(path)
