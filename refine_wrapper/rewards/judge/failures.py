"""What goes wrong with a judgement, by kind."""

from __future__ import annotations

from enum import Enum

from refine_wrapper.errors import RefineError


class FailureKind(str, Enum):
    """Why a judgement gave no score. Each kind is counted under ``judge/failures/KIND``."""

    TIMEOUT = "timeout"
    """An attempt took longer than ``timeout``, or all attempts together longer than ``patience``."""
    UNREACHABLE = "unreachable"
    """The endpoint could not be reached, or broke off in the middle of its reply."""
    RATE_LIMITED = "rate_limited"
    """The endpoint still said 429 after all retries."""
    SERVER_ERROR = "server_error"
    """The endpoint still said 5xx after all retries."""
    REFUSED = "refused"
    """The endpoint refused this request (4xx): too long for its context, blocked by its filter."""
    NO_REPLY = "no_reply"
    """The endpoint answered with something that is no chat completion, or with an empty one."""
    CUT_OFF = "cut_off"
    """The judge's reply ended at ``max_tokens``, so that what it says last is not its verdict."""
    NO_SCORE = "no_score"
    """The reply holds no score, or not one for each answer of the group."""
    OUT_OF_SCALE = "out_of_scale"
    """The score lies outside of ``scale``."""


class JudgeError(RefineError, RuntimeError):
    """A judgement failed.

    Attributes:
        kind: How.
        detail: For people: what the endpoint or the judge said.
    """

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(kind, detail)  # both, so that it can be pickled
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}"


class JudgeLimitError(RefineError, RuntimeError):
    """The run has spent what it may on its judge. What was judged is in the cache: going on pays nothing twice."""
