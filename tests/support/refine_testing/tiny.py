"""Tiny random models and byte-level tokenizers, made on the spot: nothing is downloaded."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# torch has one generator for all threads: models that two threads make at once would share its numbers.
_ONE_AT_A_TIME = threading.Lock()
SPECIAL = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ChatML: byte-level BPE without merges (a Qwen-like special vocabulary)."""
    vocab = {text: number for number, text in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        model_max_length=4096,
    )
    fast.chat_template = CHATML
    return fast


def tiny_llama(seed: int = 0, *, max_positions: int = 4096, hidden_size: int = 32) -> LlamaForCausalLM:
    """A random one-layer Llama for :func:`tiny_tokenizer`. (transformers 5 replaces the tokenizer of Qwen2 models.)"""
    with _ONE_AT_A_TIME:
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(SPECIAL) + 256,
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=max_positions,
                bos_token_id=None,
                eos_token_id=SPECIAL.index("<|im_end|>"),
                pad_token_id=SPECIAL.index("<|pad|>"),
            )
        )


def save_tiny(folder: Path, seed: int = 0, **sizes: int) -> str:
    """Write model and tokenizer to a folder; returns its name, for trainers that load by path."""
    tiny_llama(seed, **sizes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
