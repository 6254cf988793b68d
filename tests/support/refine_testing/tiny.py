"""Tiny random models and byte-level tokenizers, made on the spot: nothing is downloaded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

T = TypeVar("T")
# torch has one generator for all threads: models that two threads make at once would share its numbers.
_ONE_AT_A_TIME = threading.Lock()
SPECIAL = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(special: Sequence[str], **settings: Any) -> PreTrainedTokenizerFast:
    """One token a byte: byte-level BPE without merges, behind these special tokens."""
    vocab = {text: number for number, text in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ChatML (a Qwen-like special vocabulary)."""
    tokenizer = byte_tokenizer(
        SPECIAL, pad_token="<|pad|>", unk_token="<|unk|>", eos_token="<|im_end|>", model_max_length=4096
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_llama(seed: int = 0, *, max_positions: int = 4096, hidden_size: int = 32) -> LlamaForCausalLM:
    """A random one-layer Llama for :func:`tiny_tokenizer`. (transformers 5 replaces the tokenizer of Qwen2 models.)"""
    return _made(LlamaForCausalLM, seed, max_positions, hidden_size, eos_token_id=SPECIAL.index("<|im_end|>"))


def tiny_reward_model(
    seed: int = 3, kind: type[LlamaForSequenceClassification] = LlamaForSequenceClassification
) -> LlamaForSequenceClassification:
    """A random reward model for :func:`tiny_tokenizer`; its large weights tell texts apart."""
    return _made(kind, seed, 4096, 16, num_labels=1, initializer_range=0.5)


def _made(kind: type[T], seed: int, max_positions: int, hidden_size: int, **settings: Any) -> T:
    with _ONE_AT_A_TIME:
        torch.manual_seed(seed)
        return kind(
            LlamaConfig(
                vocab_size=len(SPECIAL) + 256,
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=max_positions,
                bos_token_id=None,
                pad_token_id=SPECIAL.index("<|pad|>"),
                **settings,
            )
        )


def save_tiny(folder: Path, seed: int = 0, **sizes: int) -> str:
    """Write model and tokenizer to a folder; returns its name, for trainers that load by path."""
    tiny_llama(seed, **sizes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
