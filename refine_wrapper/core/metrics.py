"""One set of metric names for all hosts, as a table: name, meaning, computation. docs/metrics.md comes from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from statistics import fmean
from typing import Final

from refine_wrapper.core.types import Cause, Group, Outcome, Sample


class Batch:
    """Finished groups, and what several metrics need of them.

    Groups that dynamic sampling replaced count in what was sampled (``everything_P``), and in nothing else.
    """

    def __init__(self, groups_P: Sequence[Group], max_reward: float, extract_answer: Callable[[str], str]) -> None:
        self.everything_P = tuple(groups_P)
        self.groups_P = tuple(group for group in groups_P if not group.replaced)
        self.max_reward = max_reward
        self.extract_answer = extract_answer

    @cached_property
    def refined(self) -> list[Group]:
        return [group for group in self.groups_P if group.refined]

    @cached_property
    def with_drafts(self) -> list[Group]:
        return [group for group in self.groups_P if group.drafts]

    @cached_property
    def drafts(self) -> list[Sample]:
        return [sample for group in self.groups_P for sample in group.drafts]

    @cached_property
    def all_wrong(self) -> list[Group]:
        """Groups none of whose drafts is right."""
        return [group for group in self.with_drafts if not any(map(self.is_right, group.drafts))]

    def is_right(self, sample: Sample) -> bool:
        return sample.reward is not None and sample.reward >= self.max_reward

    def shown_right(self, group: Group) -> bool:
        shown = group.last_shown()
        return shown is not None and self.is_right(shown)

    def copies(self, group: Group) -> list[bool]:
        """For each refinement whether its answer is that of what its prompt showed, thinking left out of both."""
        answers = {planned.number: self.extract_answer(planned.shown_text) for planned in group.rounds}
        # An answer that was cut off is no answer: two of them are no copies.
        return [
            answers[sample.round] != "" and self.extract_answer(sample.visible) == answers[sample.round]
            for sample in group.refinements
        ]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it says, and how it comes from a batch (None: it has no value there and is left out)."""

    meaning: str
    compute: Callable[[Batch], float | None]


def _mean(values: Iterable[float | bool | None]) -> float | None:
    listed = [float(value) for value in values if value is not None]
    return fmean(listed) if listed else None


def _rewards(samples: Iterable[Sample]) -> list[float]:
    return [sample.reward for sample in samples if sample.reward is not None and isfinite(sample.reward)]


def _uplift(group: Group) -> float | None:
    refinements, drafts = _rewards(group.refinements), _rewards(group.drafts)
    return fmean(refinements) - fmean(drafts) if refinements and drafts else None


def _shown_reward(group: Group) -> float | None:
    shown = group.last_shown()
    return None if shown is None else shown.reward


def _active_share(groups: Iterable[Group]) -> float | None:
    return _mean(gradient_active(group) for group in groups if group.slots_S)


def _tokens(samples: Iterable[Sample]) -> int:
    return sum(sample.num_tokens for sample in samples)


def _later_seconds(group: Group) -> float:
    """Wall time of the rounds after the drafts; of a group without drafts, of all rounds."""
    return sum(planned.seconds for planned in group.rounds[bool(group.drafts) :])


