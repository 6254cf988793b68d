"""What q' costs and how a draft is cut: counted once, by the host's tokens, never above the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from core_standins import StandInTokenizer, built_in, chatml, plain, render_chatml, rendered, room_of
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.prompts.builder import PromptBuilder
from refine_wrapper.core.prompts.controls import ControlTexts, any_of
from refine_wrapper.core.prompts.shorten import GAP, shorten
from refine_wrapper.settings.config import RefineConfig

QUESTION = "What is 6 x 7?"
HOW = ("keep_tail", "keep_head", "drop_middle")


def fast(tokenizer: StandInTokenizer, normalise: Any = None) -> Any:
    """The same tokenizer, telling what it normalises, as one of the ``tokenizers`` library does."""
    normalizer = None if normalise is None else type("Normalizer", (), {"normalize_str": staticmethod(normalise)})()
    tokenizer.backend_tokenizer = type("Backend", (), {"normalizer": normalizer})()  # type: ignore[attr-defined]
    return tokenizer


class Counted:
    """A builder that knows how often the host counted and the tokenizer encoded."""

    def __init__(self, tokenizer: Any, limit: int | None, **settings: Any) -> None:
        self.counted: list[Any] = []
        self.encoded: list[str] = []
        room = room_of(tokenizer, limit)
        encode = tokenizer.encode

        def count_tokens(prompt: Any) -> int:
            self.counted.append(prompt)
            return len(encode(rendered(tokenizer, prompt)))

        def noted(text: str, **options: Any) -> list[int]:
            self.encoded.append(text)
            return encode(text, **options)

        self.builder = PromptBuilder(RefineConfig(**settings), built_in(), replace(room, count_tokens=count_tokens))
        tokenizer.encode = noted
        self.builder.question_fits(QUESTION)
        self.builder.build(QUESTION, "x")  # what is measured once in a run
        self.counted.clear()
        self.encoded.clear()


def test_without_a_limit_nothing_is_counted() -> None:
    counted = Counted(fast(chatml()), None)
    built = counted.builder.build(QUESTION, "d" * 5000)
    assert built is not None
    assert built.num_tokens is None
    assert counted.counted == []
    assert counted.encoded == []


def test_far_from_the_limit_q_prime_is_counted_once_and_the_question_not_at_all() -> None:
    counted = Counted(fast(chatml()), 100_000)
    assert counted.builder.question_fits(QUESTION)
    built = counted.builder.build(QUESTION, "d" * 5000)
    assert built is not None
    assert counted.counted == [built.prompt]
    assert built.num_tokens == len(str(built.prompt))
    assert counted.encoded == []


@pytest.mark.parametrize("how", HOW)
def test_a_draft_that_is_too_long_is_cut_by_the_hosts_tokens_and_counted_once(how: str) -> None:
    tokenizer = fast(chatml())
    counted = Counted(tokenizer, 2000, shorten=how)
    counted.builder.build(QUESTION, "d" * 5000, token_ids=[100] * 5000)  # measures the template, once
    counted.counted.clear()
    counted.encoded.clear()
    text = "".join(chr(97 + i % 26) for i in range(5000))
    built = counted.builder.build(QUESTION, text, token_ids=list(text.encode()))
    assert built is not None
    assert built.shortened
    assert counted.counted == [built.prompt]
    assert counted.encoded == []
    assert 1990 <= (built.num_tokens or 0) <= 2000
    kept = built.draft_text.split(GAP)
    assert text.endswith(kept[-1]) or how == "keep_head"
    assert text.startswith(kept[0]) or how == "keep_tail"


@given(
    text=st.text(min_size=1, max_size=80),
    ids=st.sampled_from(["own", "other", "longer", "none"]),
    how=st.sampled_from(HOW),
    room=st.integers(0, 60),
    draft_tokens=st.one_of(st.none(), st.integers(1, 40)),
)
def test_tokens_are_a_hint_and_never_more(text: str, ids: str, how: str, room: int, draft_tokens: int | None) -> None:
    """Whatever tokens the host hands over, q' fits, the draft has no more tokens than allowed and is of the text."""
    tokenizer = chatml()
    own = tokenizer.encode(text)
    token_ids: Sequence[int] | None = {"own": own, "other": [65] * 9, "longer": [65] * 50 + own, "none": None}[ids]
    unlimited = PromptBuilder(RefineConfig(), built_in(), room_of(tokenizer))
    limit = len(tokenizer.encode(QUESTION)) + unlimited.overhead_tokens(QUESTION) + room
    config = RefineConfig(shorten=how, draft_tokens=draft_tokens)
    built = PromptBuilder(config, built_in(), room_of(tokenizer, limit)).build(QUESTION, text, token_ids=token_ids)
    if built is None:
        return
    assert built.num_tokens == len(tokenizer.encode(str(built.prompt)))
    assert built.num_tokens <= limit
    whole = unlimited.build(QUESTION, text)
    assert whole is not None
    assert built.shortened or built.draft_text == whole.draft_text
    if draft_tokens is not None:
        assert len(tokenizer.encode(built.draft_text.replace(GAP, ""))) <= draft_tokens + 1  # one for a broken mark
    assert not set(built.draft_text.replace(GAP, "").replace(" ", "")) - set(whole.draft_text)


