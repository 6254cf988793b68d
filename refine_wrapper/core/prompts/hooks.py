"""The built-in templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from refine_wrapper.core.prompts.interface import Template
from refine_wrapper.core.prompts.turns import TurnTemplate
from refine_wrapper.plugins.hookspecs import hookimpl

_IMPROVE: Final = (
    "Check this attempt critically. Then solve the problem again from the start, correct any mistake, and give a "
    "complete, better answer in the form the problem asks for."
)
_APPEND: Final = f"{{question}}\n\nHere is an attempt at this problem. It may be wrong.\n\n{{draft}}\n\n{_IMPROVE}"


@hookimpl
def register_templates() -> Mapping[str, Template]:
    return {
        # Question, draft and instruction in the last user turn.
        "append": TurnTemplate.build("append", [_APPEND], _APPEND + "\n\n"),
        # The draft as the assistant's own answer: q and the draft keep their tokens, so a prefix cache serves them.
        "turns": TurnTemplate.build(
            "turns", ["{question}", "{draft}", _IMPROVE], f"{{question}}{{draft}}\n\n{_IMPROVE}\n\n"
        ),
    }