METRICS: Final[Mapping[str, Metric]] = {
    "refine/groups": Metric("Groups in the batch.", lambda b: len(b.groups_P)),
    "refine/refined_share": Metric(
        "Share of groups with samples on q', checked on the tokens that were sampled on.",
        lambda b: _mean(group.refined for group in b.groups_P),
    ),
    "refine/draft_reward_mean": Metric(
        "Mean reward of all drafts (samples of a first round that others can follow) that have one.",
        lambda b: _mean(sample.reward for sample in b.drafts),
    ),
    "refine/draft_reward_best": Metric(
        "Mean over groups of the highest draft reward.",
        lambda b: _mean(max(rewards) for group in b.with_drafts if (rewards := _rewards(group.drafts))),
    ),
    "refine/draft_reward_selected": Metric(
        "Mean reward of the samples that were shown last.", lambda b: _mean(map(_shown_reward, b.refined))
    ),
    "refine/draft_solve_rate": Metric(
        "Share of drafts that are right (at max_reward).", lambda b: _mean(map(b.is_right, b.drafts))
    ),
    "refine/all_wrong_share": Metric(
        "Share of groups with drafts none of which is right.",
        lambda b: len(b.all_wrong) / len(b.with_drafts) if b.with_drafts else None,
    ),
    "refine/repair_rate": Metric(
        "Share of refinements that are right, in groups whose drafts are all wrong.",
        lambda b: _mean(b.is_right(sample) for group in b.all_wrong for sample in group.refinements),
    ),
    "refine/repaired_share": Metric(
        "Share of groups with refinements and only wrong drafts that gained a right refinement.",
        lambda b: _mean(any(map(b.is_right, group.refinements)) for group in b.all_wrong if group.refined),
    ),
    "refine/refinement_reward": Metric(
        "Mean reward of the refinements.",
        lambda b: _mean(reward for group in b.refined for reward in _rewards(group.refinements)),
    ),
    "refine/uplift": Metric(
        "Refinement reward minus draft reward, mean over refined groups.", lambda b: _mean(map(_uplift, b.refined))
    ),
    "refine/gradient_active_share": Metric(
        "Share of trained groups whose rewards differ, so that they have a gradient.",
        lambda b: _active_share(group for group in b.groups_P if group.trained),
    ),
    "refine/gradient_active_share_draft_max": Metric(
        "The same, among refined groups that were shown a right sample.",
        lambda b: _active_share(group for group in b.refined if b.shown_right(group)),
    ),
    "refine/gradient_active_share_draft_below_max": Metric(
        "The same, among refined groups that were shown a wrong sample.",
        lambda b: _active_share(group for group in b.refined if not b.shown_right(group)),
    ),
    "refine/copy_rate": Metric(
        "Share of refinements whose answer equals the answer of what their prompt shows, thinking left out of both.",
        lambda b: _mean(copied for group in b.refined for copied in b.copies(group)),
    ),
    "refine/copy_rate_wrong": Metric(
        "The same, among refinements that were shown a wrong sample.",
        lambda b: _mean(copied for group in b.refined if not b.shown_right(group) for copied in b.copies(group)),
    ),
    "refine/trained_on_question": Metric(
        "Rows in the batch that were sampled on q' and are trained as answers to q.",
        lambda b: sum(slot.on_question for group in b.groups_P for slot in group.slots_S),
    ),
    "refine/draft_tokens": Metric(
        "Tokens generated for drafts in the batch, also of groups that dynamic sampling replaced.",
        lambda b: sum(_tokens(group.drafts) for group in b.everything_P),
    ),
    "refine/refinement_tokens": Metric(
        "Tokens generated after the drafts in the batch, also of replaced groups.",
        lambda b: sum(_tokens(group.samples) - _tokens(group.drafts) for group in b.everything_P),
    ),
    "refine/completions": Metric(
        "Completions sampled in the batch, in all rounds, also of replaced groups.",
        lambda b: sum(len(group.samples) for group in b.everything_P),
    ),
    "refine/drafts_shortened_share": Metric(
        "Share of refined groups whose shown sample was cut to fit.",
        lambda b: _mean(any(planned.shortened for planned in group.rounds) for group in b.refined),
    ),
    "refine/drafts_unfinished_share": Metric(
        "Share of drafts that ended at the length limit.", lambda b: _mean(not sample.finished for sample in b.drafts)
    ),
    "refine/stage1_seconds": Metric(
        "Wall time of the first round, mean over groups with drafts.",
        lambda b: _mean(group.rounds[0].seconds for group in b.with_drafts),
    ),
    "refine/stage2_seconds": Metric(
        "Wall time of the rounds after it, mean over groups.", lambda b: _mean(map(_later_seconds, b.groups_P))
    ),
    "refine/draft_failures": Metric(
        "Drafts in the batch that could not be shown, for any reason.",
        lambda b: sum(not sample.usable for sample in b.drafts),
    ),
    "refine/refinement_failures": Metric(
        "Samples in slots that got no usable reward.",
        lambda b: sum(not row.rewarded for group in b.groups_P for row in group.rows_S),
    ),
    "refine/fallbacks": Metric(
        "Groups in the batch that were not refined, for any reason.",
        lambda b: sum(group.cause is not None for group in b.groups_P),
    ),
    **{
        f"refine/draft_failures/{outcome.value}": Metric(
            f"Drafts that ended as `{outcome.value}` in the batch.",
            lambda b, outcome=outcome: sum(sample.outcome is outcome for sample in b.drafts),
        )
        for outcome in Outcome
        if outcome is not Outcome.OK
    },
    **{
        f"refine/fallbacks/{cause.value}": Metric(
            f"Groups not refined because of `{cause.value}` in the batch.",
            lambda b, cause=cause: sum(group.cause is cause for group in b.groups_P),
        )
        for cause in Cause
    },
}
"""Every metric of a batch of groups. One that has no value in a batch (no refined group, say) is left out of it."""