def test_tokens_that_the_host_adds_count() -> None:
    tokenizer = plain()
    limit = 400
    builder = PromptBuilder(RefineConfig(), built_in(), room_of(tokenizer, limit))
    assert builder.question_fits(QUESTION, extra_tokens=limit - len(QUESTION))
    assert not builder.question_fits(QUESTION, extra_tokens=limit - len(QUESTION) + 1)
    built = builder.build(QUESTION, "d" * 500, extra_tokens=50)
    assert built is not None
    assert built.num_tokens == limit - 50


@given(text=st.text(alphabet="abc ", max_size=60), most=st.integers(1, 60), how=st.sampled_from(HOW))
def test_cutting_by_tokens_is_cutting_by_encoding(text: str, most: int, how: Any) -> None:
    tokenizer = plain()
    assert shorten(text, most, how, tokenizer, tokenizer.encode(text)) == shorten(text, most, how, tokenizer)


@pytest.mark.parametrize("known", [True, False])
def test_a_tokenizer_that_lowers_case_is_seen_through(known: bool) -> None:
    """Nothing that the tokenizer would read as a control token stays, whether it says what it normalises or not."""

    class Lowering(StandInTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return super().encode(text.lower(), add_special_tokens=add_special_tokens)

    tokenizer: Any = Lowering(render_chatml, ("<|im_start|>", "<|im_end|>"))
    if known:
        fast(tokenizer, str.lower)
    builder = PromptBuilder(RefineConfig(), built_in(), room_of(tokenizer))
    built = builder.build(QUESTION, "so <|IM_END|> 42")
    assert built is not None
    assert tokenizer.special_ids(str(built.prompt)) == []
    assert "42" in built.draft_text


def test_control_texts_are_found_in_linear_time() -> None:
    """Thousands of control tokens, and a draft that begins one at every letter. (The time limit is the test's.)"""
    texts = [f"<|reserved_special_token_{number}|>" for number in range(5000)]
    pattern = any_of(texts)
    assert pattern is not None
    assert pattern.search("<" * 200_000) is None
    assert pattern.findall("a <|reserved_special_token_12|> b <|reserved_special_token_123|>") == [
        texts[12],
        texts[123],
    ]
    longest = any_of(["a", "ab"])
    assert longest is not None
    assert longest.findall("abac") == ["ab", "a"]


def test_a_speakers_name_is_broken_before_its_colon() -> None:
    assert ControlTexts.of(plain(), ("User:",)).neutralise("User: 1") == "User : 1"
