"""What planning a refined group costs, as a ratio to encoding its q' once.

    python benchmarks/planning_cost.py --json planning.json

Needs `tokenizers` and `transformers` (the environment of any host). A byte-level BPE with 32,000 entries is trained on
the spot, on made-up words with the frequencies of a language, so nothing is downloaded. Planning is what a host asks of
the prompt builder for one group: does the question fit, what is visible of the sample, build q'. The two are timed in
turn, so that a busy machine disturbs both; the ratio is that of their fastest times.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from refine_wrapper.core.prompts.builder import PromptBuilder
from refine_wrapper.core.types import PromptRoom
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

DRAFT_TOKENS = (100, 1000, 4000, 16000)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QUESTION = "A train leaves at noon and runs at 60 miles an hour. How far is it from where it started at five o'clock? "
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def vocabulary() -> list[str]:
    """Words of made-up syllables."""
    letters = random.Random(0)
    syllables = ["".join(letters.choices("bcdfghklmnprstvw", k=1) + letters.choices("aeiou", k=1)) for _ in range(60)]
    return ["".join(letters.choices(syllables, k=letters.randint(1, 4))) for _ in range(40_000)]


def words(count: int, seed: int) -> str:
    """Text with the frequencies of words of a language: few that are common, many that are rare."""
    draw = random.Random(seed)
    chosen = [vocabulary()[min(int(draw.paretovariate(0.6)) - 1, 39_999)] for _ in range(count)]
    return " ".join(
        word + draw.choices(["", ",", ".\n", f" = {draw.randint(1, 99)}"], [80, 8, 8, 4])[0] for word in chosen
    )


def bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE with 32,000 entries, normalised and split as Qwen's and Llama's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((words(2_000, seed) for seed in range(60)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def fastest(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The fastest time of each call in seconds of one core; the calls take turns."""
    seconds = {name: float("inf") for name in calls}
    gc.disable()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            seconds[name] = min(seconds[name], time.thread_time() - start)
    gc.enable()
    return seconds


def measure(tokenizer: PreTrainedTokenizerFast, draft_tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """One length of drafts: the ratio, and what it is made of."""
    limit = options.limit or None

    def count_tokens(prompt: Any) -> int:
        if isinstance(prompt, str):
            return len(tokenizer(text=prompt, add_special_tokens=False)["input_ids"])
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(text=text, add_special_tokens=False)["input_ids"])

    room = PromptRoom(tokenizer, count_tokens, limit)
    config = RefineConfig(template=options.template, shorten=options.shorten)
    builder = PromptBuilder(config, Plugins(entry_points=False), room)
    token_ids = tokenizer.encode(words(draft_tokens, seed=draft_tokens), add_special_tokens=False)[:draft_tokens]
    text = tokenizer.decode(token_ids)
    numbers = count(1)

    def plan() -> Any:
        text_of_question = f"{QUESTION}({next(numbers)}) "  # another one each time: nothing is remembered of it
        question: Any = [{"role": "user", "content": text_of_question}] if options.chat else text_of_question
        assert builder.question_fits(question)
        shown = builder.visible(question, text, token_ids=token_ids, finished=True)
        return builder.build(question, shown, token_ids=token_ids)

    built = plan()  # what is measured once in a run (the template, the marks of turns) is measured here
    assert built is not None
    encoded = count_tokens(built.prompt)
    repeats = max(options.repeats, 20_000 // draft_tokens)
    seconds = fastest({"plan": plan, "encode": lambda: count_tokens(built.prompt)}, repeats)
    return {
        "draft_tokens": draft_tokens,
        "ratio": round(seconds["plan"] / seconds["encode"], 3),
        "plan_ms": round(1000 * seconds["plan"], 3),
        "encode_ms": round(1000 * seconds["encode"], 3),
        "prompt_tokens": encoded,
        "shortened": built.shortened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write a list of {draft_tokens, ratio} to this file")
    parser.add_argument("--limit", type=int, default=8192, help="longest prompt in tokens; 0 for no limit")
    parser.add_argument("--template", default="append", help="refinement template")
    parser.add_argument("--shorten", default="keep_tail", choices=["keep_tail", "keep_head", "drop_middle"])
    parser.add_argument("--chat", action="store_true", help="questions are conversations, not text")
    parser.add_argument("--repeats", type=int, default=15, help="least times that each is timed")
    options = parser.parse_args()
    tokenizer = bpe()
    found = [measure(tokenizer, draft_tokens, options) for draft_tokens in DRAFT_TOKENS]
    for line in found:
        print(json.dumps(line))
    if options.json is not None:
        options.json.write_text(
            json.dumps([{name: line[name] for name in ("draft_tokens", "ratio")} for line in found], indent=2) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
