"""What an author of a mode writes, and what a mode is told.

A complete mode, ten lines, that samples half of a group on q and the rest on q' that shows the longest of them::

    @dataclass(frozen=True)
    class ShowLongest(Mode):
        '''Half of the slots on q, the others on q' that shows the longest sample.'''

        def next(self, group: GroupSoFar) -> Round | End:
            if not group.rounds:
                return Round(group.num_slots // 2, Use.FILL)
            if not group.candidates:
                return group.without_refinement()
            longest = max(group.candidates, key=lambda sample: sample.num_tokens)
            return Round(group.slots_left, Use.FILL, show=longest.index, final=True)

Return the class from the hook ``register_modes``: ``{"show_longest": ShowLongest}``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from refine_wrapper.core.selection.draw import draw
from refine_wrapper.core.selection.interface import SelectionContext, Selector
from refine_wrapper.core.types import (
    Cause,
    End,
    PlannedRound,
    Progress,
    Question,
    Round,
    Sample,
    TrainUnder,
    Use,
)
from refine_wrapper.errors import ConfigError, NoDraftError, PluginError


@dataclass(frozen=True, slots=True)
class Tally:
    """How often one choice of a mode was tried on a group lately, and how often that group then had a right sample."""

    tried: int = 0
    solved: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What is the same for all groups of a run.

    Attributes:
        selector: The configured selector.
        selector_name: Its name.
        seed: Of every random choice.
        max_reward: The highest reward there is: a sample that has it is right.
        on_no_draft: What happens to a group that could not be refined.
        build_mode: Makes another mode by name and options, for modes that stand around one.
    """

    selector: Selector
    selector_name: str
    seed: int
    max_reward: float
    on_no_draft: Literal["plain", "skip", "error"]
    build_mode: Callable[[str, Mapping[str, Any]], Mode]


@dataclass(frozen=True, slots=True)
class GroupSoFar:
    """A group while it is sampled: all that a mode may decide by. Frozen; each round makes a new one.

    Attributes:
        question: What is asked, with the columns of its data set row.
        num_slots: S.
        rules: Of the run.
        progress: Of the run.
        samples: Samples of all rounds that are over, failed ones too, by index.
        rounds: Rounds so far.
        slots: Indices of the samples in slots.
        refused: Samples that could not be shown -> why (they do not fit, or the prompt has no place for one).
        remembered: Samples of the same question from earlier epochs, where the run keeps them.
        lately: What came out of each choice (``Round.arm``) in recent steps.
        end: The mode's last word, once it was said.
    """

    question: Question
    num_slots: int
    rules: Rules
    progress: Progress = field(default_factory=Progress)
    samples: tuple[Sample, ...] = ()
    rounds: tuple[PlannedRound, ...] = ()
    slots: tuple[int, ...] = ()
    refused: Mapping[int, Cause] = field(default_factory=dict[int, Cause])
    remembered: tuple[Sample, ...] = ()
    lately: Mapping[str, Tally] = field(default_factory=dict[str, Tally])
    end: End | None = None

    @property
    def slots_left(self) -> int:
        """Slots that nothing fills yet."""
        return self.num_slots - len(self.slots)

    @property
    def candidates(self) -> tuple[Sample, ...]:
        """Samples that may be shown: they have a reward and a text, and were not refused."""
        return tuple(sample for sample in self.samples if sample.usable and sample.index not in self.refused)

    @property
    def all_wrong(self) -> bool:
        """Whether no sample so far is right."""
        return not any(self.is_right(sample) for sample in self.samples)

    def is_right(self, sample: Sample) -> bool:
        """Whether a sample has the highest reward."""
        return sample.reward is not None and sample.reward >= self.rules.max_reward

    def of_round(self, number: int) -> tuple[Sample, ...]:
        """Samples of one round."""
        return tuple(sample for sample in self.samples if sample.round == number)

    def select(self, candidates: Sequence[Sample] | None = None) -> Sample:
        """The configured selector's choice among some candidates, by default all of them; there must be one.

        Raises:
            PluginError: If the selector chooses none of them.
        """
        context = SelectionContext(str(self.question.id), self.rules.seed, self.rules.max_reward)
        among = self.candidates if candidates is None else candidates
        chosen = self.rules.selector.select(among, context)
        if chosen not in among:
            raise PluginError(
                f"refine: selector {self.rules.selector_name!r} chose sample {getattr(chosen, 'index', chosen)!r} of "
                f"group {self.question.id}. Allowed are {[sample.index for sample in among]}."
            )
        return chosen

    def draw(self, purpose: str) -> float:
        """A number in [0, 1): the same on every rank, whatever the order of arrival."""
        return draw(self.rules.seed, str(self.question.id), purpose)

    def plain(self, reason: str, cause: Cause = Cause.MODE, *, trained: bool = True) -> Round:
        """Fill what is left on q, and end."""
        return Round(self.slots_left, Use.FILL, trained=trained, final=True, cause=cause, reason=reason)

    def without_refinement(self) -> Round:
        """What ``on_no_draft`` says for a group with nothing to show, or whose choice was refused.

        Raises:
            NoDraftError: If ``on_no_draft`` is ``error``.
        """
        cause = next(iter(self.refused.values()), Cause.NO_USABLE_DRAFT)
        if self.rules.on_no_draft == "error":
            failures = "; ".join(
                f"sample {s.index}: {s.outcome.value}{f' ({s.detail})' if s.detail else ''}" for s in self.samples
            )
            raise NoDraftError(
                f"refine: group {self.question.id} cannot be refined ({cause.value}) and on_no_draft is 'error'. "
                f"{failures}. Set on_no_draft to 'plain' or 'skip' to go on."
            )
        return self.plain(cause.value, cause, trained=self.rules.on_no_draft != "skip")

    def show_selected(
        self, size: int, *, train_under: TrainUnder = TrainUnder.SAMPLED, reason: str = "", arm: str = ""
    ) -> Round:
        """Fill ``size`` slots on q' that shows the selected candidate; without one, what ``on_no_draft`` says."""
        if self.refused or not self.candidates:
            return self.without_refinement()
        return Round(size, Use.FILL, self.select().index, train_under=train_under, final=True, reason=reason, arm=arm)


