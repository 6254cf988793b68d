"""Text with ``{question}`` and ``{draft}`` in it, filled in one pass, so that nothing in a value is ever evaluated."""

from __future__ import annotations

import re
from dataclasses import dataclass

from refine_wrapper.errors import TemplateError
from refine_wrapper.nearest import did_you_mean

VARIABLES = ("question", "draft")
_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class VariableText:
    r"""A parsed text. ``{{`` and ``}}`` stand for braces; other braces (``\boxed{}``) stay as they are.

    Attributes:
        pieces: Literal texts and variables in turn; the variables are the odd ones.
    """

    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> VariableText:
        """Parse, or raise TemplateError naming ``where`` and the unknown variable."""
        pieces = [""]
        position = 0
        for match in _TOKEN.finditer(text):
            pieces[-1] += text[position : match.start()]
            position = match.end()
            name = match.group(1)
            if name is None:
                pieces[-1] += match.group()[0]
                continue
            if name not in VARIABLES:
                raise TemplateError(
                    f"refine: {where} uses the unknown variable {{{name}}}. {did_you_mean(name, VARIABLES)} "
                    f"For the literal text write {{{{{name}}}}}."
                )
            pieces += [name, ""]
        pieces[-1] += text[position:]
        return cls(tuple(pieces))

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables it uses, in order, with repetitions."""
        return self.pieces[1::2]

    def fill(self, *, question: str, draft: str) -> str:
        """The text with both variables replaced by their values."""
        values = {"question": question, "draft": draft}
        return "".join(values[piece] if index % 2 else piece for index, piece in enumerate(self.pieces))

    def split_at_question(self) -> tuple[VariableText, VariableText] | None:
        """What stands before and after the first ``{question}``, or None if there is none."""
        for index in range(1, len(self.pieces), 2):
            if self.pieces[index] == "question":
                return VariableText(self.pieces[:index]), VariableText(self.pieces[index + 1 :])
        return None
