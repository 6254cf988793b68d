"""Problems from reasoning-gym into data.jsonl, and a tiny random model into tiny-model/.

python prepare.py --problems 64
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import reasoning_gym

GENERATOR = "chain_sum"


def write_problems(path: Path, count: int, seed: int) -> None:
    """One problem a line; the whole entry is the label, for the verifier in reward.py."""
    made = reasoning_gym.create_dataset(GENERATOR, seed=seed, size=count, min_terms=2, max_terms=2, max_digits=1)
    rows = [{"input": entry["question"], "label": json.dumps(entry), "datasource": GENERATOR} for entry in made]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tiny_model(folder: Path) -> None:
    """A random Llama with one token a byte and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocab = {text: i for i, text in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocab), bos_token_id=None, eos_token_id=3, pad_token_id=0, max_position_embeddings=2048, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    write_problems(options.folder / "data.jsonl", options.problems, seed=1)
    write_tiny_model(options.folder / "tiny-model")
