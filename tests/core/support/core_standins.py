"""Stand-ins for what a host brings: tokenizers, rooms, samples, inline plugins.

The tokenizer is a STAND-IN, because the environment of the core has neither `tokenizers` nor `transformers` nor jinja2:
bytes (or runs of bytes, as merges make them), special tokens that are matched anywhere in a text as Hugging Face does,
and the chat templates of well-known vocabularies written out in Python. The tests of the hosts use the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from refine_wrapper.core.planner import Planner
from refine_wrapper.core.recorder import Recorder
from refine_wrapper.core.types import (
    Group,
    GroupId,
    PlannedRound,
    Progress,
    Prompt,
    PromptRoom,
    Purpose,
    Question,
    Sample,
)
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]


class StandInTokenizer:
    """Byte-level, with special tokens matched in text.

    Args:
        render: The chat template, or None.
        special: Special tokens.
        added: Added tokens that are not special, such as ``<think>``; decoding with ``skip_special_tokens`` keeps them.
        unk: Text of the unknown token, one of ``special``.
        run: Most bytes in one token. Above 1, cutting and decoding a text gives other tokens than it had, as with BPE.
    """

    def __init__(
        self,
        render: Render | None = None,
        special: Sequence[str] = (),
        *,
        added: Sequence[str] = (),
        unk: str | None = None,
        run: int = 1,
    ) -> None:
        self.chat_template: Any = render and render.__name__
        self.all_special_tokens = list(special)
        self._render = render
        self._run = run
        self._added = {text: 256 + number for number, text in enumerate([*special, *added])}
        self.all_special_ids = [self._added[text] for text in special]
        self.unk_token_id = self._added[unk] if unk is not None else None
        self._texts = {number: text for text, number in self._added.items()}
        self._runs: dict[bytes, int] = {}
        self._split = re.compile("|".join(f"({re.escape(t)})" for t in sorted(self._added, key=len, reverse=True)))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        tokens: list[int] = []
        position = 0
        for match in self._split.finditer(text) if self._added else ():
            tokens += [*self._encode_text(text[position : match.start()]), self._added[match.group()]]
            position = match.end()
        return tokens + self._encode_text(text[position:])

    def _encode_text(self, text: str) -> list[int]:
        content = text.encode("utf-8", errors="replace")
        if self._run == 1:
            return list(content)
        runs = [content[start : start + self._run] for start in range(0, len(content), self._run)]
        return [self._runs.setdefault(run, 1000 + len(self._runs)) for run in runs]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        known = {number: run for run, number in self._runs.items()} if self._run > 1 else {}
        content = b""
        for token in token_ids:
            if token in self._texts:
                skipped = skip_special_tokens and token in self.all_special_ids
                content += b"" if skipped else self._texts[token].encode()
            else:
                content += known[token] if token in known else bytes([token])
        return content.decode("utf-8", errors="replace")

    def get_added_vocab(self) -> Mapping[str, int]:
        return dict(self._added)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> Any:
        if self._render is None:
            raise ValueError("no chat template")
        text = self._render(conversation, add_generation_prompt)
        return self.encode(text) if tokenize else text

    def special_ids(self, text: str) -> list[int]:
        """The special and added tokens in a text, in order."""
        return [token for token in self.encode(text) if token in self._texts]


def content_of(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"<|{part['type']}|>" for part in content)


def render_chatml(messages: Sequence[Mapping[str, Any]], generate: bool) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{content_of(m)}<|im_end|>\n" for m in messages)
    return turns + ("<|im_start|>assistant\n" if generate else "")


def render_llama3(messages: Sequence[Mapping[str, Any]], generate: bool) -> str:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = "".join(f"{header.format(m['role'])}{content_of(m).strip()}<|eot_id|>" for m in messages)
    return "<|begin_of_text|>" + turns + (header.format("assistant") if generate else "")


def render_llama2(messages: Sequence[Mapping[str, Any]], generate: bool) -> str:
    rendered, system = "", ""
    for message in messages:
        content = content_of(message).strip()
        if message["role"] == "system":
            system = f"<<SYS>>\n{content}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            rendered += f"<s>[INST] {system}{content} [/INST]"
            system = ""
        elif message["role"] == "assistant":
            rendered += f" {content} </s>"
        else:
            raise ValueError("Conversation roles must alternate user/assistant/user/assistant/...")
    return rendered


def render_alpaca(messages: Sequence[Mapping[str, Any]], generate: bool) -> str:
    names = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n", "tool": "### Input:\n"}
    turns = "".join(
        f"{names[m['role']]}{content_of(m)}" + ("</s>\n\n" if m["role"] == "assistant" else "\n\n") for m in messages
    )
    return turns + (names["assistant"] if generate else "")


def chatml(**options: Any) -> StandInTokenizer:
    special = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image|>")
    return StandInTokenizer(render_chatml, special, added=("<think>", "</think>", "<tool_call>"), **options)


def llama3(**options: Any) -> StandInTokenizer:
    special = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|image|>")
    return StandInTokenizer(render_llama3, special, **options)


def llama2(**options: Any) -> StandInTokenizer:
    return StandInTokenizer(render_llama2, ("<s>", "</s>", "<unk>"), unk="<unk>", **options)


def alpaca(**options: Any) -> StandInTokenizer:
    return StandInTokenizer(render_alpaca, ("</s>",), **options)


def plain(**options: Any) -> StandInTokenizer:
    """A base model's tokenizer: one special token, no chat template."""
    return StandInTokenizer(None, ("<|endoftext|>",), unk="<|endoftext|>", **options)


