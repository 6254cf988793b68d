"""From scored answers to figures with standard errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refine_wrapper.core.types import Outcome
from refine_wrapper.study.evaluation.settings import MEASURES, SINGLE_SHOT, WITH_DRAFT, WITH_ORACLE_DRAFT
from refine_wrapper.study.evaluation.statistics import (
    Estimate,
    mean_over_problems,
    of_share,
    pass_at,
    powers_of_two,
    ratio_over_problems,
)

_NOT_APPLIED = Outcome.NO_REWARD.value
Record = Mapping[str, Any]
Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """What came out for one measure.

    Attributes:
        figures: Name (``avg@4``, ``pass@2``, ``reward`` ...) -> estimate.
        per_problem: Id of a problem -> share of its samples that are right, for comparisons paired by problem.
        counts: Completions, tokens, answers without a reward, and answers on the plain question by cause.
    """

    figures: Mapping[str, Estimate]
    per_problem: Mapping[str, float]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """A finished measurement.

    Attributes:
        measures: By name, in the order of ``EvaluationSettings.measures``.
        identity: Model, data, settings, reward, engine and versions that it was made with.
        num_problems: Problems that were asked.
        unscored: Of these, problems that the reward does not apply to; they are in no figure.
        skipped: Problems that were left out because the question is too long.
    """

    measures: Mapping[str, Measure]
    identity: Mapping[str, Any]
    num_problems: int
    unscored: int = 0
    skipped: int = 0

    def accuracy(self, measure: str = SINGLE_SHOT) -> Estimate:
        """avg@k of a measure."""
        return next(iter(self.measures[measure].figures.values()))

    def __str__(self) -> str:
        lines = [f"{self.num_problems} problems"]
        for name, measure in self.measures.items():
            figure, estimate = next(iter(measure.figures.items()))
            lines.append(f"{name} {figure} {estimate}")
        return "; ".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        return {
            "format": 1,
            **self.identity,
            "num_problems": self.num_problems,
            "unscored": self.unscored,
            "skipped": self.skipped,
            "measures": {
                name: {
                    "what": MEASURES[name],
                    "figures": {figure: asdict(estimate) for figure, estimate in measure.figures.items()},
                    "counts": dict(measure.counts),
                }
                for name, measure in self.measures.items()
            },
        }


def summarize(
    records: Sequence[Record],
    measures: Iterable[str],
    correct_at: float,
    identity: Mapping[str, Any],
    *,
    skipped: int = 0,
) -> Evaluation:
    """All figures of the records of an evaluation.

    An answer is right if its reward is at least ``correct_at``; one whose reward failed is not. A problem is left out
    where the reward said None to every answer: it does not apply there.
    """
    names = tuple(measures)
    applies = [r for r in records if any(a.get("failure") != _NOT_APPLIED for name in names for a in r[name])]
    return Evaluation(
        {name: _measure(name, applies, correct_at) for name in names},
        identity,
        len(records),
        len(records) - len(applies),
        skipped,
    )


def _measure(name: str, records: Sequence[Record], correct_at: float) -> Measure:
    def right(answer: Answer) -> bool:
        return answer["reward"] is not None and answer["reward"] >= correct_at

    def share(of: Callable[[Answer], float], answers: Sequence[Answer]) -> float:
        return sum(map(of, answers)) / len(answers)

    answers_P = [record[name] for record in records]
    samples = len(answers_P[0]) if answers_P else 1
    right_P = [share(right, answers) for answers in answers_P]
    figures = {f"avg@{samples}": of_share(mean_over_problems(right_P))}
    for k in powers_of_two(samples):
        passed_P = [pass_at(samples, sum(map(right, answers)), k) for answers in answers_P]
        figures[f"pass@{k}"] = of_share(mean_over_problems(passed_P))
    rewards_P = [[a["reward"] for a in answers if a["reward"] is not None] for answers in answers_P]
    figures["reward"] = mean_over_problems([sum(rewards) / len(rewards) for rewards in rewards_P if rewards])
    figures["tokens"] = mean_over_problems([share(lambda a: a["tokens"], answers) for answers in answers_P])
    finished_P = [share(lambda a: a["finished"], answers) for answers in answers_P]
    figures["finished"] = of_share(mean_over_problems(finished_P))
    if name != SINGLE_SHOT:
        figures |= _beside_drafts(name, records, right_P, right)
    everything = [answer for answers in answers_P for answer in answers]
    counts = Counter({"completions": len(everything), "tokens": sum(answer["tokens"] for answer in everything)})
    counts["without_reward"] = sum(answer["reward"] is None for answer in everything)
    counts.update(f"plain/{answer['plain']}" for answer in everything if answer.get("plain"))
    ids = [str(record["id"]) for record in records]
    return Measure(figures, dict(zip(ids, right_P, strict=True)), dict(counts))


def _beside_drafts(
    name: str, records: Sequence[Record], right_P: Sequence[float], right: Callable[[Answer], bool]
) -> dict[str, Estimate]:
    """What the draft did: the difference to single-shot, and which answers it changed."""
    single_P = [sum(map(right, record[SINGLE_SHOT])) / len(record[SINGLE_SHOT]) for record in records]
    differences_P = [mine - alone for mine, alone in zip(right_P, single_P, strict=True)]
    drafts_P = [_drafts_of(record, name) for record in records]
    pairs_P = [
        [(right(draft), right(answer)) for draft, answer in zip(drafts, record[name], strict=True) if draft is not None]
        for drafts, record in zip(drafts_P, records, strict=True)
    ]
    copies_P = [[a["copied"] for a in record[name] if "copied" in a] for record in records]
    return {
        "minus_single_shot": mean_over_problems(differences_P),
        "copied": of_share(ratio_over_problems([sum(c) for c in copies_P], [len(c) for c in copies_P])),
        "repaired": _share_of(pairs_P, lambda draft, answer: not draft, lambda draft, answer: answer),
        "broken": _share_of(pairs_P, lambda draft, answer: draft, lambda draft, answer: not answer),
    }


def _drafts_of(record: Record, name: str) -> list[Answer | None]:
    """The draft beside each answer; None where the answer is on the plain question."""
    drafts = [*record[SINGLE_SHOT], *record.get("more_drafts", ())]
    assert name in (WITH_DRAFT, WITH_ORACLE_DRAFT)
    return [None if answer.get("plain") else drafts[answer["draft"]] for answer in record[name]]


def _share_of(
    pairs_P: Sequence[Sequence[tuple[bool, bool]]],
    among: Callable[[bool, bool], bool],
    counted: Callable[[bool, bool], bool],
) -> Estimate:
    chosen_P = [[pair for pair in pairs if among(*pair)] for pairs in pairs_P]
    counted_P = [sum(counted(*pair) for pair in chosen) for chosen in chosen_P]
    return of_share(ratio_over_problems(counted_P, [len(chosen) for chosen in chosen_P]))
