"""Modes on veRL's own trainers: what each row was trained under and paid, from the host's queue, dump and log.

The oracle is what the reward function was asked, call by call, and the tokenizer: no code of ours.
"""

from __future__ import annotations

from functools import cache
from statistics import fmean, stdev
from typing import Any

import pytest
from refine_testing.tiny import tiny_tokenizer
from refine_testing.verl_host import TEMPLATE_IS_IN, Run, question

pytestmark = pytest.mark.timeout(2000)
N, S, RIGHT = 2, 4, 0.5

ONE_BY_ONE = {
    1: "paper",
    2: "joint",
    3: "on_failure",
    4: "rescue",
    5: "joint",
    6: "on_failure",
    7: "rescue",
    8: "rounds",
}
V0 = {1: "paper", 2: "joint", 3: "on_failure", 4: "rescue"}


@cache
def _tokenizer() -> Any:
    return tiny_tokenizer()


def _on_q(number: int) -> str:
    """What the chat template makes of a question."""
    turns = [{"role": "user", "content": question(number)}]
    return _tokenizer().apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def _calls(run: Run, number: int) -> list[dict[str, Any]]:
    """What was paid for the samples of a question, in order: a round is scored before the next is sampled."""
    return [call for call in run.calls if call["index"] == number]


def _expected(mode: str, calls: list[dict[str, Any]]) -> list[tuple[str, float, bool]]:
    """(text, reward, trained under q) of each row of a group."""
    rows = [(call["text"], call["score"]) for call in calls]
    if mode == "paper":
        assert len(rows) == N + S
        return [(text, score, False) for text, score in rows[N:]]
    if mode == "joint":
        assert len(rows) == S
        return [(text, score, place < N) for place, (text, score) in enumerate(rows)]
    if mode == "on_failure":
        assert len(rows) == S
        assert all(score < RIGHT for _, score in rows[:N])
        assert any(score >= RIGHT for _, score in rows[N:])
        return [(text, score, place < N or score >= RIGHT) for place, (text, score) in enumerate(rows)]
    if mode == "rounds":
        return [(text, score, False) for text, score in rows[-S:]]
    raise ValueError(mode)


def _check_group(mode: str, number: int, calls: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """The rows of one group as they are trained: text of prompt and answer, and reward."""
    on_q = _on_q(number)
    for row in rows:
        row["under_q"] = row["prompt"] == on_q
        assert row["under_q"] != (TEMPLATE_IS_IN in row["prompt"])
    trained = sorted((row["answer"], row["reward"], row["under_q"]) for row in rows)
    if mode == "rescue":
        first, more = calls[:S], calls[S:]
        assert len(more) == N
        assert all(call["score"] < RIGHT for call in first)
        right = [call["text"] for call in more if call["score"] >= RIGHT]
        assert right
        assert all(under_q for _, _, under_q in trained)
        assert {text for text, score, _ in trained if score >= RIGHT} == set(right)
        wrong = [text for text, score, _ in trained if score < RIGHT]
        assert len(wrong) == S - len(right)
        assert set(wrong) <= {call["text"] for call in first}
        return
    for (text, reward, under_q), (wanted_text, wanted_reward, wanted_under_q) in zip(
        trained, sorted(_expected(mode, calls)), strict=True
    ):
        assert (text, under_q) == (wanted_text, wanted_under_q)
        assert reward == pytest.approx(wanted_reward, abs=1e-5)
    [refined] = {row["prompt"] for row in rows if not row["under_q"]}  # one q' for all of a group
    if mode != "rounds":
        best = max(call["score"] for call in calls[:N])
        assert any(call["text"].strip() in refined for call in calls[:N] if call["score"] == best)


@pytest.mark.parametrize("step", ONE_BY_ONE)
def test_what_each_row_is_trained_under_and_paid(one_by_one: Run, step: int) -> None:
    """All that lay in TransferQueue when the batch of a step was taken: ids, rewards, sessions."""
    tokenizer = _tokenizer()
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in one_by_one.queue[step]["rows"].values():
        groups.setdefault(row["extra_info"]["index"], []).append(
            {
                "prompt": tokenizer.decode(row["prompts"]),
                "answer": tokenizer.decode(row["responses"], skip_special_tokens=True),
                "reward": sum(row["rm_scores"]),
                "session": row["session_id"],
            }
        )
        assert row["raw_prompt"] == [{"role": "user", "content": question(row["extra_info"]["index"])}]
    assert sorted(groups) == [4 * (step - 1) + place for place in range(4)]
    for number, rows in groups.items():
        assert sorted(row["session"] for row in rows) == list(range(S))
        _check_group(ONE_BY_ONE[step], number, _calls(one_by_one, number), rows)
    assert one_by_one.log[step]["actor/grad_norm"] > 0


@pytest.mark.parametrize("step", [7, 8])
def test_advantages_are_the_hosts_over_all_rows_of_a_group(one_by_one: Run, step: int) -> None:
    """GRPO on what was paid: (R - mean) / std over the S rows, as the host logs it."""
    groups: dict[str, list[float]] = {}
    for row in one_by_one.queue[step]["rows"].values():
        groups.setdefault(row["uid"], []).append(sum(row["rm_scores"]))
    assert [len(rewards) for rewards in groups.values()] == [S] * 4
    advantages = [(r - fmean(g)) / (stdev(g) + 1e-6) for g in groups.values() for r in g]
    log = one_by_one.log[step]
    assert log["critic/advantages/max"] == pytest.approx(max(advantages), rel=1e-4)
    assert log["critic/advantages/min"] == pytest.approx(min(advantages), rel=1e-4)
    assert log["critic/score/mean"] == pytest.approx(fmean(r for g in groups.values() for r in g), rel=1e-4)


@pytest.mark.parametrize("step", V0)
def test_the_legacy_trainer(v0: Run, step: int) -> None:
    """From its own dump of what it trained."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for line in v0.trained[step]:
        number = int(line["input"].split("Q")[1].split(":")[0])
        prompt = line["input"]
        groups.setdefault(number, []).append({"prompt": prompt, "answer": line["output"], "reward": line["score"]})
    assert sorted(groups) == [3 * (step - 1) + place for place in range(3)]
    for number, rows in groups.items():
        assert len(rows) == S
        for row in rows:  # the dump leaves out special tokens
            row["prompt"] = _on_q(number) if row["prompt"] == _plain(_on_q(number)) else row["prompt"]
        _check_group(V0[step], number, _calls(v0, number), rows)
    assert v0.log[step]["critic/grad_norm"] > 0


def _plain(text: str) -> str:
    tokenizer = _tokenizer()
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True)


def test_the_trace_says_what_was_trained(one_by_one: Run) -> None:
    for step, mode in ONE_BY_ONE.items():
        groups = [group for group in one_by_one.groups if group["step"] == step]
        assert len(groups) == 4
        assert all(group["refined"] and len(group["slots"]) == S for group in groups)
        on_question = [slot[1] for group in groups for slot in group["slots"]]
        assert any(on_question) == (mode in ("on_failure", "rescue"))
        assert one_by_one.log[step]["refine/refined_share"] == 1.0
