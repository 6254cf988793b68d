"""One set of metric names for all hosts. docs/metrics.md is generated from the table below."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Final

from refine_wrapper.core.types import Action, DraftOutcome, FallbackCause, GroupOutcome, Refinement

METRICS: Final[Mapping[str, str]] = {
    "refine/groups": "Groups in the batch.",
    "refine/refined_share": "Share of groups that were answered under q' (with a draft in the prompt).",
    "refine/draft_reward_mean": "Mean reward of all drafts that have one.",
    "refine/draft_reward_best": "Mean over groups of the highest draft reward.",
    "refine/draft_reward_selected": "Mean reward of the drafts that went into prompts.",
    "refine/refinement_reward": "Mean reward of the refinements of refined groups.",
    "refine/uplift": "Refinement reward minus draft reward, mean over refined groups.",
    "refine/gradient_active_share": "Share of trained groups whose rewards differ, so that they have a gradient.",
    "refine/gradient_active_share_draft_max": "The same, among refined groups whose draft is at max_reward already.",
    "refine/gradient_active_share_draft_below_max": "The same, among refined groups whose draft is below max_reward.",
    "refine/copy_rate": "Share of refinements whose answer equals the answer of the draft in their prompt.",
    "refine/draft_tokens": "Tokens generated for drafts in the batch, also of groups that dynamic sampling replaced.",
    "refine/refinement_tokens": "Tokens generated in Stage 2 in the batch, also of replaced groups.",
    "refine/completions": "Completions sampled in the batch, drafts and refinements, also of replaced groups.",
    "refine/drafts_shortened_share": "Share of refined groups whose draft was cut to fit.",
    "refine/drafts_unfinished_share": "Share of drafts that ended at the length limit.",
    "refine/stage1_seconds": "Wall time of Stage 1, mean over groups with drafts.",
    "refine/stage2_seconds": "Wall time of Stage 2, mean over groups.",
    "refine/draft_failures": "Drafts in the batch that could not be used, for any reason.",
    "refine/refinement_failures": "Refinements in the batch that got no usable reward.",
    "refine/fallbacks": "Groups in the batch that were not refined, for any reason.",
    "refine/inactive_groups": "With dynamic sampling: groups of the batch without a gradient at the first draw.",
    "refine/inactive_groups_kept": "With dynamic sampling: those of them that no other replaced within the limit.",
    "refine/resampling_rounds": "With dynamic sampling: further rounds of sampling for the batch.",
    "refine/resampled_groups": "With dynamic sampling: groups sampled in these rounds.",
    "refine/resampled_completions": "With dynamic sampling: completions of these groups, drafts and refinements.",
    **{
        f"refine/draft_failures/{outcome.value}": f"Drafts that ended as `{outcome.value}` in the batch."
        for outcome in DraftOutcome
        if outcome is not DraftOutcome.OK
    },
    **{
        f"refine/fallbacks/{cause.value}": f"Groups not refined because of `{cause.value}` in the batch."
        for cause in FallbackCause
    },
}
"""Every metric and what it means. A metric that has no value in a batch (no refined group, say) is left out of it."""


def summarize(
    outcomes_P: Sequence[GroupOutcome], *, max_reward: float, extract_answer: Callable[[str], str]
) -> dict[str, float]:
    """The metrics of a batch of finished groups. Only names in :data:`METRICS`, only finite values.

    Groups that dynamic sampling replaced count in what was sampled, and in nothing else.
    """
    everything, outcomes_P = outcomes_P, [outcome for outcome in outcomes_P if not outcome.replaced]
    refined = [outcome for outcome in outcomes_P if outcome.plan.action is Action.REFINE]
    drafts = [draft for outcome in outcomes_P for draft in outcome.plan.drafts_N]
    with_drafts = [outcome for outcome in outcomes_P if outcome.plan.drafts_N]
    at_max = {True: list[GroupOutcome](), False: list[GroupOutcome]()}
    for outcome in refined:
        at_max[_selected_reward(outcome) >= max_reward].append(outcome)

    def active_share(group: Iterable[GroupOutcome]) -> float | None:
        return _mean(gradient_active(outcome.refinements_G) for outcome in group if outcome.refinements_G)

    values: dict[str, float | None] = {
        "refine/groups": len(outcomes_P),
        "refine/refined_share": _mean(outcome.plan.action is Action.REFINE for outcome in outcomes_P),
        "refine/draft_reward_mean": _mean(d.reward for d in drafts if d.reward is not None),
        "refine/draft_reward_best": _mean(
            max(rewards)
            for o in with_drafts
            if (rewards := [d.reward for d in o.plan.drafts_N if d.reward is not None])
        ),
        "refine/draft_reward_selected": _mean(_selected_reward(outcome) for outcome in refined),
        "refine/refinement_reward": _mean(reward for o in refined for reward in _rewards(o.refinements_G)),
        "refine/uplift": _mean(uplift for outcome in refined if (uplift := _uplift(outcome)) is not None),
        "refine/gradient_active_share": active_share(o for o in outcomes_P if o.plan.trained),
        "refine/gradient_active_share_draft_max": active_share(at_max[True]),
        "refine/gradient_active_share_draft_below_max": active_share(at_max[False]),
        "refine/copy_rate": _mean(copied for outcome in refined for copied in _copies(outcome, extract_answer)),
        "refine/draft_tokens": sum(d.num_tokens for o in everything for d in o.plan.drafts_N),
        "refine/refinement_tokens": sum(r.num_tokens for o in everything for r in o.refinements_G),
        "refine/completions": sum(len(o.plan.drafts_N) + len(o.refinements_G) for o in everything),
        "refine/drafts_shortened_share": _mean(outcome.plan.draft_shortened for outcome in refined),
        "refine/drafts_unfinished_share": _mean(not draft.finished for draft in drafts),
        "refine/stage1_seconds": _mean(outcome.plan.stage1_seconds for outcome in with_drafts),
        "refine/stage2_seconds": _mean(outcome.stage2_seconds for outcome in outcomes_P),
    }
    failures = Counter(draft.outcome for draft in drafts)
    causes = Counter(outcome.plan.cause for outcome in outcomes_P)
    values["refine/draft_failures"] = len(drafts) - failures[DraftOutcome.OK]
    values["refine/refinement_failures"] = sum(bool(r.failure) for o in outcomes_P for r in o.refinements_G)
    values["refine/fallbacks"] = len(outcomes_P) - causes[None]
    for outcome in DraftOutcome:
        if outcome is not DraftOutcome.OK:
            values[f"refine/draft_failures/{outcome.value}"] = failures[outcome]
    for cause in FallbackCause:
        values[f"refine/fallbacks/{cause.value}"] = causes[cause]
    return {name: float(value) for name, value in values.items() if value is not None}


def is_cause(name: str) -> bool:
    """Whether a metric counts one kind of failure; see :class:`CausesSeen`."""
    return name.startswith(("refine/draft_failures/", "refine/fallbacks/"))


class CausesSeen:
    """Leaves counts of causes that never happened out of a run's metrics: a screen full of zeros hides what matters.

    From its first occurrence on a cause is kept, so that hosts that average over several batches average over all.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def keep(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics of one batch, without the causes that no batch had so far."""
        self._seen |= {name for name, value in metrics.items() if is_cause(name) and value}
        return {name: value for name, value in metrics.items() if not is_cause(name) or name in self._seen}


def gradient_active(refinements_G: Sequence[Refinement]) -> bool:
    """Whether the rewards of a group differ: with equal rewards all group-relative advantages are zero."""
    return differ(_rewards(refinements_G))


def differ(rewards: Iterable[float]) -> bool:
    """Whether the rewards of a group are not all equal, those left out that are no number."""
    known = [reward for reward in rewards if isfinite(reward)]
    return len(known) > 1 and max(known) - min(known) > 1e-8


class CopyWatch:
    """Warns once when refinements mostly copy the draft and few groups have a gradient left (copy collapse).

    Args:
        window: Number of refined groups over which both shares are taken.
        copy_rate: Copying above this share is high.
        active_share: Gradient-active groups below this share are few.
    """

    def __init__(self, *, window: int = 256, copy_rate: float = 0.8, active_share: float = 0.2) -> None:
        self._window, self._copy_limit, self._active_limit = window, copy_rate, active_share
        self._recent: list[tuple[int, float, float]] = []
        self._warned = False

    def note(self, outcomes_P: Sequence[GroupOutcome], metrics: Mapping[str, float]) -> None:
        """Take a batch into account; ``metrics`` are those of this batch."""
        refined = sum(outcome.plan.action is Action.REFINE for outcome in outcomes_P)
        copy_rate = metrics.get("refine/copy_rate")
        active = metrics.get("refine/gradient_active_share")
        if self._warned or not refined or copy_rate is None or active is None:
            return
        self._recent.append((refined, copy_rate, active))
        while len(self._recent) > 1 and sum(n for n, _, _ in self._recent[1:]) >= self._window:
            self._recent.pop(0)
        total = sum(n for n, _, _ in self._recent)
        mean_copy = sum(n * copied for n, copied, _ in self._recent) / total
        mean_active = sum(n * share for n, _, share in self._recent) / total
        if total >= self._window and mean_copy > self._copy_limit and mean_active < self._active_limit:
            self._warned = True
            warnings.warn(
                f"refine: over the last {total} refined groups {mean_copy:.0%} of the refinements repeat the answer of "
                f"the draft and only {mean_active:.0%} of the groups have a gradient (copy collapse). Consider "
                "selector=best_imperfect or worst_formatted, refine_share below 1, or the plain objective.",
                stacklevel=2,
            )


def _rewards(refinements_G: Sequence[Refinement]) -> list[float]:
    # A host may hand over NaN for "no reward applied".
    return [r.reward for r in refinements_G if r.reward is not None and isfinite(r.reward)]


def _selected_reward(outcome: GroupOutcome) -> float:
    selection = outcome.plan.selection
    assert selection is not None, "a refined group has a selected draft"
    assert selection.draft.reward is not None, "a selected draft has a reward"
    return selection.draft.reward


def _uplift(outcome: GroupOutcome) -> float | None:
    refinements = _rewards(outcome.refinements_G)
    drafts = [d.reward for d in outcome.plan.drafts_N if d.reward is not None]
    return fmean(refinements) - fmean(drafts) if refinements and drafts else None


def _copies(outcome: GroupOutcome, extract_answer: Callable[[str], str]) -> list[bool]:
    answer = extract_answer(outcome.plan.draft_text)
    return [extract_answer(refinement.text) == answer for refinement in outcome.refinements_G]


def _mean(values: Iterable[float]) -> float | None:
    listed = [float(value) for value in values]
    return fmean(listed) if listed else None
