"""What crosses the seam between a host and the core. Frozen and pickleable, so that it also crosses processes.

Names and shape suffixes (``_P`` prompts, ``_N`` drafts, ``_G`` refinements, ``_T`` tokens) are defined in
CONTRIBUTING.md; q is the question as the data set has it, q' the question with a draft in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One chat message: ``role`` and ``content``, the content a string or a list of typed parts."""

Prompt: TypeAlias = "str | Sequence[Message]"
"""What the host trains on: text, or a conversation."""


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


class DraftOutcome(str, Enum):
    """How a draft ended. Only ``OK`` drafts can be selected; all others are counted in the metrics."""

    OK = "ok"
    EXCEPTION = "exception"
    """Sampling the draft raised."""
    REWARD_EXCEPTION = "reward_exception"
    """Scoring the draft raised."""
    TIMEOUT = "timeout"
    """Sampling or scoring took longer than ``draft_timeout``."""
    NO_REWARD = "no_reward"
    """Every reward function returned None."""
    NON_FINITE = "non_finite"
    """The reward is NaN or infinite."""
    WRONG_LENGTH = "wrong_length"
    """The reward function did not return one scalar per draft."""
    EMPTY = "empty"
    """No text is left once special tokens, and thinking if so configured, are removed."""
    OVER_BUDGET = "over_budget"
    """Selected, but not even one token of it fits beside the question."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One Stage-1 sample on q, scored by the training reward. Context only: a draft is never trained.

    Attributes:
        index: Position among the N drafts of its group; ties are broken by it, never by order of arrival.
        text: Decoded text without special tokens; thinking already removed if so configured.
        reward: The scalar the trainer optimises, or None if there is none (see ``outcome``).
        num_tokens: Tokens generated for it, thinking included.
        finished: It ended by itself (end-of-sequence), not at the length limit.
        outcome: How it ended.
        detail: For people: the exception's text, the wrong length.
        policy_version: Version of the weights that wrote it, where the host knows one.
    """

    index: int
    text: str = ""
    reward: float | None = None
    num_tokens: int = 0
    finished: bool = True
    outcome: DraftOutcome = DraftOutcome.OK
    detail: str = ""
    policy_version: int | str | None = None

    @property
    def usable(self) -> bool:
        """Whether it may be selected."""
        return self.outcome is DraftOutcome.OK


@dataclass(frozen=True, slots=True)
class SampledDraft:
    """What a host hands over for one draft: the raw text and whatever its reward path returned.

    ``reward`` may be anything a reward function returns (float, 0-d array, ``[x]``, None); the core makes a typed
    :class:`Draft` of it. ``failure`` is set instead where sampling or scoring did not come back.
    """

    text: str = ""
    reward: Any = None
    num_tokens: int = 0
    finished: bool = True
    failure: DraftOutcome | None = None
    detail: str = ""
    policy_version: int | str | None = None


class Action(str, Enum):
    """What happens to a group after Stage 1."""

    REFINE = "refine"
    """Sample and train the group under q'."""
    PLAIN = "plain"
    """Sample and train the group under q, as the unwrapped host would."""
    SKIP = "skip"
    """Do not train the group. (Hosts with fixed batch shapes still sample it, under q.)"""


class FallbackCause(str, Enum):
    """Why a group was not refined."""

    NOT_CHOSEN = "not_chosen"
    """``refine_share`` is below 1 and this group was left plain. Not a failure."""
    NO_USABLE_DRAFT = "no_usable_draft"
    """All N drafts failed."""
    QUESTION_TOO_LONG = "question_too_long"
    """q alone leaves no room to answer: the host does with it what it always does."""
    NO_ROOM = "no_room"
    """q fits, q with the template and one token of draft does not."""
    UNSUPPORTED_PROMPT = "unsupported_prompt"
    """The prompt has no place for a draft (no user turn, a chat template that hides it)."""
    PLAN_POLICY = "plan_policy"
    """The plan policy decided so after Stage 1."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The draft that was chosen, by which selector, among how many equals."""

    draft: Draft
    selector: str
    num_tied: int = 1


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One refinement row of a host batch: its prompt (for sampling and training), if that is q', if it is trained."""

    group_id: str
    prompt: Prompt
    refined: bool
    trained: bool