TOKENIZERS: Mapping[str, Callable[..., StandInTokenizer]] = {
    "chatml": chatml,
    "llama3": llama3,
    "llama2": llama2,
    "alpaca": alpaca,
    "plain": plain,
}


def rendered(tokenizer: StandInTokenizer, prompt: Prompt) -> str:
    """A prompt as the host feeds it: a conversation through the chat template, ready for generation."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def room_of(tokenizer: StandInTokenizer, limit: int | None = None, **options: Any) -> PromptRoom:
    return PromptRoom(tokenizer, lambda prompt: len(tokenizer.encode(rendered(tokenizer, prompt))), limit, **options)


@cache
def built_in() -> Plugins:
    """The built-in plugins, loaded once. Not for tests that register something."""
    return Plugins(entry_points=False)


def plugins_with(*plugins: object) -> Plugins:
    loaded = Plugins(entry_points=False)
    for number, plugin in enumerate(plugins):
        loaded.register(plugin, f"inline_{number}")
    return loaded


def planner_with(
    *plugins: object, tokenizer: StandInTokenizer | None = None, limit: int | None = None, **settings: Any
) -> Planner:
    """A planner for a base model's tokenizer unless told otherwise."""
    loaded = plugins_with(*plugins) if plugins else built_in()
    return Planner(RefineConfig(**settings), room_of(tokenizer or plain(), limit), loaded)


def recorder_with(*plugins: object, observe: bool = True, **settings: Any) -> Recorder:
    loaded = plugins_with(*plugins) if plugins else built_in()
    return Recorder(RefineConfig(**settings), loaded, observe=observe)


def asked(prompt: Prompt = "q", place: int = 0, *, step: int = 0, purpose: Purpose = "train", **more: Any) -> Question:
    return Question(GroupId(purpose, step, place), prompt, **more)


Scored = Any
"""What stands for a sample in the tests: a reward as a reward function returns it, or a sample by itself."""


def sampled(planner: Planner, scored: Iterable[Scored], planned: PlannedRound | None = None) -> list[Sample]:
    """One sample for each reward, with the texts ``sample 0``, ``sample 1`` ... of their group."""
    first = planned.first_index if planned else 0
    made: list[Sample] = []
    for number, reward in enumerate(scored, first):
        bare = reward if isinstance(reward, Sample) else Sample(f"sample {number}", num_tokens=number + 1)
        if planned is not None and planned.ask.show is not None and bare.prompt_ids is None:
            text = rendered(planner.room.tokenizer, planned.prompt)  # type: ignore[arg-type]
            bare = replace(bare, prompt_ids=tuple(planner.room.tokenizer.encode(text)))
        made.append(bare if isinstance(reward, Sample) else planner.scored(bare, reward))
    return made


def carried_out(
    planner: Planner, question: Question, num_slots: int, *rounds: Sequence[Scored], progress: Progress | None = None
) -> Group:
    """A group sampled as the planner says, with these rewards round by round; more rounds than it asks for are wrong."""
    left = list(rounds)
    group = planner.open(question, num_slots, progress)
    while True:
        group, planned = planner.next(group)
        if planned is None:
            assert not left, f"the group ended before the rounds {left}"
            return planner.close(group)
        assert left, f"the group asks for one more round: {planned}"
        rewards = left.pop(0)
        assert len(rewards) == planned.ask.size, planned
        group = planner.add(group, sampled(planner, rewards, planned), seconds=1.0)


def paper_group(
    planner: Planner, drafts: Sequence[Scored], refinements: Sequence[Scored], place: int = 0, prompt: Prompt = "q"
) -> Group:
    """A group of the mode ``paper`` with these rewards."""
    assert planner.config.num_drafts == len(drafts)
    return carried_out(planner, asked(prompt, place), len(refinements), drafts, refinements)
