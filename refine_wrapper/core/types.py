"""What crosses the seam between a host and the core. Frozen and pickleable, so that it also crosses processes.

Names and shape suffixes (``_P`` prompts, ``_N`` drafts, ``_G`` refinements, ``_T`` tokens) are defined in
CONTRIBUTING.md; q is the question as the data set has it, q' the question with an earlier sample shown in it.
A group has S slots, the places of its rows in the host's batch; rounds of samples fill them (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias

from refine_wrapper.messages import Message

Prompt: TypeAlias = "str | Sequence[Message]"
"""What the host trains on: text, or a conversation."""

Purpose: TypeAlias = Literal["train", "eval"]


def for_one_row(prompt: Prompt) -> Prompt:
    """The prompt with turns of its own: hosts and rollout functions add to a row's conversation in place."""
    return prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the core uses."""

    chat_template: Any
    all_special_tokens: list[str]
    all_special_ids: list[int]
    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...
    def get_added_vocab(self) -> Mapping[str, int]: ...
    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> Any: ...


@dataclass(frozen=True, slots=True, order=True)
class GroupId:
    """Identity of a group: the same on every rank and in a repeated run. Never derived from the prompt's text.

    Attributes:
        purpose: Training or evaluation.
        step: The trainer's step at which the group was sampled.
        place: Its number among the groups of that step.
        attempt: 0; 1 and up for groups that dynamic sampling draws in its place.
    """

    purpose: Purpose
    step: int
    place: int
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.purpose}-{self.step}-{self.place}" + (f"+{self.attempt}" if self.attempt else "")


@dataclass(frozen=True, slots=True)
class Question:
    """What a group is asked.

    Attributes:
        id: Identity of the group.
        prompt: q, as the host handed it over.
        columns: The other columns of its data set row.
        extra_tokens: Tokens that the host adds to the prompt besides its text (images, tool schemas).
    """

    id: GroupId
    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra_tokens: int = 0


class Outcome(str, Enum):
    """How a sample ended. Only ``OK`` samples can be shown; all others are counted in the metrics."""

    OK = "ok"
    EXCEPTION = "exception"
    """Sampling raised."""
    REWARD_EXCEPTION = "reward_exception"
    """Scoring raised."""
    TIMEOUT = "timeout"
    """Sampling or scoring took longer than ``draft_timeout``."""
    NO_REWARD = "no_reward"
    """Every reward function returned None."""
    NON_FINITE = "non_finite"
    """The reward is NaN or infinite."""
    WRONG_LENGTH = "wrong_length"
    """The reward function did not return one scalar per sample."""
    EMPTY = "empty"
    """No text is left to show once special tokens, and thinking if so configured, are removed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, from sampling to trace: first rounds, refinements and context alike.

    A host fills in what it sampled; ``Planner.scored`` adds the reward; the planner adds the rest when the sample
    joins its group.

    Attributes:
        text: Decoded text of the policy's own tokens, without special tokens.
        token_ids: These tokens, where the host has them.
        num_tokens: Tokens generated for it, thinking included.
        finished: It ended by itself (end-of-sequence), not at the length limit.
        reward: The scalar the trainer optimises, or None if there is none (see ``outcome``).
        outcome: How it ended.
        detail: For people: the exception's text, the wrong length.
        policy_version: Version of the weights that wrote it, where the host knows one.
        prompt_ids: Token ids of the prompt it was really sampled on, where the host has them; checked, then dropped.
        index: Its place among the samples of its group, round by round. Ties are broken by it, never by arrival.
        round: Number of its round.
        shown: Index of the sample that its prompt shows, or None: sampled on q.
        held: Whether ``prompt_ids`` really held the shown text; None where that was not checked.
        visible: Its text without thinking, if so configured: what may be shown, and what answers are compared in.
    """

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    num_tokens: int = 0
    finished: bool = True
    reward: float | None = None
    outcome: Outcome = Outcome.OK
    detail: str = ""
    policy_version: int | str | None = None
    prompt_ids: tuple[int, ...] | None = None
    index: int = 0
    round: int = 0
    shown: int | None = None
    held: bool | None = None
    visible: str = ""

    @property
    def usable(self) -> bool:
        """Whether it may be shown."""
        return self.outcome is Outcome.OK

    @property
    def rewarded(self) -> bool:
        """Whether it has a reward to train on."""
        return self.reward is not None


class Use(str, Enum):
    """What the samples of a round are for."""

    FILL = "fill"
    """They fill slots: they are trained."""
    CONTEXT = "context"
    """They are only looked at, and one of them may be shown. Never trained."""
    TAKE = "take"
    """Those that the mode names take the place of samples which filled slots before; the others are context."""


class TrainUnder(str, Enum):
    """Which prompt a sample is trained under that was sampled on q'."""

    SAMPLED = "sampled"
    """The prompt it was sampled on."""
    QUESTION = "question"
    """q."""
    QUESTION_IF_RIGHT = "question_if_right"
    """q where it has the highest reward, else the prompt it was sampled on."""


