from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from refine_wrapper.core.selection.interface import SelectionContext, reward_of
from refine_wrapper.core.types import Sample
from refine_wrapper.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WorstFormatted:
    r"""The worst of the well-formed drafts. A follow-up found more gradient-active groups (2 seeds, rejected).

    Well-formed means ended by itself (not at the length limit) and, where ``pattern`` is set, found by that regular
    expression, for example ``\\boxed\{`` or ``<answer>.*</answer>``. No draft is well-formed: the worst of all.
    Ties: the lowest draft index.
    """

    pattern: str = ""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, TypeError, OverflowError) as error:
            raise ConfigError(
                f"refine: selector_options pattern = {self.pattern!r} is no regular expression: {error}."
            ) from None

    def select(self, drafts: Sequence[Sample], context: SelectionContext) -> Sample:
        well_formed = [
            draft for draft in drafts if draft.finished and re.search(self.pattern, draft.visible, re.DOTALL)
        ]
        return min(well_formed or drafts, key=reward_of)
