"""A tiny LLaVA with its processor, made on the spot, of sizes that vLLM takes on a CPU. Its processor needs no torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from refine_testing.tiny import SPECIAL, tiny_tokenizer

IMAGE = "<image>"
IMAGE_TOKENS = 4
"""Tokens that one image takes in a prompt."""
_SIDE, _PATCH = 28, 14
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llava_processor() -> LlavaProcessor:
    """One token a byte, four tokens an image."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}),
        tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def save_tiny_llava(folder: Path, seed: int = 0) -> str:
    """Write model and processor to a folder; returns its name."""
    torch.manual_seed(seed)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": SPECIAL.index("<|pad|>")}
    text = LlamaConfig(
        vocab_size=len(SPECIAL) + 256 + 1,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        **size,
        **special,
    )
    vision = CLIPVisionConfig(**size, image_size=_SIDE, patch_size=_PATCH, projection_dim=64)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=len(SPECIAL) + 256,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
            image_seq_length=IMAGE_TOKENS,
            **special,
        )
    )
    model.save_pretrained(folder)
    tiny_llava_processor().save_pretrained(folder)
    return str(folder)
