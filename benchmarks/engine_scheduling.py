"""What two stages cost on a continuous-batching engine: one stage of N + G, two with a barrier, two pipelined.

python benchmarks/engine_scheduling.py --loads 64/64 128/64        # in the environment `openrlhf`, on a CPU

A real vLLM engine with a tiny random model; the pipelined modes run through the core's Rollout, as the OpenRLHF adapter
does: requests served as they come, or by the priority that the core gives them (drafts first, then the groups with long
drafts). Every completion has the same fixed length in all modes (log-normal, drawn anew for each repeat), so only the
order of requests differs. Ratios are means over the draws, with their standard errors. Engine steps do not depend on
how busy the machine is; wall time does. On a CPU a step's time grows with its batch, so there tokens rule the wall
time; on a GPU, where decoding is bound by memory traffic, steps do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# In this process, so that a step is a step; on a CPU: a small cache, no warm-up.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_CI_ENV", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other measure who else uses the machine

from refine_wrapper.core.planner import Planner
from refine_wrapper.core.rollout import Rollout
from refine_wrapper.core.types import GroupId, PlannedRound, PromptRoom, Question, Sample
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!()+-*/=\n'`"
MAX_LENGTH = 1024


def save_model(folder: Path, template: str) -> Any:
    """A tiny random Llama; returns its tokenizer.

    Completions are single characters, so that a draft has the same tokens in q' again; words of the template are one
    token each, as they are in real vocabularies.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted(set(re.findall("[A-Za-z]{4,}", Plugins().get("template", template).render_text("", ""))))
    vocab = {text: number for number, text in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS, *words])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*words, r"[\s\S]"])), "isolated")
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer


@dataclass
class Engine:
    """vLLM's synchronous engine, stepped by hand, as something coroutines can await."""

    engine: Any
    tokenizer: Any
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    _waiting: dict[str, asyncio.Future[list[int]]] = field(default_factory=dict)
    _number: int = 0

    async def generate(self, prompt: str, length: int, priority: int = 0) -> str:
        """A completion of exactly `length` tokens. The lowest priority is served first."""
        from vllm import SamplingParams

        self._number += 1
        name = str(self._number)
        ids = self.tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
        # Characters only, so that a draft is the same tokens in q' again.
        allowed = list(range(3, 3 + len(LETTERS)))
        params = SamplingParams(
            max_tokens=length, min_tokens=length, ignore_eos=True, allowed_token_ids=allowed, detokenize=False
        )
        self.engine.add_request(name, {"prompt_token_ids": ids}, params, priority=priority)
        self._waiting[name] = asyncio.get_running_loop().create_future()
        self.prompt_tokens += len(ids)
        return self.tokenizer.decode(await self._waiting[name], skip_special_tokens=True)

    async def serve(self, work: Awaitable[Any]) -> None:
        """Step while there is work; between two steps everything that can go on does."""
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(20):  # let coroutines that a step woke up add their requests before the next one
                await asyncio.sleep(0)
            if not self._waiting:
                continue
            self.steps += 1
            for output in self.engine.step():
                if output.finished:
                    self.cached_tokens += output.num_cached_tokens or 0
                    self._waiting.pop(output.request_id).set_result(list(output.outputs[0].token_ids))
        await task


@dataclass(frozen=True)
class Load:
    """P prompts with the lengths of their completions: first N drafts, then G refinements."""

    prompts: list[str]
    lengths: list[list[int]]
    num_drafts: int

    @property
    def num_slots(self) -> int:
        return len(self.lengths[0]) - self.num_drafts


def draw_load(options: argparse.Namespace, num_prompts: int, seed: int) -> Load:
    """Prompts of 161 tokens; log-normal lengths of at most 240 tokens; those of one prompt are correlated as asked."""
    rng = random.Random(seed)
    prompts = ["".join(rng.choice(LETTERS[:62]) for _ in range(160)) + "?" for _ in range(num_prompts)]
    own, common = math.sqrt(1 - options.correlation), math.sqrt(options.correlation)

    def length(of_prompt: float) -> int:
        deviation = options.sigma * (common * of_prompt + own * rng.gauss(0, 1))
        return max(4, min(240, round(options.median * math.exp(deviation))))

    group = range(options.num_drafts + options.group_size)
    lengths = [[length(of_prompt) for _ in group] for of_prompt in (rng.gauss(0, 1) for _ in prompts)]
    return Load(prompts, lengths, options.num_drafts)


async def single_stage(engine: Engine, load: Load, planner: Planner) -> None:
    await asyncio.gather(
        *(engine.generate(q, n) for q, lengths in zip(load.prompts, load.lengths, strict=True) for n in lengths)
    )


async def barrier(engine: Engine, load: Load, planner: Planner) -> None:
    groups = [planner.next(planner.open(_question(load, number), load.num_slots))[0] for number in _numbers(load)]
    drafts = [
        asyncio.gather(*(_draft(engine, load, number, n) for n in range(load.num_drafts))) for number in _numbers(load)
    ]
    rounds: list[PlannedRound] = []
    for group, sampled in zip(groups, await asyncio.gather(*drafts), strict=True):
        planned = planner.next(planner.add(group, sampled))[1]
        assert planned is not None
        rounds.append(planned)
    await asyncio.gather(
        *(
            engine.generate(str(planned.prompt), length)
            for planned, lengths in zip(rounds, load.lengths, strict=True)
            for length in lengths[load.num_drafts :]
        )
    )


