"""Contract 9: whatever goes wrong with a draft or its reward is typed, counted and handled; the run goes on."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from refine_testing.rewards import RecordingReward, checksum
from refine_testing.traces import read_groups
from refine_testing.trl_host import ATTEMPT, logged, questions, trainer_for, weights_of

from refine_wrapper.core.metrics import MEANINGS
from refine_wrapper.errors import NoDraftError

pytestmark = pytest.mark.oldest

N, G, P = 3, 4, 2
DRAFTS, REFINEMENTS = N * P, G * P


def _script(prompt: str, row: int) -> str:
    return f"refined {row}" if ATTEMPT in prompt else f"text {row}"


class OnlyDrafts(RecordingReward):
    """A reward that is fine for Stage 2, and does for the drafts what it is told."""

    def __init__(self, fault: Callable[[list[str]], Any]) -> None:
        super().__init__()
        self.fault = fault

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
        paid = super().__call__(prompts, completions, **columns)
        return self.fault(completions) if len(paid) == DRAFTS else paid


def _raise(error: BaseException) -> Any:
    raise error


def _run(folder: Path, reward: Any, **settings: Any) -> Any:
    settings = {"script": _script, "max_completion_length": 16, "max_steps": 1, **settings}
    trainer = trainer_for(folder, reward, questions(8), num_generations=G, refine_num_drafts=N, **settings)
    trainer.train()
    return trainer


FAULTS: dict[str, tuple[Callable[[list[str]], Any], str]] = {
    "raises": (lambda c: _raise(RuntimeError("reward server is down")), "reward_exception"),
    "raises KeyError": (lambda c: _raise(KeyError("label")), "reward_exception"),
    "out of memory": (lambda c: _raise(MemoryError()), "reward_exception"),
    "None for every draft": (lambda c: [None] * len(c), "no_reward"),
    "NaN": (lambda c: [math.nan] * len(c), "non_finite"),
    "inf": (lambda c: [math.inf] * len(c), "non_finite"),
    "minus inf": (lambda c: [-math.inf] * len(c), "non_finite"),
    "NaN in a tensor": (lambda c: torch.full((len(c),), math.nan), "non_finite"),
    "one too few": (lambda c: [1.0] * (len(c) - 1), "wrong_length"),
    "one too many": (lambda c: [1.0] * (len(c) + 1), "wrong_length"),
    "an empty list": (lambda c: [], "wrong_length"),
    "one number": (lambda c: 1.0, "wrong_length"),
    "nothing": (lambda c: None, "wrong_length"),
    "strings": (lambda c: ["1.0"] * len(c), "wrong_length"),
    "a string of the right length": (lambda c: "1" * len(c), "wrong_length"),
    "pairs": (lambda c: [[1.0, 2.0]] * len(c), "wrong_length"),
    "dictionaries": (lambda c: [{"score": 1.0}] * len(c), "wrong_length"),
    "a matrix": (lambda c: torch.zeros(len(c), 2), "wrong_length"),
}


@pytest.mark.parametrize(("fault", "outcome"), FAULTS.values(), ids=FAULTS.keys())
def test_a_reward_that_fails_for_drafts_is_counted_and_the_run_goes_on(
    fault: Callable[[list[str]], Any], outcome: str, tmp_path: Path
) -> None:
    trainer = _run(tmp_path, OnlyDrafts(fault))
    assert trainer.state.global_step == 1
    assert logged(trainer, f"refine/draft_failures/{outcome}") == [DRAFTS]
    assert logged(trainer, "refine/draft_failures") == [DRAFTS]
    assert logged(trainer, "refine/fallbacks/no_usable_draft") == logged(trainer, "refine/fallbacks") == [P]
    assert logged(trainer, "refine/refined_share") == [0]
    (batch,) = trainer.batches
    assert batch.prompts(trainer.processing_class) == [row["prompt"] for row in batch.rows], "a plain group is under q"
    assert logged(trainer, "reward") == [pytest.approx(_mean(checksum(f"text {row}") for row in range(REFINEMENTS)))]
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(trainer.model).values())


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


@pytest.mark.parametrize(
    "shape",
    [
        lambda rewards: torch.tensor(rewards),
        lambda rewards: [torch.tensor(reward) for reward in rewards],
        lambda rewards: numpy.array(rewards),
        lambda rewards: tuple(rewards),
        lambda rewards: (reward for reward in rewards),
        lambda rewards: [reward > 0.5 for reward in rewards],
        lambda rewards: [[reward] for reward in rewards],
    ],
    ids=["tensor", "list of tensors", "array", "tuple", "generator", "bool", "list of one"],
)
def test_whatever_reads_as_one_number_per_draft_is_a_reward(
    shape: Callable[[list[float]], Any], tmp_path: Path
) -> None:
    trainer = _run(tmp_path, OnlyDrafts(lambda texts: shape([float(text == "text 4") for text in texts])))
    assert logged(trainer, "refine/draft_failures") == [0]
    assert logged(trainer, "refine/refined_share") == [1]
    assert logged(trainer, "refine/draft_reward_best") == [0.5]
    prompts = trainer.batches[0].prompts(trainer.processing_class)
    assert [re.findall(r"text \d", prompt) for prompt in prompts] == [["text 0"]] * G + [["text 4"]] * G


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_drafts_that_fail_alone_are_passed_over(objective: str, tmp_path: Path) -> None:
    """Of each group only the last draft is left, though it is the worst."""
    rewards = [math.nan, math.inf, -5.0, None, "9", -5.0]
    trainer = _run(tmp_path, OnlyDrafts(lambda texts: rewards), objective=objective, refine_trace_dir=str(tmp_path))
    assert logged(trainer, "refine/refined_share") == [1]
    assert logged(trainer, "refine/draft_failures") == [4]
    assert logged(trainer, "refine/draft_failures/non_finite") == [2]
    assert logged(trainer, "refine/draft_failures/no_reward") == [1]
    assert logged(trainer, "refine/draft_failures/wrong_length") == [1]
    assert logged(trainer, "refine/draft_reward_mean") == [-5.0]
    assert [group["selected"] for group in read_groups(tmp_path)] == [2, 2]
    prompts = trainer.batches[0].prompts(trainer.processing_class)
    assert [re.findall(r"text \d", prompt) for prompt in prompts] == [["text 2"]] * G + [["text 5"]] * G


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_groups_without_any_reward_keep_q_and_the_others_are_refined(objective: str, tmp_path: Path) -> None:
    trainer = _run(tmp_path, OnlyDrafts(lambda texts: [None] * N + [1.0] * N), objective=objective)
    prompts, rows = trainer.batches[0].prompts(trainer.processing_class), trainer.batches[0].rows
    assert prompts[:G] == [row["prompt"] for row in rows[:G]]
    assert all(f"{ATTEMPT}\n\ntext 3\n\n" in prompt for prompt in prompts[G:])
    assert logged(trainer, "refine/refined_share") == [0.5]
    assert logged(trainer, "refine/fallbacks/no_usable_draft") == [1]


def test_a_failing_reward_beside_a_good_one_makes_the_draft_unusable(tmp_path: Path) -> None:
    """Half of the weighted sum is not the reward that is trained."""

    def good(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = _run(tmp_path, [good, OnlyDrafts(lambda texts: [0.0] * N + [math.inf] * N)])
    assert logged(trainer, "refine/draft_failures/non_finite") == [N]
    assert logged(trainer, "refine/refined_share") == [0.5]


def test_nan_beside_a_good_reward_is_left_out_as_the_host_does(tmp_path: Path) -> None:
    """To the host NaN is None: a sparse task, or a reward that only watches, must not condemn every draft."""

    def good(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = _run(tmp_path, [good, OnlyDrafts(lambda texts: [0.0] * N + [math.nan] * N)])
    assert logged(trainer, "refine/draft_failures") == [0]
    assert logged(trainer, "refine/refined_share") == [1]


def test_a_reward_that_does_not_apply_beside_a_good_one_is_no_failure(tmp_path: Path) -> None:
    def good(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = _run(tmp_path, [good, OnlyDrafts(lambda texts: [None] * len(texts))])
    assert logged(trainer, "refine/draft_failures") == [0]
    assert logged(trainer, "refine/draft_reward_best") == [1.0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_asynchronous_rewards(how: str, tmp_path: Path) -> None:
    cancelled = []

    async def reward(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        if len(completions) == DRAFTS and how == "raises":
            raise ConnectionError("judge is away")
        if len(completions) == DRAFTS:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
        return [checksum(text) for text in completions]

    trainer = _run(tmp_path, reward, refine_draft_timeout=0.1)
    outcome = {"raises": "reward_exception", "hangs": "timeout"}[how]
    assert logged(trainer, f"refine/draft_failures/{outcome}") == [DRAFTS]
    assert logged(trainer, "refine/fallbacks/no_usable_draft") == [P]
    assert logged(trainer, "reward") == [pytest.approx(_mean(checksum(f"text {row}") for row in range(REFINEMENTS)))]
    assert cancelled == ([True] if how == "hangs" else [])


def test_asynchronous_rewards_that_work(tmp_path: Path) -> None:
    async def reward(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [checksum(text) for text in completions]

    trainer = _run(tmp_path, reward, refine_draft_timeout=30.0)
    assert logged(trainer, "refine/draft_failures") == [0]
    assert logged(trainer, "refine/refined_share") == [1]
    assert logged(trainer, "refine/draft_reward_mean") == [
        pytest.approx(_mean(checksum(f"text {row}") for row in range(DRAFTS)))
    ]


@pytest.mark.parametrize("draft", ["", " \n ", "<think>only thoughts</think>", "<think>never ends"])
def test_drafts_without_text_are_no_drafts(draft: str, tmp_path: Path) -> None:
    trainer = _run(tmp_path, RecordingReward(), script=lambda prompt, row: draft, max_completion_length=40)
    assert logged(trainer, "refine/draft_failures/empty") == [DRAFTS]
    assert logged(trainer, "refine/fallbacks/no_usable_draft") == [P]


@pytest.mark.parametrize(
    "settings", [{"loss_type": "grpo"}, {"loss_type": "dapo"}, {"beta": 0.1}, {"objective": "rloo"}]
)
def test_skip_trains_nothing_where_every_group_is_skipped(settings: dict[str, Any], tmp_path: Path) -> None:
    """Long completions, so that a ratio of masked against unmasked log-probabilities would overflow."""
    before = weights_of(trainer_for(tmp_path / "start", RecordingReward(), questions(8), plain=True).model)
    trainer = _run(
        tmp_path,
        OnlyDrafts(lambda texts: [None] * len(texts)),
        script=lambda prompt, row: f"{row}" * 60,
        max_completion_length=60,
        max_steps=2,
        learning_rate=1e-2,
        refine_on_no_draft="skip",
        **settings,
    )
    assert logged(trainer, "refine/fallbacks/no_usable_draft") == [P, P]
    assert logged(trainer, "loss") == [0, 0]
    after = weights_of(trainer.model)
    assert not [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_error_stops_the_run_and_says_why(objective: str, tmp_path: Path) -> None:
    reward = OnlyDrafts(lambda texts: _raise(RuntimeError("reward server is down")))
    with pytest.raises(
        NoDraftError, match=r"no_usable_draft.*sample 0: reward_exception \(RuntimeError: reward server is"
    ):
        _run(tmp_path, reward, objective=objective, refine_on_no_draft="error")


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_a_reward_that_fails_in_stage_2_is_the_hosts(objective: str, tmp_path: Path) -> None:
    class OnlyRefinements(RecordingReward):
        def __call__(self, *args: Any, **columns: Any) -> Any:
            paid = super().__call__(*args, **columns)
            return paid if len(paid) == DRAFTS else _raise(RuntimeError("reward server is down"))

    with pytest.raises(RuntimeError, match="reward server is down"):
        _run(tmp_path, OnlyRefinements(), objective=objective)


def test_stopping_from_within_a_reward_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, OnlyDrafts(lambda texts: _raise(KeyboardInterrupt())))


def test_every_name_that_was_counted_is_documented(tmp_path: Path) -> None:
    trainer = _run(tmp_path, OnlyDrafts(lambda texts: [math.nan, None, "x", 1.0, 1.0, 1.0]))
    names = {name for entry in trainer.state.log_history for name in entry if name.startswith("refine/")}
    assert names <= set(MEANINGS)
