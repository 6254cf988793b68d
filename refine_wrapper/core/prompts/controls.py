"""A draft is data: texts that a tokenizer would read as control tokens are broken up before they enter a prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass

from refine_wrapper.core.prompts.chat_frame import ChatFrame
from refine_wrapper.core.types import Tokenizer

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class ControlTexts:
    """The texts a draft must not contain, for one tokenizer and chat template.

    Attributes:
        texts: Special and added tokens, and turn markers that a chat template writes as ordinary text (``[/INST]``).
        token_ids: Ids that the encoding of a draft must not contain.
    """

    texts: tuple[str, ...]
    token_ids: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, frame: ChatFrame | None = None) -> ControlTexts:
        """Collect them from a tokenizer."""
        # Runs of spaces are added tokens in some vocabularies (code models); they control nothing.
        added = {text: token_id for text, token_id in tokenizer.get_added_vocab().items() if text.strip()}
        special = {str(text) for text in tokenizer.all_special_tokens if str(text).strip()}
        controls = special | set(added)
        unknown = tokenizer.unk_token_id
        token_ids = {*added.values(), *tokenizer.all_special_ids} - {unknown}
        markers: set[str] = set()
        for piece in frame.turn_markers() if frame is not None else ():
            # Between control tokens stands the name of a role (`user`), which is a word like any other, or a marker
            # (`[INST]`), which is not.
            for part in _split_at(controls, piece):
                marker = part.strip()
                if len(marker) > 1 and (part == piece or re.search(r"[^\w\s]", marker)):
                    markers.add(marker)
        return cls(tuple(sorted(controls | markers, key=lambda text: (-len(text), text))), frozenset(token_ids))

    def neutralise(self, text: str, tokenizer: Tokenizer) -> str:
        """The text with every control text broken by a space after its first character, checked on its tokens.

        What a space cannot break (a control token of one character, a tokenizer that skips spaces) is removed.
        """
        if not self.texts:
            return text
        pattern = re.compile("|".join(re.escape(control) for control in self.texts))
        for round_number in range(_ROUNDS):
            broken = pattern.sub(_break if round_number < _ROUNDS // 2 else "", text)
            if broken == text and not self._encodes_to_control(text, tokenizer):
                return text
            if broken == text:
                # No control text is spelled, yet a control token comes out: the tokenizer normalises (case, spaces).
                pattern, broken = self._removal(tokenizer, text)
            text = broken
        return "" if pattern.search(text) or self._encodes_to_control(text, tokenizer) else text

    def _encodes_to_control(self, text: str, tokenizer: Tokenizer) -> bool:
        return not self.token_ids.isdisjoint(tokenizer.encode(text, add_special_tokens=False))

    def _removal(self, tokenizer: Tokenizer, text: str) -> tuple[re.Pattern[str], str]:
        kept = [i for i in tokenizer.encode(text, add_special_tokens=False) if i not in self.token_ids]
        pattern = re.compile("|".join(re.escape(control) for control in self.texts))
        return pattern, tokenizer.decode(kept, skip_special_tokens=True)


def _split_at(controls: set[str], piece: str) -> list[str]:
    longest_first = sorted(controls, key=len, reverse=True)
    return re.split("|".join(map(re.escape, longest_first)), piece) if controls else [piece]


def _break(match: re.Match[str]) -> str:
    control = match.group()
    return f"{control[0]} {control[1:]}" if len(control) > 1 else ""
