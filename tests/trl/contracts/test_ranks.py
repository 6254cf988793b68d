"""Contract 8: the same seed gives the same choices, and so does every way of laying groups out over ranks.

All scenarios with two ranks run in one `torchrun` (gloo, CPU), because starting one takes longer than they do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import refine_testing
from refine_testing.objective import grpo_advantages, leave_one_out_advantages
from refine_testing.resampled import merged
from refine_testing.rewards import RecordingReward, checksum, text_of
from refine_testing.traces import read_groups, rows_of
from refine_testing.trl_host import ATTEMPT, as_q_prime, logged, questions, trainer_for

pytestmark = pytest.mark.oldest

SECONDS = 240
RANKS = 2
FLAT = (0, 2, 3, 5, 7, 8, 10)
"""As in scripts/two_ranks.py: questions whose rewards are all equal, where a scenario says "flat"."""
SAMPLED = "refine/resampled_groups"


def _settings(rows: int, num_generations: int, num_drafts: int, **more: Any) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": rows,
        "num_generations": num_generations,
        "refine_num_drafts": num_drafts,
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        **more,
    }


SCENARIOS: dict[str, dict[str, Any]] = {
    # One group, half of it on each rank.
    "one group over both ranks": {"settings": _settings(2, 4, 4)},
    # Rows 0-5 and 6-11 of groups 0-3, 4-7, 8-11: group 1 straddles.
    "the middle group straddles": {"settings": _settings(6, 4, 4)},
    "the middle group straddles, rloo": {"settings": _settings(6, 4, 4), "objective": "rloo"},
    "chats": {"settings": _settings(6, 4, 4), "chat": True},
    # 3 groups x 3 drafts = 9 rows do not halve: a fourth group is sampled and dropped.
    "fewer drafts, padded": {"settings": _settings(6, 4, 3)},
    # 1 group x 5 drafts; the padding is a second sampling of the only group.
    "more drafts, padded": {"settings": _settings(2, 4, 5)},
    # 2 groups x 5 drafts on rows where each rank has one group of 2.
    "more drafts than refinements": {"settings": _settings(2, 2, 5)},
    "accumulated": {"settings": _settings(3, 2, 3, gradient_accumulation_steps=2, num_iterations=2, max_steps=4)},
    "drafts of the next batch ride along": {"settings": _settings(6, 4, 4, refine_draft_ahead=True, max_steps=3)},
    "they are padded": {"settings": _settings(6, 4, 3, refine_draft_ahead=True, max_steps=3)},
    "evaluation": {
        "settings": _settings(6, 4, 3, num_generations_eval=2, per_device_eval_batch_size=3, max_steps=1),
        "evaluates": True,
    },
    "refined evaluation": {
        "settings": _settings(
            6,
            4,
            3,
            num_generations_eval=2,
            per_device_eval_batch_size=3,
            max_steps=1,
            refine_evaluation="refine",
        ),
        "evaluates": True,
    },
    "half of the groups stay plain": {"settings": _settings(8, 2, 3, refine_refine_share=0.5)},
    "drawn again, the middle group straddles": {
        "settings": _settings(6, 4, 3, refine_dynamic_sampling=4, max_steps=3),
        "flat": True,
    },
    "drawn again, plain, padded": {
        # Groups of 3 over ranks of 6: a single group does not halve, so a second chance fills up.
        "settings": _settings(6, 3, 0, refine_dynamic_sampling=4, max_steps=3),
        "flat": True,
    },
    "drawn again, rloo": {
        "settings": _settings(6, 4, 3, refine_dynamic_sampling=2, max_steps=3),
        "flat": True,
        "objective": "rloo",
    },
    # Rounds of slots: 9 and 3 rows, padded; rewards of a half or more are right.
    "joint": {"settings": _settings(6, 4, 3, refine_mode="joint")},
    "on_failure": {"settings": _settings(6, 4, 2, refine_mode="on_failure", refine_max_reward=0.5, max_steps=3)},
    "on_failure, drawn again": {
        "settings": _settings(
            6, 4, 2, refine_mode="on_failure", refine_max_reward=0.6, refine_dynamic_sampling=2, max_steps=3
        ),
        "pays": "flat",
    },
    "rescue, rloo": {
        "settings": _settings(6, 4, 3, refine_mode="rescue", refine_max_reward=0.9, max_steps=3),
        "objective": "rloo",
    },
    "reward raises on rank 1": {"settings": _settings(6, 4, 4), "fault": "raises", "on_rank": 1},
    "reward is short on rank 0": {"settings": _settings(6, 4, 4), "fault": "one too few", "on_rank": 0},
    "skipped on rank 1": {
        "settings": _settings(4, 4, 4, refine_on_no_draft="skip"),
        "fault": "none",
        "on_rank": 1,
    },
    "skipped on rank 1, rloo": {
        "settings": _settings(4, 4, 4, refine_on_no_draft="skip"),
        "objective": "rloo",
        "fault": "none",
        "on_rank": 1,
    },
}
DRAWN_AGAIN = [name for name, scenario in SCENARIOS.items() if scenario.get("flat")]
HEALTHY = [
    name
    for name, scenario in SCENARIOS.items()
    if "fault" not in scenario
    and "half" not in name
    and name not in DRAWN_AGAIN
    and "refine_mode" not in scenario["settings"]
]
MODES = [name for name, scenario in SCENARIOS.items() if "refine_mode" in scenario["settings"]]


class Ran:
    """What both ranks wrote about the scenarios."""

    def __init__(self, folder: Path, log: str) -> None:
        self._folder, self._log = folder, log

    def __call__(self, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """One result per rank, and the groups of the trace."""
        files = [self._folder / f"{name}.{rank}.json" for rank in range(RANKS)]
        if not all(file.exists() for file in files):
            pytest.fail(f"scenario {name!r} did not finish on both ranks within {SECONDS} s\n{self._log[-6000:]}")
        ranks = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        trace = self._folder / name / "trace"
        return ranks, read_groups(trace) if trace.exists() else []  # a plain run has none


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """All scenarios, run once."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "scenarios.json").write_text(json.dumps(SCENARIOS), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(RANKS)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    command += [str(Path(__file__).parent / "scripts" / "two_ranks.py"), str(folder), str(folder / "scenarios.json")]
    support = str(Path(refine_testing.__file__).parents[1])
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("REFINE_WRAPPER_")},
        "REFINE_WRAPPER_PLUGINS": "",
        "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            pass  # what is missing fails the tests that need it
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Ran(folder, log.read_text(encoding="utf-8", errors="replace"))


