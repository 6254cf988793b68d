"""Plain TRL on reasoning-gym's chain sums. Nothing in here knows about refinement.

python train_small.py                                                    # the plain run
refine-wrapper run --refine.num_drafts 4 --refine.match_budget -- python train_small.py    # the refined one
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import reasoning_gym
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

GENERATOR = "chain_sum"


def reward(completions: list[Any], entry: list[str], **_: Any) -> list[float]:
    """reasoning-gym's own verifier, on the first word of the answer."""
    verifier = reasoning_gym.create_dataset(GENERATOR, seed=0, size=1)
    answers = [(text.split() or [""])[0] for text in completions]
    return [float(verifier.score_answer(a, json.loads(e))) for a, e in zip(answers, entry, strict=True)]


def problems(count: int, seed: int) -> Dataset:
    """Fresh problems; the whole entry travels along as JSON for the verifier."""
    made = reasoning_gym.create_dataset(GENERATOR, seed=seed, size=count, min_terms=2, max_terms=2, max_digits=1)
    return Dataset.from_list([{"prompt": e["question"] + "\n", "entry": json.dumps(e)} for e in made])


def tiny_random_model() -> str:
    """A folder with a random model: the script runs anywhere, and learns nothing. Pass --model for a real one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = {text: i for i, text in enumerate(["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    folder = tempfile.mkdtemp(prefix="tiny-model-")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=258, bos_token_id=None, eos_token_id=1, pad_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="local folder or hub id; a tiny random model if left out")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--output-dir", default="outputs/chain_sum")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU in float32")
    options = parser.parse_args()
    args = GRPOConfig(
        output_dir=options.output_dir,
        num_generations=8,
        per_device_train_batch_size=16,
        max_completion_length=16,
        max_steps=options.max_steps,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=options.cpu,
        bf16=not options.cpu,
    )
    trainer = GRPOTrainer(
        options.model or tiny_random_model(), reward, args=args, train_dataset=problems(2 * options.max_steps, seed=1)
    )
    trainer.train()


if __name__ == "__main__":
    main()