async def pipelined(engine: Engine, load: Load, planner: Planner, *, in_order: bool = True) -> None:
    rollout = Rollout(planner, lambda key, group: None)

    async def member(number: int, length: int) -> None:
        with rollout.join(number, load.num_slots) as me:
            planned = await me.turn(_question(load, number), lambda planned, index: _draft(engine, load, number, index))
            text = await engine.generate(str(planned.prompt), length, planned.priority if in_order else 0)
            await me.report(Sample(text, reward=0.0, num_tokens=length))

    await asyncio.gather(*(member(i, n) for i, lengths in enumerate(load.lengths) for n in lengths[load.num_drafts :]))


def _numbers(load: Load) -> range:
    return range(len(load.prompts))


def _question(load: Load, number: int) -> Question:
    return Question(GroupId("train", 0, number), load.prompts[number])


async def _draft(engine: Engine, load: Load, number: int, index: int) -> Sample:
    length = load.lengths[number][index]
    # The reward: which draft is best must not depend on what a random model says.
    return Sample(await engine.generate(load.prompts[number], length), reward=float(-index), num_tokens=length)


MODES: dict[str, Callable[[Engine, Load, Planner], Awaitable[None]]] = {
    "single stage": single_stage,
    "barrier": barrier,
    "pipelined, as they come": partial(pipelined, in_order=False),
    "pipelined": pipelined,
}


def build_engine(folder: Path, tokenizer: Any, slots: int) -> Engine:
    import torch
    import vllm
    import vllm.model_executor.layers.utils as layers

    if not torch.cuda.is_available():

        def plain_linear(layer: Any, remove_weight: bool) -> None:
            layer.cpu_linear = torch.nn.functional.linear

        layers.dispatch_cpu_unquantized_gemm = plain_linear  # packed kernels need more alignment than this model has
    arguments = vllm.EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=MAX_LENGTH,
        max_num_seqs=slots,
        max_num_batched_tokens=8192,  # what vLLM takes on large GPUs; its default on a CPU would make prefills wait
        enable_prefix_caching=True,
        scheduling_policy="priority",  # requests of equal priority are served as they come
        dtype="float32",
        seed=0,
    )
    return Engine(vllm.LLMEngine.from_engine_args(arguments), tokenizer)


def measure(engine: Engine, mode: str, load: Load, template: str) -> dict[str, float]:
    room = PromptRoom(engine.tokenizer, lambda prompt: len(engine.tokenizer.encode(prompt)), MAX_LENGTH - 240)
    planner = Planner(RefineConfig(num_drafts=load.num_drafts, template=template, max_reward=0.0), room)
    engine.engine.reset_prefix_cache()
    engine.steps = engine.prompt_tokens = engine.cached_tokens = 0
    started = time.perf_counter()
    asyncio.run(engine.serve(MODES[mode](engine, load, planner)))
    return {
        "steps": engine.steps,
        "seconds": time.perf_counter() - started,
        "prompt tokens": engine.prompt_tokens,
        "cached": engine.cached_tokens / engine.prompt_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", default=["64/64", "128/64"], help="prompts/slots")
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=4, help="draws of lengths; modes take turns")
    parser.add_argument("--median", type=float, default=60, help="median length of a completion, tokens")
    parser.add_argument("--sigma", type=float, default=0.7, help="of the logarithm of the length: 1.0 has a heavy tail")
    parser.add_argument(
        "--correlation", type=float, default=0.0, help="of the logarithms of the lengths of two answers to one prompt"
    )
    parser.add_argument("--template", default="turns", help="`turns` keeps the draft's tokens as a prefix of q'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_model(Path(folder), options.template)
        print("| prompts / slots | mode | engine steps | to single | to barrier | seconds | prompt tokens | cached |")
        print("|---|---|---|---|---|---|---|---|")
        for name in options.loads:
            num_prompts, slots = map(int, name.split("/"))
            engine = build_engine(Path(folder), tokenizer, slots)
            runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
            for repeat in range(options.repeats):
                load = draw_load(options, num_prompts, options.seed + repeat)
                for mode in MODES:
                    runs[mode].append(measure(engine, mode, load, options.template))
            results[name] = runs
            for mode, taken in runs.items():
                found = {key: statistics.fmean(run[key] for run in taken) for key in taken[0]}
                ratios = [ratio(taken, runs[base]) for base in ("single stage", "barrier")]
                print(
                    f"| {name} | {mode} | {found['steps']:.0f} | {ratios[0]} | {ratios[1]} | "
                    f"{found['seconds']:.2f} | {found['prompt tokens']:.0f} | {found['cached']:.0%} |",
                    flush=True,
                )
            del engine
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def ratio(runs: list[dict[str, float]], base: list[dict[str, float]]) -> str:
    """Of the engine steps, draw by draw: mean and standard error."""
    ratios = [run["steps"] / other["steps"] for run, other in zip(runs, base, strict=True)]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    return f"{statistics.fmean(ratios):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