class Cause(str, Enum):
    """Why a group was not refined."""

    NOT_CHOSEN = "not_chosen"
    """``refine_share`` is below 1 and this group was left plain. Not a failure."""
    NO_USABLE_DRAFT = "no_usable_draft"
    """All samples that could be shown failed."""
    QUESTION_TOO_LONG = "question_too_long"
    """q alone leaves no room to answer: the host does with it what it always does."""
    NO_ROOM = "no_room"
    """q fits, q with the template and one token of a sample does not."""
    UNSUPPORTED_PROMPT = "unsupported_prompt"
    """The prompt has no place for a sample (no user turn, a chat template that hides it)."""
    MODE = "mode"
    """The mode decided so, for example because a sample was right already. Not a failure."""
    NOT_HELD = "not_held"
    """The host sampled on another prompt than the planned one: what was to be shown is not in its tokens."""


@dataclass(frozen=True, slots=True)
class Round:
    """A number of samples of one group under one prompt: what a mode asks for next.

    Attributes:
        size: How many samples.
        use: What they are for.
        show: Index of the earlier sample to show in the prompt; None: sample on q.
        train_under: Which prompt they are trained under, if they fill or take slots and ``show`` is set.
        trained: False: they fill slots, and the slots carry no gradient.
        final: Nothing is asked after this round, so hosts may leave scoring it to their own code.
        cause: Why the group is not refined, where the mode knows by now.
        reason: The same in words, for trace and report.
        arm: Which of its choices the mode tries, for modes that learn from what came out (``GroupSoFar.lately``).
    """

    size: int
    use: Use
    show: int | None = None
    train_under: TrainUnder = TrainUnder.SAMPLED
    trained: bool = True
    final: bool = False
    cause: Cause | None = None
    reason: str = ""
    arm: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """A mode's answer when a group needs no further round.

    Attributes:
        takes: Index of a sample that fills a slot -> index of the sample that takes its place.
        train_under: Which prompt samples that take slots are trained under.
        cause: Why the group was not refined, if it was not.
        reason: In words, for trace and report.
    """

    takes: Mapping[int, int] = field(default_factory=dict[int, int])
    train_under: TrainUnder = TrainUnder.QUESTION
    cause: Cause | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PlannedRound:
    """A round with its prompt built. Hosts carry it out; they decide nothing.

    Attributes:
        number: 0 for the first round of its group.
        first_index: Index of its first sample in the group.
        ask: What the mode asked for.
        prompt: What it is sampled on: q (the host's own object) or q'.
        shown_text: The shown sample as it stands in q' (neutralised, perhaps shortened).
        shortened: Whether it was cut to fit.
        priority: Place in the queue of an engine with priorities, lower first (``Planner.next``).
        seconds: Wall time of the round (of the batch, on synchronous hosts), once it is over.
    """

    number: int
    first_index: int
    ask: Round
    prompt: Prompt
    shown_text: str = ""
    shortened: bool = False
    priority: int = 0
    seconds: float = 0.0

    def row_prompt(self) -> Prompt:
        """The prompt for one row: its turns are not shared with other rows."""
        return for_one_row(self.prompt)


