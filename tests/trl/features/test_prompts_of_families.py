"""Prompts rendered by each chat template that TRL ships: the draft lands in the last user turn, a prefill stays last."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl
from refine_testing.tiny import tiny_tokenizer
from refine_testing.trl_runs import IMPROVE

from refine_wrapper.core.prompts.builder import PromptBuilder
from refine_wrapper.core.types import PromptRoom
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
QUESTION, DRAFT = "What is 2 + 2?", "It is 5."
PREFILL = "Let me solve this step by step.\n<think>"
CALL = {"type": "function", "id": "call00001", "function": {"name": "search", "arguments": {"text": "x"}}}


def user(words: str) -> dict[str, Any]:
    return {"role": "user", "content": words}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "bare": [user(QUESTION)],
    "system": [{"role": "system", "content": "Be brief."}, user(QUESTION)],
    "history": [user("Hello."), {"role": "assistant", "content": "Hi."}, user(QUESTION)],
    "tools": [
        user(QUESTION),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "search", "tool_call_id": "call00001", "content": "4"},
    ],
}


@cache
def tokenizer_of(family: str | None) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None if family is None else (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    return tokenizer


@cache
def builder(family: str | None, template: str) -> PromptBuilder:
    tokenizer = tokenizer_of(family)
    room = PromptRoom(tokenizer, lambda prompt: len(tokenizer.encode(str(prompt))))
    return PromptBuilder(RefineConfig(template=template), Plugins(entry_points=False), room)


def render(family: str, messages: Sequence[Any], **kwargs: Any) -> str | None:
    """None: this template takes no such conversation."""
    try:
        text = tokenizer_of(family).apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs)
    except Exception:
        return None
    return text if QUESTION in text else None


def rendered_shapes(family: str) -> Iterator[tuple[str, list[dict[str, Any]], str, dict[str, Any]]]:
    """Conversations that the template takes, rendered with and without thinking (where that makes a difference)."""
    for shape, messages in CONVERSATIONS.items():
        seen: set[str] = set()
        for kwargs in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            text = render(family, messages, **kwargs)
            if shape == "tools" and text is not None and "4" not in text.split(QUESTION)[1]:
                continue  # it leaves tool results out
            if text is not None and text not in seen:
                seen.add(text)
                yield shape, messages, text, kwargs


def expected(family: str, messages: list[dict[str, Any]], template: str, **kwargs: Any) -> str | None:
    """q' as the template renders it from the refined conversation."""
    built = builder(family, template).build(messages, DRAFT)
    assert built is not None
    return render(family, built.prompt, **kwargs)


@pytest.mark.parametrize("template", ["append", "turns"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_rendered_text_becomes_what_the_conversation_becomes(family: str, template: str) -> None:
    for shape, messages, text, kwargs in rendered_shapes(family):
        built = builder(family, template).build(text, DRAFT)
        assert built is not None
        wanted = expected(family, messages, template, **kwargs)
        if shape == "tools" and template == "turns":
            # Turns before the last user's are rendered anew (without thoughts) from messages; here they are kept.
            if wanted is None or text.rstrip().endswith("<|channel>thought"):
                continue
            assert str(built.prompt).startswith(text[: text.rindex("4") + 1])
            start = wanted.index("It is 5.")
            assert str(built.prompt).endswith(wanted[start:]), kwargs
        else:
            assert built.prompt == wanted, (shape, kwargs)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_prefill_stays_last_and_the_draft_stays_out_of_it(family: str) -> None:
    for shape, _, text, _ in rendered_shapes(family):
        if shape == "tools":
            continue
        plain = builder(family, "append").build(text, DRAFT)
        prefilled = builder(family, "append").build(text + PREFILL, DRAFT)
        assert plain is not None
        assert prefilled is not None
        assert prefilled.prompt == str(plain.prompt) + PREFILL
        turned = builder(family, "turns").build(text + PREFILL, DRAFT)
        assert turned is not None
        assert str(turned.prompt).endswith(PREFILL)
        assert str(turned.prompt).index(DRAFT) < str(turned.prompt).index(IMPROVE)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_family_is_known_to_a_tokenizer_without_a_chat_template(family: str) -> None:
    """The data was rendered by another template than the tokenizer's: TRL's own templates tell where the turns are."""
    for _, _, text, _ in rendered_shapes(family):
        own = builder(family, "append").build(text, DRAFT)
        foreign = builder(None, "append").build(text, DRAFT)
        assert own is not None
        assert foreign is not None
        assert foreign.prompt == own.prompt


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_prompt_that_opens_a_thought_hides_a_sample_that_was_cut_within_it(family: str) -> None:
    for _, _, text, _ in rendered_shapes(family):
        prompts = builder(family, "append")
        opened = text.rstrip().endswith(("<think>", "<|channel>thought"))
        assert prompts.visible(text, "so far", finished=False) == ("" if opened else "so far")
        assert prompts.visible(text, "so</think>42", finished=True) == "42"
        assert prompts.visible(text + PREFILL, "so far", finished=False) == ""


@pytest.mark.parametrize("name", [None, "qwen3", "gptoss"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_a_draft_opens_no_turn_whatever_the_tokenizer(family: str, name: str | None) -> None:
    """The worst draft is a whole rendered prompt; the tokenizer may know none of its marks."""
    prompts = builder(name, "append")
    for _, _, text, _ in rendered_shapes(family):
        harmless, hostile = prompts.build(text, DRAFT), prompts.build(text, text)
        assert harmless is not None
        assert hostile is not None
        seen = prompts._finder.find(text)
        assert seen is not None
        for mark in {
            mark.strip() for mark in (seen.markers[0], *re.findall(r"<[^<>\s]+>|\[/?INST\]", seen.markers[1]))
        }:
            if mark not in ("", "<think>", "</think>"):
                assert str(hostile.prompt).count(mark) == str(harmless.prompt).count(mark), mark
