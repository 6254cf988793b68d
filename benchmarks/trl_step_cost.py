"""What a refined TRL step costs against the plain one at matched completions, as ratios in one run.

    python benchmarks/trl_step_cost.py --prompts 8 --completion-tokens 64 --steps 12

All arms train the same tiny random Llama on the same prompts: the plain objective with 8 completions per prompt, the
refined one with 4 drafts and 4 refinements, and the same with draft-ahead. Rounds of the arms alternate, so that a busy
machine disturbs all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refine_wrapper.core.prompts.builder import find_template
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper_trl import RefineGRPOConfig, RefineGRPOTrainer

ARMS = {"plain": (8, 0), "refined": (4, 4), "refined, draft-ahead": (4, 4)}  # group size G, drafts N


class TimedTrainer(RefineGRPOTrainer):
    """Measures generation (both stages) and whole optimizer steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.generation_seconds: list[float] = []
        self.step_seconds: list[float] = []
        super().__init__(*args, **kwargs)

    def _generate(self, prompts: list[Any]) -> Any:
        if self._refine_batches is not None and self._refine_batches.sampling_context:
            return super()._generate(prompts)  # counted by the call that it is part of
        start = time.perf_counter()
        generated = super()._generate(prompts)
        self.generation_seconds.append(time.perf_counter() - start)
        return generated

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self.step_seconds.append(time.perf_counter() - start)
        return loss


def small_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Printable ASCII and what is frequent in the texts, so that a template takes about as many tokens as with a real
    vocabulary, and a draft of a random model as many in the prompt as it had when it was sampled."""
    special = ["<pad>", "<eos>"]
    ascii_letters = [chr(code) for code in range(32, 127)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1000, special_tokens=special, initial_alphabet=ascii_letters, show_progress=False
        ),
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def build(arm: str, options: argparse.Namespace, folder: str) -> TimedTrainer:
    """One arm's trainer on a fresh model with the same weights."""
    torch.manual_seed(0)
    group_size, num_drafts = ARMS[arm]
    rows = [{"prompt": f"What is {number} plus {7 * number % 13}? Show your work. "} for number in range(64)]
    tokenizer = small_tokenizer([rows[0]["prompt"], find_template(options.template, Plugins()).render_text("", "")] * 9)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden_size,
            intermediate_size=4 * options.hidden_size,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    args = RefineGRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=options.prompts * group_size,
        num_generations=group_size,
        max_completion_length=options.completion_tokens,
        max_steps=options.steps,
        refine_num_drafts=num_drafts,
        refine_template=options.template,
        refine_draft_ahead="ahead" in arm,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        seed=0,
    )

    def spread(completions: list[str], **_: Any) -> list[float]:
        return [len(set(text)) / 64 for text in completions]

    return TimedTrainer(model, spread, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--completion-tokens", type=int, default=64, help="most tokens of a completion")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all arms")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--template", default="turns", help="refinement template")
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {arm: {"generation": [], "step": []} for arm in ARMS}
    for round_number in range(options.rounds):
        for arm in ARMS:
            with tempfile.TemporaryDirectory() as folder:
                trainer = build(arm, options, str(Path(folder)))
                trainer.train()
            seconds[arm]["generation"] += trainer.generation_seconds[1:]  # the first step warms up
            seconds[arm]["step"] += trainer.step_seconds[1:]
            step = statistics.median(trainer.step_seconds[1:])
            print(f"round {round_number + 1}/{options.rounds}, {arm}: {step:.3f} s a step")
    medians = {
        arm: {phase: statistics.median(values) for phase, values in phases.items()} for arm, phases in seconds.items()
    }
    for arm in ARMS:
        medians[arm]["rest"] = medians[arm]["step"] - medians[arm]["generation"]
    plain = medians["plain"]
    ratios = {
        arm: {phase: round(medians[arm][phase] / plain[phase], 2) for phase in plain} for arm in ARMS if arm != "plain"
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(
        json.dumps(
            {"device": device, "options": vars(options), "median_seconds": medians, "ratios_to_plain": ratios},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