@dataclass(frozen=True, slots=True)
class Slot:
    """What fills one place of a group in the host's batch.

    Attributes:
        sample: Index of the sample.
        on_question: It is trained under q though it was sampled on q'.
        trained: Whether it carries a gradient.
    """

    sample: int
    on_question: bool = False
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """A finished group, as observers (metrics, trace, plugins) see it.

    Attributes:
        question: What was asked.
        mode: Name of the mode.
        num_slots: S.
        samples: All samples of all rounds, by index.
        rounds: The rounds, in order.
        slots_S: What fills its slots; shorter than S where samples are missing.
        cause: Why the group was not refined, or None.
        reason: Why the mode did what it did, in words.
        selector: Name of the selector that chose what was shown.
        num_tied: How many candidates had the same reward as the one that was shown last.
        step: The trainer's optimizer step at which the group was sampled.
        replaced: Dynamic sampling put another group in its place, or did not need it: sampled, but not trained.
    """

    question: Question
    mode: str
    num_slots: int
    samples: tuple[Sample, ...] = ()
    rounds: tuple[PlannedRound, ...] = ()
    slots_S: tuple[Slot, ...] = ()
    cause: Cause | None = None
    reason: str = ""
    selector: str = ""
    num_tied: int = 1
    step: int | None = None
    replaced: bool = False

    @property
    def id(self) -> GroupId:
        return self.question.id

    @property
    def rows_S(self) -> tuple[Sample, ...]:
        """The samples in its slots, in order."""
        return tuple(self.samples[slot.sample] for slot in self.slots_S)

    @property
    def drafts(self) -> tuple[Sample, ...]:
        """Samples of the first round where something could follow it; none of a group that was plain from the start."""
        if not self.rounds or self.rounds[0].ask.final:
            return ()
        return tuple(sample for sample in self.samples if sample.round == 0)

    @property
    def refinements(self) -> tuple[Sample, ...]:
        """Samples whose prompt showed an earlier one, unless it is known that it did not."""
        return tuple(sample for sample in self.samples if sample.shown is not None and sample.held is not False)

    @property
    def refined(self) -> bool:
        """Whether a sample was drawn on a prompt that shows an earlier one."""
        return bool(self.refinements)

    @property
    def trained(self) -> bool:
        """Whether the group carries a gradient as far as its mode is concerned."""
        return not self.replaced and any(slot.trained for slot in self.slots_S)

    @property
    def trainable(self) -> bool:
        """Whether the group can be trained: its mode says so, and every slot has a sample with a reward.

        A missing reward is not made up. For hosts whose reward path may fail on single samples.
        """
        return self.trained and len(self.slots_S) == self.num_slots and all(row.rewarded for row in self.rows_S)

    def last_shown(self) -> Sample | None:
        """The sample that the last round with one showed."""
        shown = [planned.ask.show for planned in self.rounds if planned.ask.show is not None]
        return self.samples[shown[-1]] if shown else None

    def slim(self) -> Group:
        """Without token ids, for the way to another process."""
        return replace(self, samples=tuple(replace(s, token_ids=None, prompt_ids=None) for s in self.samples))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is.

    Attributes:
        step: The trainer's step.
        of: How many there will be, where the host knows.
    """

    step: int = 0
    of: int | None = None

    @property
    def fraction(self) -> float:
        """From 0 at the start to 1 at the end; 0 where the number of steps is unknown."""
        return min(1.0, self.step / self.of) if self.of else 0.0


@dataclass(frozen=True, slots=True)
class PromptRoom:
    """How the host tokenises prompts, and how long one may get.

    Attributes:
        tokenizer: The policy's tokenizer.
        count_tokens: Number of tokens of a prompt exactly as the host will feed it to the policy.
        max_prompt_tokens: The longest prompt that leaves room for a full answer, or None if the host has no limit.
        chat_kwargs: What the host passes to ``apply_chat_template`` (own template, template variables, tools).
        max_question_tokens: The longest question that the host does not cut, where that is less.
    """

    tokenizer: Tokenizer
    count_tokens: Callable[[Prompt], int]
    max_prompt_tokens: int | None = None
    chat_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_question_tokens: int | None = None
