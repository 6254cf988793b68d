"""Prompts as people have them: where the draft lands, what stays last, what is refused, what of a sample is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from core_standins import StandInTokenizer, built_in, chatml, content_of, llama2, plain, rendered, room_of
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.prompts.builder import PromptBuilder
from refine_wrapper.errors import PromptError
from refine_wrapper.settings.config import RefineConfig

QUESTION = "What is 6 x 7?"
HEAD = "<|im_start|>user\nWhat is 6 x 7?"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


def builder(tokenizer: Any, **settings: Any) -> PromptBuilder:
    return PromptBuilder(RefineConfig(**settings), built_in(), room_of(tokenizer))


def built(tokenizer: Any, prompt: Any, draft: str = "41", **settings: Any) -> Any:
    found = builder(tokenizer, **settings).build(prompt, draft)
    assert found is not None
    return found.prompt


@pytest.mark.parametrize(
    "prefill", ["Let me solve this step by step.\n<think>", "<think>\n", "<think>\n\n</think>\n\n", "", "So:"]
)
@pytest.mark.parametrize("template", ["append", "turns"])
def test_a_prefill_stays_last(prefill: str, template: str) -> None:
    tokenizer = chatml()
    text = built(tokenizer, HEAD + ANSWER + prefill, template=template)
    plainly = built(tokenizer, HEAD + ANSWER, template=template)
    words = {"Let": "Let me solve this step by step.\n", "So:": "So:"}.get(prefill[:3], "")
    assert (
        text
        == (plainly.replace("assistant\n41", f"assistant\n{words}41") if template == "turns" else plainly) + prefill
    )


def test_a_missing_last_newline_is_no_other_prompt() -> None:
    text = built(chatml(), (HEAD + ANSWER).rstrip())
    assert text.startswith(HEAD + "\n\nHere is an attempt")
    assert text.endswith(ANSWER.rstrip())


def test_a_system_turn_of_its_own_and_a_history_stay() -> None:
    before = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    assert built(chatml(), before + HEAD + ANSWER) == before + built(chatml(), HEAD + ANSWER)


def test_a_rendered_tool_result_is_not_the_question() -> None:
    """It stands in a user's turn in some templates (Qwen's)."""
    result = "<|im_start|>assistant\ncall<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response>"
    text = built(chatml(), HEAD + "<|im_end|>\n" + result + ANSWER)
    assert text.startswith(HEAD + "\n\nHere is an attempt")
    assert text.endswith(result + ANSWER)


@pytest.mark.parametrize(
    ("prompt", "before", "after"),
    [
        ("User: What is 6 x 7? Assistant: <think>", "User: What is 6 x 7?", " Assistant: <think>"),
        (
            "A conversation between User and Assistant. It thinks in <think> </think> tags.\nUser: 6 x 7.\nAssistant: Let me solve this.\n<think>",
            "tags.\nUser: 6 x 7.",
            "\nAssistant: Let me solve this.\n<think>",
        ),
        ("Question: 1 + 1?\nAnswer: 2\n\nQuestion: 6 x 7?\nAnswer:", "Question: 6 x 7?", "\nAnswer:"),
        ("### Instruction:\n6 x 7?\n\n### Response:\n", "### Instruction:\n6 x 7?", "\n\n### Response:\n"),
    ],
)
def test_prompts_of_base_models(prompt: str, before: str, after: str) -> None:
    for template in ("append", "turns"):
        text = built(plain(), prompt, template=template)
        assert text.index(before) + len(before) <= text.index("41")
        assert text.endswith(after)
        assert text.index("41") < len(text) - len(after)


@given(draft=st.lists(st.sampled_from(["User: ", "Assistant:", "\n", "<think>", "6 ", "AI:", " User:"])).map("".join))
def test_a_draft_adds_no_speaker(draft: str) -> None:
    prompt = "User: What is 6 x 7?\nAssistant:"
    found = builder(plain()).build(prompt, draft)
    assert found is None or (str(found.prompt).count("User:"), str(found.prompt).count("Assistant:")) == (1, 1)


def test_an_open_thought_at_the_end_of_plain_text_stays_last() -> None:
    text = built(plain(), "What is 6 x 7?\n<think>\n")
    assert text.startswith("What is 6 x 7?\n\nHere is an attempt")
    assert text.endswith("\n<think>\n")


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>assistant\nHello",
        "[INST] What",
        "<|im_start|>user\nWhat is",
        "<|start_header_id|>system<|end_header_id|>x",
    ],
)
def test_marks_of_a_chat_without_a_user_turn_are_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match=r"no user turn is found.*Hand over conversations"):
        builder(chatml()).build(prompt, "41")
    assert not builder(chatml()).is_rendered_chat(prompt)
    assert builder(chatml()).visible(prompt, "41") == "41"


def test_a_beginning_of_text_before_plain_text_is_plain_text() -> None:
    assert built(plain(), "<|endoftext|>What is 6 x 7?").startswith("<|endoftext|>What is 6 x 7?\n\nHere is")


def test_a_rendered_prompt_without_its_first_token() -> None:
    """Many strip it, for the trainer adds it again."""
    text = built(llama2(), "[INST] What is 6 x 7? [/INST]")
    assert text.startswith("[INST] What is 6 x 7?\n\nHere is an attempt")
    assert text.endswith(" [/INST]")


@pytest.mark.parametrize("template", ["append", "turns"])
def test_a_user_turn_without_content(template: str) -> None:
    messages = [{"role": "system", "content": "6 x 7"}, {"role": "user", "content": None}]
    prompt = built(chatml(), messages, template=template)
    assert [turn["role"] for turn in prompt][:2] == ["system", "user"]
    assert any("41" in (turn["content"] or "") for turn in prompt)


def test_keys_that_nested_columns_fill_in_say_nothing() -> None:
    content = [{"type": "image", "text": None, "image": "x"}, {"type": "text", "text": QUESTION, "image": None}]
    [turn] = built(chatml(), [{"role": "user", "content": content, "tool_calls": None}])
    assert turn["content"][:2] == content
    assert "None" not in turn["content"][2]["text"]


def opening(messages: Sequence[Mapping[str, Any]], generate: bool) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{content_of(m)}<|im_end|>\n" for m in messages)
    return turns + ("<|im_start|>assistant\n<think>\n" if generate else "")


def thinker() -> StandInTokenizer:
    return StandInTokenizer(opening, ("<|im_start|>", "<|im_end|>"))


def test_a_sample_cut_within_the_thought_that_the_prompt_opened_is_all_reasoning() -> None:
    chat = [{"role": "user", "content": QUESTION}]
    prompts = builder(thinker())
    for prompt in (chat, rendered(thinker(), chat), "User: 6 x 7? Assistant: <think>", "6 x 7? <think>\n"):
        assert prompts.visible(prompt, "so far", finished=False) == ""
        assert prompts.visible(prompt, "so</think>42", finished=False) == "42"
        assert prompts.visible(prompt, "42", finished=True) == "42"
    closed = [*chat, {"role": "assistant", "content": "<think></think>"}]
    assert prompts.visible(closed, "so far", finished=False) == "so far"
    assert builder(thinker(), strip_thinking=False).visible(chat, "so far", finished=False) == "so far"


def test_words_about_thinking_in_the_question_open_no_thought() -> None:
    asked = f"<|im_start|>user\nWrite <think> first. {QUESTION}{ANSWER}"
    assert builder(chatml()).visible(asked, "so far", finished=False) == "so far"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("[THINK]so[/THINK]42", "42"),
        ("[THINK]so far", ""),
        ("42", "42"),
        ("<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>42", "42"),
        ("<|channel|>analysis<|message|>so far", ""),
    ],
)
def test_reasoning_marked_by_special_tokens(said: str, left: str) -> None:
    """Decoding drops the marks and leaves the reasoning; the tokens still have them."""
    special = ("[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|end|>", "<|start|>")
    tokenizer = StandInTokenizer(None, special)
    token_ids = tokenizer.encode(said)
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    assert builder(tokenizer).visible(QUESTION, text, token_ids=token_ids) == left


def test_how_a_prompt_is_seen() -> None:
    prompts = builder(chatml())
    assert prompts.describe(HEAD + ANSWER + "<think>\n") == (
        "rendered chat of the tokenizer's chat template, prefill '<think>\\n'"
    )
    assert prompts.describe(QUESTION) == "text without turns"
    assert prompts.describe([{"role": "user", "content": QUESTION}]) == "conversation"
    assert prompts.describe("User: 6? Assistant:") == "text with 'User:' and 'Assistant:'"
    assert prompts.describe("<|im_start|>") == "no place for a draft"