def _joined(ranks: list[dict[str, Any]], key: str, number: int, name: str) -> list[Any]:
    """Rows of all ranks, in the global order: by rank."""
    return [row for rank in ranks for row in rank[key][number][name]]


def _first_best(texts: list[str]) -> str:
    rewards = [checksum(text) for text in texts]
    return texts[rewards.index(max(rewards))].strip()


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", HEALTHY)
def test_a_group_shares_the_draft_that_one_process_would_choose(name: str, ran: Ran) -> None:
    ranks, trace = ran(name)
    settings = SCENARIOS[name]["settings"]
    size, num_drafts = settings["num_generations"], settings["refine_num_drafts"]
    groups = iter([group for group in trace if group["group_id"].startswith("train")])
    assert ranks[0]["batches"]
    for number in range(len(ranks[0]["batches"])):
        if number >= len(ranks[0]["batches"]) - (1 if SCENARIOS[name].get("evaluates") else 0) and number:
            break
        asked = _joined(ranks, "batches", number, "questions")
        prompts = _joined(ranks, "batches", number, "prompts")
        drafts = [text_of(text) for text in _joined(ranks, "calls", 2 * number, "completions")]
        drafted = _joined(ranks, "calls", 2 * number, "prompts")
        shares = [len(rank["calls"][2 * number]["completions"]) for rank in ranks]
        assert shares[0] == shares[1], "ranks must sample equal shares"
        assert len(drafts) < len(asked) // size * num_drafts + RANKS * num_drafts, "more padding than needed"
        for first in range(0, len(asked), size):
            position = first // size
            own = slice(position * num_drafts, (position + 1) * num_drafts)
            assert asked[first : first + size] == [asked[first]] * size
            assert drafted[own] == [asked[first]] * num_drafts
            expected = as_q_prime(text_of(asked[first]), _first_best(drafts[own]))
            if SCENARIOS[name].get("chat"):
                expected = f"<|im_start|>user\n{expected[:-2]}<|im_end|>\n<|im_start|>assistant\n"
            assert prompts[first : first + size] == [expected] * size
            group = next(groups)
            assert [draft["text"] for draft in group["drafts"]] == drafts[own]
            assert len(group["refinements"]) == size
    assert next(groups, None) is None, "a group is in the trace twice"
    assert len({group["group_id"] for group in trace}) == len(trace)


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", MODES)
def test_each_row_of_a_mode_is_on_the_rank_of_its_slot(name: str, ran: Ran) -> None:
    """Groups 1 straddle; rows are sampled wherever there is room and trained where the host's batch has their place."""
    ranks, trace = ran(name)
    settings, rloo = SCENARIOS[name]["settings"], SCENARIOS[name].get("objective") == "rloo"
    expected = rows_of(trace)
    found = [
        row
        for number in range(len(ranks[0]["batches"]))
        for row in zip(
            _joined(ranks, "batches", number, "prompts"), _joined(ranks, "batches", number, "completions"), strict=True
        )
    ]
    assert found == [(prompt, text) for prompt, text, _ in expected]
    advantages = [
        value for n in range(len(ranks[0]["batches"])) for value in _joined(ranks, "batches", n, "advantages")
    ]
    by_hand = (leave_one_out_advantages if rloo else grpo_advantages)([r for _, _, r in expected], 4)
    assert advantages == pytest.approx(by_hand, abs=1e-5)
    refined = [group for group in trace if group["refined"]]
    assert refined, "the case has no refined group"
    on_question = [on for group in trace if not group.get("replaced") for _, on, _ in group["slots"]]
    if "refine_dynamic_sampling" not in settings:
        assert any(on_question) == (settings["refine_mode"] != "joint")
    assert bool(sum(ranks[0]["metrics"].get(SAMPLED, []))) == ("refine_dynamic_sampling" in settings)


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_agree(name: str, ran: Ran) -> None:
    ranks, trace = ran(name)
    assert ranks[0]["metrics"] == ranks[1]["metrics"]
    assert ranks[0]["metrics"]["refine/groups" if SCENARIOS[name]["settings"]["refine_num_drafts"] else SAMPLED]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert {rank["num_generations"] for rank in ranks} == {SCENARIOS[name]["settings"]["num_generations"]}
    assert all(rank["finite"] and rank["moved"] for rank in ranks)
    trained = [group for group in trace if group["group_id"].startswith("train")]
    assert sum(ranks[0]["metrics"].get("refine/groups", [])) <= len(trained)


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", DRAWN_AGAIN)
def test_groups_drawn_again_reach_the_ranks_that_train_them(name: str, ran: Ran) -> None:
    """All ranks draw the same groups in equal shares, and each row goes where the row that it replaces was."""
    ranks, _ = ran(name)
    settings, objective = SCENARIOS[name]["settings"], SCENARIOS[name].get("objective", "grpo")
    size, num_drafts, limit = (settings[n] for n in ("num_generations", "refine_num_drafts", "refine_dynamic_sampling"))
    assert len({len(rank["calls"]) for rank in ranks}) == 1
    calls = []
    for number, call in enumerate(ranks[0]["calls"]):
        assert {len(rank["calls"][number]["prompts"]) for rank in ranks} == {len(call["prompts"])}, "unequal shares"
        calls.append({column: _joined(ranks, "calls", number, column) for column in call})
    if num_drafts:
        # Drafts fill up by whole groups of their own, which are dropped.
        for drafts, refinements in zip(calls[::2], calls[1::2], strict=True):
            for column in drafts:
                drafts[column] = drafts[column][: len(refinements[column]) // size * num_drafts]

    def paid(call: dict[str, Any]) -> list[float | None]:
        pairs = zip(call["number"], call["completions"], strict=True)
        return [0.5 if number in FLAT else checksum(text_of(text)) for number, text in pairs]

    multiple = 1 if size % RANKS == 0 else RANKS
    options = {"group_size": size, "limit": limit, "num_drafts": num_drafts, "multiple": multiple}
    batches = merged(calls, paid, **options)
    assert len(batches) == len(ranks[0]["batches"]) == 3
    assert sum(batch.groups for batch in batches) > 3
    for number, batch in enumerate(batches):
        rows, prompts = batch.both.refinements, _joined(ranks, "batches", number, "prompts")
        expected = [
            as_q_prime(question, batch.both.best_text(row // size, num_drafts)) if num_drafts else question
            for row, question in enumerate(rows["prompts"])
        ]
        assert prompts == expected
        rewards = [float(reward) for reward in batch.both.rewards if reward is not None]
        advantages = (leave_one_out_advantages if objective == "rloo" else grpo_advantages)(rewards, size)
        assert _joined(ranks, "batches", number, "advantages") == pytest.approx(advantages, abs=1e-5)
        assert ranks[0]["metrics"]["refine/resampling_rounds"][number] == batch.rounds
        assert ranks[0]["metrics"]["refine/resampled_groups"][number] == batch.groups
        assert ranks[0]["metrics"]["refine/inactive_groups_kept"][number] == len(batch.kept)


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize(("name", "stages"), [("evaluation", ["q"]), ("refined evaluation", ["q", "q"])])
def test_evaluation_over_ranks(name: str, stages: list[str], ran: Ran) -> None:
    ranks, trace = ran(name)
    per_batch = len(stages)
    assert {len(rank["evaluation"]) % per_batch for rank in ranks} == {0}
    evaluated = [group for group in trace if group["group_id"].startswith("eval")]
    if name == "evaluation":
        assert not evaluated
        return
    rows = [len(call["prompts"]) for call in ranks[0]["evaluation"]]
    assert rows[0] * RANKS == 12, "3 groups x 3 drafts, and one group more so that the rows halve"
    assert rows[1] == 3
    assert all(group["action"] == "refine" and len(group["refinements"]) == 2 for group in evaluated)


@pytest.mark.timeout(SECONDS + 60)
def test_a_share_of_groups_is_the_same_on_all_ranks(ran: Ran) -> None:
    ranks, _ = ran("half of the groups stay plain")
    for number in range(len(ranks[0]["batches"])):
        prompts = _joined(ranks, "batches", number, "prompts")
        refined = [ATTEMPT in prompt for prompt in prompts]
        assert refined[::2] == refined[1::2], "one group under two prompts"
        drafted = {prompt for rank in ranks for prompt in rank["calls"][2 * number]["prompts"]}
        assert drafted == {q for q, r in zip(_joined(ranks, "batches", number, "questions"), refined, strict=True) if r}


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize(
    ("name", "outcome", "rank"),
    [("reward raises on rank 1", "reward_exception", 1), ("reward is short on rank 0", "wrong_length", 0)],
)
def test_a_reward_that_fails_on_one_rank_costs_its_drafts_only(name: str, outcome: str, rank: int, ran: Ran) -> None:
    """Groups 0-2 with 12 draft rows: rank 0 has group 0 and half of group 1, rank 1 the rest."""
    ranks, trace = ran(name)
    assert ranks[0]["metrics"][f"refine/draft_failures/{outcome}"] == [6, 6]
    assert ranks[0]["metrics"]["refine/fallbacks/no_usable_draft"] == [1, 1]
    lost = [[0, 1, 2, 3], [0, 1], []] if rank == 0 else [[], [2, 3], [0, 1, 2, 3]]
    for group, expected in zip(trace, lost * 2, strict=True):
        outcomes = [draft["outcome"] for draft in group["drafts"]]
        assert [index for index, found in enumerate(outcomes) if found == outcome] == expected
        assert group["action"] == ("plain" if len(expected) == 4 else "refine")


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", ["skipped on rank 1", "skipped on rank 1, rloo"])
def test_a_group_skipped_on_one_rank_carries_no_gradient(name: str, ran: Ran) -> None:
    ranks, trace = ran(name)
    assert [group["action"] for group in trace] == ["refine", "skip"] * 2
    for batch in ranks[1]["batches"]:
        assert batch["trained_tokens"] == [0] * 4
    for batch in ranks[0]["batches"]:
        assert all(tokens > 0 for tokens in batch["trained_tokens"])
    assert [loss == 0 for loss in ranks[1]["losses"]] == [True, True]


def _traced(folder: Path, **settings: Any) -> tuple[list[dict[str, Any]], list[float]]:
    trainer = trainer_for(
        folder,
        RecordingReward(),
        questions(8),
        refine_num_drafts=3,
        refine_trace_dir=str(folder / "trace"),
        refine_trace_texts=True,
        **settings,
    )
    trainer.train()
    groups = read_groups(folder / "trace")
    for group in groups:
        del group["time"]
        for one in group["rounds"]:
            del one["seconds"]
    return groups, logged(trainer, "loss")


@pytest.mark.parametrize("settings", [{}, {"objective": "rloo"}, {"refine_selector": "random"}])
def test_the_same_seed_gives_the_same_run(settings: dict[str, Any], tmp_path: Path) -> None:
    one = _traced(tmp_path / "one", **settings)
    assert one == _traced(tmp_path / "two", **settings)
    assert one != _traced(tmp_path / "three", **{**settings, "seed": 8})
