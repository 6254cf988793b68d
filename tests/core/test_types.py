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
from refine_wrapper.core.batch import Wave, WaveRow
from refine_wrapper.core.modes.interface import Tally
from refine_wrapper.core.selection.interface import SelectionContext
from refine_wrapper.core.types import (
    Cause,
    End,
    Group,
    GroupId,
    Outcome,
    PlannedRound,
    Progress,
    PromptRoom,
    Question,
    Round,
    Sample,
    Slot,
    TrainUnder,
    Use,
)
from refine_wrapper.hosts.adapter import Adapter, ObjectiveSettings
from refine_wrapper.hosts.budget import CompletionBudget

QUESTION = Question(GroupId("train", 3, 1, 2), [{"role": "user", "content": "q"}], {"answer": "42"}, 5)
SAMPLE = Sample("text", (1, 2), 2, False, 0.5, Outcome.OK, "detail", "v2", (0, 1), 3, 1, 0, True, "text")
PLANNED = PlannedRound(1, 4, Round(2, Use.FILL, 0, TrainUnder.QUESTION, final=True), "q'", "shown", True, 7, 1.5)
OBJECTS = [
    QUESTION,
    QUESTION.id,
    SAMPLE,
    PLANNED,
    PLANNED.ask,
    End({0: 1}, TrainUnder.SAMPLED, Cause.MODE, "why"),
    Slot(3, on_question=True, trained=False),
    Group(QUESTION, "paper", 2, (SAMPLE,), (PLANNED,), (Slot(0),), Cause.NO_ROOM, "why", "best", 2, 5, True),
    Progress(3, 10),
    Tally(3, 1),
    WaveRow(0, PLANNED, 1),
    Wave((WaveRow(0, PLANNED, None, padding=True),), 1),
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


def test_only_ok_samples_may_be_shown() -> None:
    assert [outcome for outcome in Outcome if Sample(outcome=outcome).usable] == [Outcome.OK]


def test_ids_of_groups_read_well_and_sort_by_step_and_place() -> None:
    ids = [GroupId("train", step, place, attempt) for step in (2, 10) for place in (3, 20) for attempt in (0, 1)]
    assert [str(group_id) for group_id in ids[:3]] == ["train-2-3", "train-2-3+1", "train-2-20"]
    assert sorted([*ids[4:], *ids[:4]]) == ids
    assert len(set(ids)) == 8


def test_progress() -> None:
    assert [Progress(3, 10).fraction, Progress(3).fraction, Progress(30, 10).fraction] == [0.3, 0.0, 1.0]


def test_every_row_has_turns_of_its_own() -> None:
    planned = dataclasses.replace(PLANNED, prompt=[{"role": "user", "content": "q"}])
    one, other = planned.row_prompt(), planned.row_prompt()
    assert one == other == planned.prompt
    assert one[0] is not other[0]


def test_a_group_on_its_way_to_another_process_has_no_token_ids() -> None:
    group = Group(QUESTION, "paper", 1, (SAMPLE,), (PLANNED,), (Slot(0),))
    [sample] = group.slim().samples
    assert sample == dataclasses.replace(SAMPLE, token_ids=None, prompt_ids=None)


def test_names_on_disk_and_in_metrics_do_not_change() -> None:
    assert [outcome.value for outcome in Outcome] == [
        "ok",
        "exception",
        "reward_exception",
        "timeout",
        "no_reward",
        "non_finite",
        "wrong_length",
        "empty",
    ]
    assert [cause.value for cause in Cause] == [
        "not_chosen",
        "no_usable_draft",
        "question_too_long",
        "no_room",
        "unsupported_prompt",
        "mode",
        "not_held",
    ]
    assert [use.value for use in Use] == ["fill", "context", "take"]


ERRORS = [e for _, e in inspect.getmembers(errors, inspect.isclass) if e is not errors.RefineError]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_the_root_and_a_standard_parent_and_crosses_processes(error: type[Exception]) -> None:
    assert issubclass(error, errors.RefineError)
    assert issubclass(error, (ValueError, TypeError, RuntimeError))
    copy = pickle.loads(pickle.dumps(error("message")))
    assert (type(copy), str(copy)) == (error, "message")
    assert error.__doc__
