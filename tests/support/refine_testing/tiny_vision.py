"""A tiny Gemma 3 with its processor, made on the spot: images become tokens, and the host rebuilds ``token_type_ids``."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor

from refine_testing.tiny import byte_tokenizer

IMAGE_TOKENS = 4
"""Tokens that one image takes in a prompt."""
_SIDE, _PATCH = 8, 4

_SPECIAL = ("<pad>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft>")
_TEMPLATE = (
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + ':' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model:' }}{% endif %}"
)


def tiny_vision_processor() -> Any:
    """One token a byte, four tokens an image."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    fast = byte_tokenizer(
        _SPECIAL,
        pad_token="<pad>",
        eos_token="<end_of_turn>",
        padding_side="left",  # as TRL loads a processor itself
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft>",
        },
    )
    images = Gemma3ImageProcessorPil(size={"height": _SIDE, "width": _SIDE})
    return Gemma3Processor(images, fast, chat_template=_TEMPLATE, image_seq_length=IMAGE_TOKENS)


def tiny_vision_model(seed: int = 0) -> Gemma3ForConditionalGeneration:
    """One layer of text, one of vision."""
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                **size,
                "vocab_size": len(_SPECIAL) + 256,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "max_position_embeddings": 2048,
                "pad_token_id": 0,
                "eos_token_id": _SPECIAL.index("<end_of_turn>"),
                "bos_token_id": None,
            },
            vision_config={**size, "image_size": _SIDE, "patch_size": _PATCH},
            mm_tokens_per_image=IMAGE_TOKENS,
            boi_token_index=_SPECIAL.index("<start_of_image>"),
            eoi_token_index=_SPECIAL.index("<end_of_image>"),
            image_token_index=_SPECIAL.index("<image_soft>"),
            image_token_id=_SPECIAL.index("<image_soft>"),
        )
    )


def picture(number: int) -> Image.Image:
    """A small picture of one colour, another one for each number."""
    return Image.new("RGB", (_SIDE, _SIDE), (40 * number % 256, 90, 10))
