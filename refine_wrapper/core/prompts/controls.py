"""A draft is data: texts that a tokenizer would read as control tokens are broken up before they enter a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from refine_wrapper.core.types import Tokenizer

MARK: Final = re.compile(r"<[^<>\n]{1,60}>|\[/?[A-Za-z_]+\]|###[^\n:]*:")
"""What chat templates write to open and close turns, as far as it looks like nothing else."""
_ROUNDS: Final = 8
_UNICODE_FORMS: Final = ("NFC", "NFD", "NFKC", "NFKD")
"""Normalisers that leave ASCII as it is."""


@dataclass(frozen=True, slots=True)
class ControlTexts:
    """The texts a draft must not contain, for one tokenizer and the marks of turns.

    Attributes:
        texts: Special and added tokens, and turn marks that a chat template writes as ordinary text (``[/INST]``).
        token_ids: Ids that the encoding of a draft must not contain.
        pattern: Matches any of the texts, the longest first; None where there are none.
        normalise: What the tokenizer does to a text before it looks for tokens in it, where the tokenizer says so.
        normalised_pattern: Matches any of the texts as ``normalise`` leaves them.
    """

    texts: tuple[str, ...]
    token_ids: frozenset[int]
    pattern: re.Pattern[str] | None
    tokenizer: Tokenizer
    normalise: Callable[[str], str] | None
    normalised_pattern: re.Pattern[str] | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, markers: Iterable[str] = ()) -> ControlTexts:
        """Collect them from a tokenizer, and from the pieces that a chat template writes between turns."""
        # Runs of spaces are added tokens in some vocabularies (code models); they control nothing.
        added = {text: token_id for text, token_id in tokenizer.get_added_vocab().items() if text.strip()}
        special = {text for text in special_texts(tokenizer) if text.strip()}
        controls = special | set(added)
        token_ids = {*added.values(), *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        texts = controls | _markers(markers, any_of(controls))
        normalise = _normalisation(tokenizer)
        normalised = {normalise(text) for text in texts} if normalise is not None else set[str]()
        return cls(
            tuple(sorted(texts, key=lambda text: (-len(text), text))),
            frozenset(token_ids),
            any_of(texts),
            tokenizer,
            normalise,
            any_of({*texts, *(text for text in normalised if text.strip())}),
        )

    def neutralise(self, text: str) -> str:
        """The text with every control text broken by a space after its first character, checked for its tokens.

        What a space cannot break (a control token of one character, a tokenizer that skips spaces) is removed.
        """
        if self.pattern is None:
            return text
        text = self.broken(text)
        if self._cannot_encode_to_control(text):
            return text
        for _ in range(_ROUNDS):
            token_ids = self.tokenizer.encode(text, add_special_tokens=False)
            if self.token_ids.isdisjoint(token_ids):
                return text
            # No control text is spelled, yet a control token comes out: the tokenizer normalises (case, spaces).
            kept = [token_id for token_id in token_ids if token_id not in self.token_ids]
            text = self.broken(self.tokenizer.decode(kept, skip_special_tokens=True))
        return ""

    def broken(self, text: str) -> str:
        """The text with every control text broken, not yet checked for its tokens."""
        if self.pattern is None:
            return text
        for round_number in range(2 * _ROUNDS):
            broken = self.pattern.sub(_break if round_number < _ROUNDS else "", text)
            if broken == text:
                return text
            text = broken
        return ""

    def _cannot_encode_to_control(self, text: str) -> bool:
        """Whether the tokenizer's own rules say so, which saves encoding a text only to look.

        A control token comes out of a fast tokenizer only where its text is spelled, as written or as normalised.
        """
        if self.normalise is None:
            return False
        return self.normalised_pattern is None or not self.normalised_pattern.search(self.normalise(text))


def special_texts(tokenizer: Tokenizer) -> set[str]:
    """Texts of the tokens that decoding may drop: those with a name, and others that are marked as special."""
    added: Any = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {*map(str, tokenizer.all_special_tokens), *(str(token) for token in added.values() if token.special)}


def any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that matches any of the texts, the longest that does; None for no texts.

    Written as a tree of common beginnings: some vocabularies have thousands of control tokens, and an alternation of
    them all would be tried at each ``<``.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for letter in text:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_expression(tree)) if tree else None


def _expression(node: dict[str, Any]) -> str:
    if set(node) == {""}:
        return ""
    branches = [re.escape(letter) + _expression(following) for letter, following in node.items() if letter]
    if len(branches) == 1 and "" not in node:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if '' in node else ''}"


def _markers(pieces: Iterable[str], controls: re.Pattern[str] | None) -> set[str]:
    # Between control tokens stands the name of a role (`user`), which is a word like any other, or a marker (`[INST]`),
    # which is not.
    markers: set[str] = set()
    for piece in pieces:
        for part in controls.split(piece) if controls is not None else [piece]:
            marker = part.strip()
            if len(marker) > 1 and (part == piece or re.search(r"[^\w\s]", marker)):
                markers.add(marker)
            # Of another family than the tokenizer's, all marks are ordinary text.
            markers |= set(MARK.findall(part))
    return markers


def _normalisation(tokenizer: Tokenizer) -> Callable[[str], str] | None:
    """What a fast tokenizer (of the ``tokenizers`` library) does to a text first. None: a tokenizer of another kind."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "normalizer"):
        return None
    normalizer: Any = backend.normalizer
    if normalizer is None:
        return _as_it_is
    normalise: Callable[[str], str] = normalizer.normalize_str
    if type(normalizer).__name__ in _UNICODE_FORMS:
        return lambda text: text if text.isascii() else normalise(text)
    return normalise


def _as_it_is(text: str) -> str:
    return text


def _break(match: re.Match[str]) -> str:
    control = match.group()
    if control[0].isalpha() and control.endswith(":"):
        return f"{control[:-1]} :"  # a speaker's name, as in "User:"
    return f"{control[0]} {control[1:]}" if len(control) > 1 else ""