class Mode(ABC):
    """Decides, round by round, how the slots of a group are filled.

    Write a frozen dataclass whose fields are the options that users set in ``mode_options`` (a field ``num_drafts``
    without an option gets the setting of that name), and whose docstring says in one sentence what it does. ``next``
    must depend on its argument alone: every rank of a run, and every order of arrival, must come to the same answer.
    """

    @abstractmethod
    def next(self, group: GroupSoFar) -> Round | End:
        """The next round, or the end. A shown sample that cannot be shown is in ``group.refused`` when asked again."""

    def check(self, num_slots: int, rules: Rules) -> None:  # noqa: B027 - most modes have nothing to refuse
        """Refuse a group size it cannot work with.

        Raises:
            ConfigError: With the numbers to set.
        """

    def num_context(self, num_slots: int, rules: Rules) -> int:
        """Completions of a group beside those in its slots, at most: what ``match_budget`` takes out of the group."""
        return 0

    def may_take(self, rules: Rules) -> bool:
        """Whether samples that fill slots may lose them later (``End.takes``): hosts then hold rows until the end."""
        return False

    def context_first(self, rules: Rules) -> bool:
        """Whether the first round is context, which may be sampled from older weights (``draft_ahead``)."""
        return False

    def trains_under(self, rules: Rules) -> TrainUnder:
        """Which prompt its refinements are trained under, for hosts that must know at start."""
        return TrainUnder.SAMPLED


def check_split(mode: str, num_drafts: int, num_slots: int) -> None:
    """Refuse a first round that leaves no slot for refinements.

    Raises:
        ConfigError: With the numbers to set.
    """
    if not 0 < num_drafts < num_slots:
        raise ConfigError(
            f"refine: mode {mode!r} samples num_drafts={num_drafts} of the {num_slots} completions of a group on the "
            f"question and the others as refinements, so num_drafts must be from 1 to {num_slots - 1}. Set "
            f"--refine.num_drafts {max(1, num_slots // 2)}, or raise the group size to {num_drafts * 2}."
        )