OTHER_METRICS: Final[Mapping[str, str]] = {
    "refine/observer_failures": "Failures of observers (plugins) and of the trace in the batch; training goes on.",
    "refine/inactive_groups": "With dynamic sampling: groups of the batch without a gradient at the first draw.",
    "refine/inactive_groups_kept": "With dynamic sampling: those of them that no other replaced within the limit.",
    "refine/resampling_rounds": "With dynamic sampling: further rounds of sampling for the batch.",
    "refine/resampled_groups": "With dynamic sampling: groups sampled in these rounds.",
    "refine/resampled_completions": "With dynamic sampling: completions of these groups, in all rounds.",
}
"""Metrics that do not come from groups: the recorder and dynamic sampling count them."""

MEANINGS: Final[Mapping[str, str]] = {
    **{name: metric.meaning for name, metric in METRICS.items()},
    **OTHER_METRICS,
}
"""Every metric and what it means."""


def summarize(
    groups_P: Sequence[Group], *, max_reward: float, extract_answer: Callable[[str], str]
) -> dict[str, float]:
    """The metrics of a batch of finished groups. Only names in :data:`METRICS`, only finite values."""
    batch = Batch(groups_P, max_reward, extract_answer)
    values = {name: metric.compute(batch) for name, metric in METRICS.items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def is_cause(name: str) -> bool:
    """Whether a metric counts one kind of failure; see :class:`CausesSeen`."""
    return name.startswith(("refine/draft_failures/", "refine/fallbacks/")) or name == "refine/observer_failures"


class CausesSeen:
    """Leaves counts of causes that never happened out of a run's metrics: a screen full of zeros hides what matters.

    From its first occurrence on a cause is kept, as 0 too, so that hosts that average over several batches average
    over all of them.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def keep(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics of one batch, without the causes that no batch had so far."""
        self._seen |= {name for name, value in metrics.items() if is_cause(name) and value}
        return {name: value for name, value in metrics.items() if not is_cause(name) or name in self._seen}


def gradient_active(group: Group) -> bool:
    """Whether the rewards of a group's slots differ: with equal rewards all group-relative advantages are zero."""
    return differ(_rewards(group.rows_S))


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

    def note(self, groups_P: Sequence[Group], metrics: Mapping[str, float]) -> None:
        """Take a batch into account; ``metrics`` are those of this batch."""
        refined = sum(group.refined for group in groups_P)
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
                f"the sample they were shown and only {mean_active:.0%} of the groups have a gradient (copy collapse). "
                "Consider mode=on_failure, selector=best_imperfect, refine_share below 1, or the plain objective.",
                stacklevel=2,
            )
