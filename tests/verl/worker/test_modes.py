"""Modes on veRL's worker classes: which prompt each row is sampled on, scored as an answer to, and stored under."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from refine_testing.verl_worker import Bench, prompt, reward_file

from refine_wrapper.core.types import Cause

pytestmark = pytest.mark.oldest
TEMPLATE = "Here is an attempt at this problem."
QUESTION = "What is 2+2?"
S, N = 4, 2
SIZES = (f"actor_rollout_ref.rollout.n={S}", f"refine.num_drafts={N}")

PAYS_RIGHT = (
    "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **more):\n"
    "    return 1.0 if 'right' in solution_str else 0.1 * int(solution_str.split()[1])\n"
)


def _says(*right: int) -> Callable[[str, int], str]:
    """The requests of these numbers are answered right. Rewards of the others grow with their number."""
    return lambda text, number: f"answer {number}{' right' if number in right else ''}"


@pytest.fixture
def make(bench: Callable[..., Bench], tmp_path: Path) -> Callable[..., Bench]:
    reward = reward_file(tmp_path, PAYS_RIGHT)

    def with_mode(mode: str, *right: int, kind: str = "RefineAgentLoopWorkerTQ", **options: Any) -> Bench:
        given = [f"+refine.mode_options.{name}={value}" for name, value in options.items()]
        return bench(f"+refine.mode={mode}", *SIZES, *given, answer=_says(*right), reward=reward, kind=kind)

    return with_mode


def _rendered(host: Bench, *turns: str) -> list[int]:
    """Token ids of a conversation of user turns, made by the tokenizer alone."""
    messages = [{"role": "user", "content": turn} for turn in turns]
    rendered: Any = host.worker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return host.worker.tokenizer.encode(rendered, add_special_tokens=False)


def _rows(host: Bench, kind: str) -> list[dict[str, Any]]:
    """Text and token ids of prompt, text of the answer, and reward of each row that is trained, in the order of slots."""
    if kind == "RefineAgentLoopWorkerTQ":
        host.prompts(prompt("a"))
        for row in host.rows_of("a"):
            assert row["input_ids"].tolist() == [*row["prompts"].tolist(), *row["responses"].tolist()]
        return [
            {
                "prompt_ids": row["prompts"].tolist(),
                "prompt": host.text(row["prompts"]),
                "answer": host.worker.tokenizer.decode(row["responses"], skip_special_tokens=True),
                "reward": round(float(row["rm_scores"].sum()), 3),
                "raw_prompt": list(row["raw_prompt"]),
            }
            for row in host.rows_of("a")
        ]
    output = host.run(host.worker.generate_sequences(_batch(host)))
    return [
        {
            "prompt_ids": (ids := host.worker.tokenizer.decode(row, skip_special_tokens=False).replace("<|pad|>", ""))
            and host.worker.tokenizer.encode(ids, add_special_tokens=False),
            "prompt": ids,
            "answer": host.worker.tokenizer.decode(output.batch["responses"][number], skip_special_tokens=True),
            "reward": round(float(output.batch["rm_scores"][number].sum()), 3),
            "raw_prompt": list(output.non_tensor_batch["raw_prompt"][number]),
        }
        for number, row in enumerate(output.batch["prompts"])
    ]


def _batch(host: Bench) -> Any:
    import torch
    from tensordict import TensorDict
    from verl.protocol import DataProto

    [group_id] = host.ids.next(["a"], 3, False)
    row = prompt("a", refine_group_id=group_id)
    columns = {name: numpy.empty(S, dtype=object) for name in row}
    for name, column in columns.items():
        column[:] = [row[name] for _ in range(S)]
    return DataProto(TensorDict({"row": torch.arange(S)}, batch_size=S), columns, {"global_steps": 3})


KINDS = pytest.mark.parametrize("kind", ["RefineAgentLoopWorkerTQ", "RefineAgentLoopWorker"], ids=["v1", "v0"])


def _check_no_leak(host: Bench, calls: int) -> None:
    assert len(host.reward.given) == calls
    for data in host.reward.given:
        assert data.batch["prompts"][0].tolist() == _rendered(host, QUESTION)
        assert TEMPLATE not in str(data.non_tensor_batch)


@KINDS
def test_joint(make: Callable[..., Bench], kind: str) -> None:
    host = make("joint", kind=kind)
    rows = _rows(host, kind)
    # Of requests 0 and 1, both on q, the second has the higher reward.
    assert [TEMPLATE in text for text in host.engine.prompts] == [False, False, True, True]
    assert [row["answer"] for row in rows] == [f"answer {number}" for number in range(S)]
    assert [row["reward"] for row in rows] == [0.0, 0.1, 0.2, 0.3]
    on_q = _rendered(host, QUESTION)
    assert [row["prompt_ids"] == on_q for row in rows] == [True, True, False, False]
    assert all(row["prompt"] == host.engine.prompts[2] for row in rows[2:])
    assert all("answer 1" in row["prompt"] and "answer 0" not in row["prompt"] for row in rows[2:])
    assert all(row["raw_prompt"] == [{"role": "user", "content": QUESTION}] for row in rows)
    _check_no_leak(host, S)
    [group] = host.worker.take_finished_groups()
    assert (group.refined, group.mode, len(group.samples), len(group.slots_S)) == (True, "joint", S, S)
    assert [slot.on_question for slot in group.slots_S] == [False] * S


@KINDS
def test_on_failure_trains_a_right_refinement_as_an_answer_to_q(make: Callable[..., Bench], kind: str) -> None:
    host = make("on_failure", 3, kind=kind)
    rows = _rows(host, kind)
    assert [TEMPLATE in text for text in host.engine.prompts] == [False, False, True, True]
    assert [row["reward"] for row in rows] == [0.0, 0.1, 0.2, 1.0]
    on_q = _rendered(host, QUESTION)
    # The third is wrong and stays under q', the fourth was sampled on q' too.
    assert [row["prompt_ids"] == on_q for row in rows] == [True, True, False, True]
    assert rows[3]["answer"] == "answer 3 right"
    _check_no_leak(host, S)
    [group] = host.worker.take_finished_groups()
    assert [slot.on_question for slot in group.slots_S] == [False, False, False, True]


@KINDS
def test_on_failure_is_plain_where_a_sample_is_right(make: Callable[..., Bench], kind: str) -> None:
    host = make("on_failure", 1, kind=kind)
    rows = _rows(host, kind)
    assert not any(TEMPLATE in text for text in host.engine.prompts)
    assert [row["prompt_ids"] == _rendered(host, QUESTION) for row in rows] == [True] * S
    [group] = host.worker.take_finished_groups()
    assert (group.refined, group.cause) == (False, Cause.MODE)


@KINDS
def test_rescue_puts_a_right_context_sample_into_a_slot(make: Callable[..., Bench], kind: str) -> None:
    host = make("rescue", 5, kind=kind)
    rows = _rows(host, kind)
    assert [TEMPLATE in text for text in host.engine.prompts] == [False] * S + [True] * N
    # The right one took the slot of the second sample; the other of the two stays out.
    assert [row["answer"] for row in rows] == ["answer 0", "answer 5 right", "answer 2", "answer 3"]
    assert [row["reward"] for row in rows] == [0.0, 1.0, 0.2, 0.3]
    assert [row["prompt_ids"] == _rendered(host, QUESTION) for row in rows] == [True] * S
    _check_no_leak(host, S + N)
    [group] = host.worker.take_finished_groups()
    assert [slot.sample for slot in group.slots_S] == [0, 5, 2, 3]
    assert not host.worker._refine_groups


@pytest.mark.parametrize(
    ("mode", "options", "refined"),
    [
        ("adaptive", {"explore": 0.0}, None),
        ("alternate", {"inner": "joint"}, [False, False, True, True]),
        ("rounds", {"rounds": 2}, [False] * 2 + [True] * 6),
        ("rounds", {"rounds": 2, "inner": "joint"}, [False, False, True, True]),
    ],
    ids=["adaptive", "alternate", "rounds", "rounds-joint"],
)
def test_other_modes(
    make: Callable[..., Bench], mode: str, options: dict[str, Any], refined: list[bool] | None
) -> None:
    host = make(mode, **options)
    host.prompts(prompt("a"), step=1)  # an odd step
    asked = [TEMPLATE in text for text in host.engine.prompts]
    assert len(host.rows_of("a")) == S
    assert asked == refined if refined is not None else len(asked) == S
    _check_no_leak(host, len(asked))
    assert host.worker._refine_rollout.groups_in_flight == 0


def test_a_mode_that_learns_is_told_what_came_out(make: Callable[..., Bench]) -> None:
    """The manager hands the groups of all workers back to each of them."""
    host = make("adaptive")
    host.prompts(prompt("a"), step=1)
    finished = host.worker.take_finished_groups()
    host.worker.note_finished_groups(finished)
    planner = host.worker._refine_rollout.planner
    question = finished[0].question
    later = planner.open(type(question)(host.ids.next(["b"], 2, False)[0], "q"), S)
    assert sum(tally.tried for tally in later.lately.values()) == 1


def test_a_first_sample_that_fails_fails_itself(make: Callable[..., Bench]) -> None:
    """The host's rule: a session that raises has no row. The others of its group go on, also those that waited for it."""
    host = make("joint")
    says = host.engine.answer

    def answer(text: str, number: int) -> str:
        if number == 0:
            raise RuntimeError("the engine failed")
        return says(text, number)

    host.engine.answer = answer
    host.prompts(prompt("a"))
    assert len(host.rows_of("a")) == S - 1
    assert host.queue.status["a"] == "failure"
    [group] = host.worker.take_finished_groups()
    assert [sample.outcome.value for sample in group.samples] == ["exception", "ok", "ok", "ok"]
    assert group.refined