_SHORTEST_LAST: Final = 2**20
"""More tokens than any draft has."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What Stage 1 decided for one group. Hosts carry it out; they decide nothing.

    Attributes:
        group_id: Identity of the group; never derived from the prompt's text.
        action: Refine, answer plainly, or leave untrained.
        question: q, as the host handed it over.
        prompt: What the group is sampled from and trained under: q' for ``REFINE``, else q (the same object).
        drafts_N: Every draft, failed ones too, by index. Empty where Stage 1 was not run.
        selection: The chosen draft, or None.
        draft_text: The draft as it stands in q' (neutralised, perhaps shortened).
        draft_shortened: Whether the draft was cut to fit.
        cause: Why the group was not refined, or None.
        stage1_seconds: Wall time of Stage 1 for this group (of the batch, on synchronous hosts).
    """

    group_id: str
    action: Action
    question: Prompt
    prompt: Prompt
    drafts_N: tuple[Draft, ...] = ()
    selection: Selection | None = None
    draft_text: str = ""
    draft_shortened: bool = False
    cause: FallbackCause | None = None
    stage1_seconds: float = 0.0

    @property
    def trained(self) -> bool:
        """Whether rows of this group carry a gradient."""
        return self.action is not Action.SKIP

    @property
    def priority(self) -> int:
        """Place of this group's refinements in the queue of an engine with priorities, lower first; drafts have 0.

        Drafts come first, because refinements wait for them. Then the refinements of groups with long drafts: answers
        to one prompt resemble each other in length, and a long one that starts last keeps a nearly empty engine busy.
        """
        lengths = [draft.num_tokens for draft in self.drafts_N if draft.num_tokens]
        return max(1, _SHORTEST_LAST - (sum(lengths) // len(lengths) if lengths else 0))

    def row(self) -> RowPlan:
        """The plan of one refinement row of this group; its prompt is not shared with other rows."""
        return RowPlan(self.group_id, for_one_row(self.prompt), self.action is Action.REFINE, self.trained)


@dataclass(frozen=True, slots=True)
class Refinement:
    """One Stage-2 sample: what it says and what the host's reward path paid for it.

    ``reward`` is None where there is no usable one; hosts whose reward path may fail then say why in ``failure``.
    """

    text: str = ""
    reward: float | None = None
    num_tokens: int = 0
    finished: bool = True
    failure: str = ""


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """A finished group, as observers (metrics, trace, plugins) see it.

    Attributes:
        plan: What Stage 1 decided.
        refinements_G: The G samples of Stage 2 that came back, in row order.
        stage2_seconds: Wall time of Stage 2 for this group (of the batch, on synchronous hosts).
        step: The trainer's optimizer step at which the group was generated.
        policy_version: Version of the weights that wrote the refinements, where the host knows one.
        replaced: Dynamic sampling put another group in its place, or did not need it: sampled, but not trained.
    """

    plan: GroupPlan
    refinements_G: tuple[Refinement, ...] = ()
    stage2_seconds: float = 0.0
    step: int | None = None
    policy_version: int | str | None = None
    replaced: bool = False

    @property
    def trainable(self) -> bool:
        """Whether the group can be trained: its plan says so, and each of its refinements has a reward.

        A missing reward is not made up. For hosts whose reward path may fail on single samples.
        """
        return (
            self.plan.trained and not self.replaced and not any(refinement.failure for refinement in self.refinements_G)
        )


@dataclass(frozen=True, slots=True)
class PromptRoom:
    """How the host tokenises prompts, and how long one may get.

    Attributes:
        tokenizer: The policy's tokenizer.
        count_tokens: Number of tokens of a prompt exactly as the host will feed it to the policy.
        max_prompt_tokens: The longest prompt that leaves room for a full answer, or None if the host has no limit.
        chat_kwargs: What the host passes to ``apply_chat_template`` (own template, template variables, tools).
    """

    tokenizer: Tokenizer
    count_tokens: Callable[[Prompt], int]
    max_prompt_tokens: int | None = None
    chat_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
