"""What crosses a process: frozen and pickleable. And the errors: one root, each also a standard-library error."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pytest
from core_standins import chatml

from refine_wrapper import errors
from refine_wrapper.core import types
from refine_wrapper.core.batch import DraftRows, Question
from refine_wrapper.core.selection.interface import SelectionContext
from refine_wrapper.core.types import (
    Action,
    Draft,
    DraftOutcome,
    FallbackCause,
    GroupOutcome,
    GroupPlan,
    PromptRoom,
    Refinement,
    RowPlan,
    SampledDraft,
    Selection,
)
from refine_wrapper.hosts.adapter import Adapter, ObjectiveSettings
from refine_wrapper.hosts.budget import CompletionBudget


def count_tokens(prompt: Any) -> int:
    return len(prompt)


DRAFT = Draft(1, "text", 0.5, 7, False, DraftOutcome.OK, "detail", 3)
PLAN = GroupPlan(
    "g",
    Action.SKIP,
    [{"role": "user", "content": "q"}],
    "q'",
    (DRAFT, Draft(1, outcome=DraftOutcome.TIMEOUT)),
    Selection(DRAFT, "best", 2),
    "draft",
    True,
    FallbackCause.NO_ROOM,
    1.5,
)
OBJECTS = [
    DRAFT,
    SampledDraft("text", [1.0], 3, False, DraftOutcome.EXCEPTION, "detail", "v2"),
    PLAN,
    PLAN.row(),
    Refinement("r", 1.0, 3, False),
    GroupOutcome(PLAN, (Refinement("r"),), 2.0, 5, "v3"),
    Selection(DRAFT, "best"),
    Question("g", "q"),
    DraftRows((0, 0, 1, 1), 4),
    SelectionContext("g", 1, 1.0),
    CompletionBudget(4, 4, 8),
    Adapter("trl", "trl", ("1.0", None)),
    ObjectiveSettings({"loss_type": "grpo"}),
]


def test_all_data_types_are_listed_here() -> None:
    listed = {type(value) for value in OBJECTS} | {PromptRoom}
    defined = {c for _, c in inspect.getmembers(types, dataclasses.is_dataclass) if c.__module__ == types.__name__}
    assert defined <= listed


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_frozen_and_pickleable(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, "other")


def test_a_room_is_pickleable_where_its_function_is() -> None:
    room = PromptRoom(chatml(), len, 10, {"enable_thinking": False})
    copy = pickle.loads(pickle.dumps(room))
    assert (copy.max_prompt_tokens, copy.chat_kwargs) == (10, {"enable_thinking": False})


def test_only_ok_drafts_are_usable() -> None:
    assert [outcome for outcome in DraftOutcome if Draft(0, outcome=outcome).usable] == [DraftOutcome.OK]


def test_a_row_says_what_it_is_sampled_from_and_whether_it_is_trained() -> None:
    assert PLAN.row() == RowPlan("g", "q'", False, False)
    assert dataclasses.replace(PLAN, action=Action.PLAIN).row() == RowPlan("g", "q'", False, True)


def test_names_on_disk_and_in_metrics_do_not_change() -> None:
    assert [o.value for o in DraftOutcome] == [
        "ok",
        "exception",
        "reward_exception",
        "timeout",
        "no_reward",
        "non_finite",
        "wrong_length",
        "empty",
        "over_budget",
    ]
    assert [c.value for c in FallbackCause] == [
        "not_chosen",
        "no_usable_draft",
        "question_too_long",
        "no_room",
        "unsupported_prompt",
        "plan_policy",
    ]
    assert [a.value for a in Action] == ["refine", "plain", "skip"]


ERRORS = [e for _, e in inspect.getmembers(errors, inspect.isclass) if e is not errors.RefineError]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_the_root_and_a_standard_parent_and_crosses_processes(error: type[Exception]) -> None:
    assert issubclass(error, errors.RefineError)
    assert issubclass(error, (ValueError, TypeError, RuntimeError))
    copy = pickle.loads(pickle.dumps(error("message")))
    assert (type(copy), str(copy)) == (error, "message")
    assert error.__doc__


def _priority(*num_tokens: int) -> int:
    drafts = tuple(Draft(index, num_tokens=number) for index, number in enumerate(num_tokens))
    return GroupPlan("g", Action.REFINE, "q", "q'", drafts_N=drafts).priority


def test_in_an_engines_queue_refinements_of_long_drafts_come_first_and_all_after_drafts() -> None:
    assert 0 < _priority(300, 100) < _priority(150, 150) < _priority(10)
    # A draft that was not sampled says nothing of lengths.
    assert _priority(200, 0) == _priority(200)
    assert _priority() > _priority(1)
    assert _priority(2**21) > 0
