"""Arithmetic of completions and tokens: what matches the baseline, what fits, and the sentences that say so."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from refine_wrapper.errors import BudgetError


@dataclass(frozen=True, slots=True)
class CompletionBudget:
    """Completions per prompt of a refined run against the plain run it replaces.

    Attributes:
        num_context: Completions beside those in slots, at most (``Mode.num_context``; N in mode paper).
        num_slots: S, the host's group size in the refined run.
        baseline: Completions per prompt that the plain run samples.
    """

    num_context: int
    num_slots: int
    baseline: int

    @property
    def completions(self) -> int:
        """All completions of a group, at most."""
        return self.num_context + self.num_slots

    @property
    def matched(self) -> bool:
        """Whether both runs sample the same number of completions per prompt."""
        return self.completions == self.baseline

    def describe(self) -> str:
        """One sentence for the screen."""
        if not self.num_context:
            total = f"{self.num_slots} completions per prompt, all of them trained"
        else:
            total = (
                f"N={self.num_context} drafts + G={self.num_slots} refinements = {self.completions} completions per "
                "prompt"
            )
        if self.matched:
            return f"{total}, as many as the plain run samples"
        return f"{total}; the plain run samples {self.baseline}"


def matched_group_size(baseline: int, num_drafts: int, *, smallest: int = 2) -> int:
    """G such that N + G equals the baseline's group size (the paper: 8 = 4 + 4).

    Raises:
        BudgetError: If fewer than ``smallest`` refinements would be left; group-relative objectives need two.
    """
    group_size = baseline - num_drafts
    if group_size < smallest:
        fewer = f"Set num_drafts to at most {baseline - smallest}, raise" if baseline > smallest else "Raise"
        raise BudgetError(
            f"refine: {num_drafts} drafts leave {max(0, group_size)} refinements of a group of {baseline}; at least "
            f"{smallest} are needed. {fewer} the group size to at least {num_drafts + smallest}, or switch "
            "match_budget off."
        )
    return group_size


def matched_batch_size(rows: int, baseline: int, num_drafts: int, *, setting: str, smallest: int = 2) -> int:
    """Rows per device that hold the same number of prompts once groups shrink from the baseline to G.

    Args:
        rows: Completions per device and step of the plain run.
        baseline: Group size of the plain run.
        num_drafts: N.
        setting: Name of the host's setting, for the message.
        smallest: As in :func:`matched_group_size`.

    Raises:
        BudgetError: If the number does not come out whole.
    """
    group_size = matched_group_size(baseline, num_drafts, smallest=smallest)
    if rows * group_size % baseline:
        step = baseline // gcd(baseline, group_size)
        nearest = sorted({max(step, rows // step * step), (rows // step + 1) * step})
        raise BudgetError(
            f"refine: match_budget cannot keep the prompts per step: {setting}={rows} x {group_size}/{baseline} is "
            f"not whole. "
            f"Set {setting} to a multiple of {step}, for example "
            f"{' or '.join(map(str, nearest))}."
        )
    return rows * group_size // baseline


def prompt_room(max_model_tokens: int | None, max_answer_tokens: int | None) -> int | None:
    """The longest prompt that leaves room for a full answer; None where the model has no limit.

    With no cap on the answer at least one token must fit.
    """
    if max_model_tokens is None:
        return None
    return max_model_tokens - (max_answer_tokens or 1)


def check_room(
    max_prompt_tokens: int | None,
    *,
    overhead_tokens: int,
    draft_tokens: int | None,
    answer_tokens: int | None,
    model_setting: str,
    answer_setting: str,
) -> None:
    """Refuse, before anything is sampled, lengths that cannot hold any q'.

    Args:
        max_prompt_tokens: From :func:`prompt_room`.
        overhead_tokens: What the template adds beside the draft.
        draft_tokens: The configured ``draft_tokens``; None counts as one token.
        answer_tokens: The longest answer.
        model_setting: Name of the host's setting for the model's length.
        answer_setting: Name of the host's setting for the answer's length.

    Raises:
        BudgetError: With the smallest numbers that would work for a question of one token.
    """
    if max_prompt_tokens is None:
        return
    needed = 1 + overhead_tokens + (draft_tokens or 1)
    if max_prompt_tokens < needed:
        model_length = max_prompt_tokens + (answer_tokens or 1)
        shortest = needed + (answer_tokens or 1)
        fixes = [f"raise {model_setting} to at least {shortest} plus the length of your questions"]
        if model_length > needed:
            fixes.append(f"or lower {answer_setting} to at most {model_length - needed} less that length")
        room_for_draft = max_prompt_tokens - 1 - overhead_tokens
        if draft_tokens is not None and room_for_draft >= 1:
            fixes.append(f"or lower refine.draft_tokens to at most {room_for_draft} less that length")
        raise BudgetError(
            f"refine: {model_setting}={model_length} cannot hold a refined prompt: {answer_setting}={answer_tokens} "
            f"leaves "
            f"{max(0, max_prompt_tokens)} tokens, and the template ({overhead_tokens}), the draft "
            f"({draft_tokens or 'at least 1'}) and a "
            f"question need {needed} or more. {fixes[0][0].upper()}{', '.join(fixes)[1:]}."
        )
