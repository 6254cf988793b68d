"""Drafts and rewards that fail, one by one and all together: real executor and rewards, the engine is a stand-in."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from refine_testing.openrlhf_engine import NOTE, Engine, Params, chat, marked, sample_group

from refine_wrapper.core.types import Cause, Group, Outcome
from refine_wrapper.errors import NoDraftError, NoRewardError
from refine_wrapper_openrlhf.agent import LOGGED, make_agent_executor
from refine_wrapper_openrlhf.launched_agent import GROUP, AgentExecutor

pytestmark = pytest.mark.oldest

Q = chat("How many?")
REWARD = """
import time, torch
def reward_func(queries, prompts, labels):
    completion = queries[0][len(prompts[0]):]
    value = float("".join(filter(str.isdigit, completion)) or 0) / 10
    if {when}:
        {fault}
    return {{"rewards": torch.tensor([value]), "extra_logs": {{"seen": value}}}}
"""
RAISING = ("raise RuntimeError('broken')", Outcome.REWARD_EXCEPTION)
HANGING = ("time.sleep(3)", Outcome.TIMEOUT)
FAULTS = {
    "raises": RAISING,
    "hangs": HANGING,
    "none": ("return None", Outcome.NO_REWARD),
    "none_value": ("return {'rewards': None}", Outcome.NO_REWARD),
    "not_a_dict": ("return [1.0]", Outcome.NO_REWARD),
    "nan": ("value = float('nan')", Outcome.NON_FINITE),
    "wrong_shape": ("return {'rewards': torch.tensor([0.1, 0.2])}", Outcome.WRONG_LENGTH),
}
fault = pytest.mark.parametrize("name", FAULTS)


def limit(name: str) -> float | None:
    """``draft_timeout``, where it is needed: on a busy machine any reward may take a second."""
    return 1.5 if name == "hangs" else None


def reward_file(folder: Path, when: str, fault: str) -> str:
    path = folder / "reward.py"
    path.write_text(REWARD.format(when=when, fault=fault))
    return str(path)


def engine_with_draft_digits(*digits: int) -> Engine:
    return Engine(lambda prompt, n: f"refined {n}" if NOTE in prompt else f"draft {digits[n % len(digits)]}")


def run(engine: Engine, params: Any, executor: Any = None, size: int = 2) -> list[dict[str, Any]]:
    return asyncio.run(sample_group(executor or AgentExecutor(), engine, Q, "4", params, size=size))


@fault
def test_a_reward_that_fails_on_one_draft_costs_that_draft(name: str, tmp_path: Path) -> None:
    code, outcome = FAULTS[name]
    reward = reward_file(tmp_path, "'draft 9' in completion", code)
    rows = run(engine_with_draft_digits(3, 9, 5), marked(reward, draft_timeout=limit(name)))
    group: Group = rows[0][GROUP]
    assert [draft.outcome for draft in group.drafts] == [Outcome.OK, outcome, Outcome.OK]
    assert group.last_shown() is group.samples[2]
    assert group.trainable
    assert [float(row["reward"]) for row in rows] == [0.0, pytest.approx(0.1)]


@fault
def test_drafts_that_all_fail_leave_the_group_plain(name: str, tmp_path: Path) -> None:
    code, outcome = FAULTS[name]
    reward = reward_file(tmp_path, "'draft' in completion", code)
    engine = Engine(lambda prompt, n: f"draft {n}" if n < 3 else f"plain {n}")
    rows = run(engine, marked(reward, draft_timeout=limit(name)))
    group: Group = rows[0][GROUP]
    assert {draft.outcome for draft in group.drafts} == {outcome}
    assert not group.refined
    assert group.cause is Cause.NO_USABLE_DRAFT
    assert engine.prompts == [Q] * 5
    assert [float(row["reward"]) for row in rows] == [pytest.approx(0.3), pytest.approx(0.4)]


def test_all_drafts_fail_and_the_run_is_to_stop(tmp_path: Path) -> None:
    reward = reward_file(tmp_path, "'draft' in completion", RAISING[0])
    with pytest.raises(NoDraftError, match="RuntimeError: broken"):
        run(engine_with_draft_digits(1, 2, 3), marked(reward, on_no_draft="error"))


@fault
def test_a_reward_that_fails_on_a_refinement_leaves_the_group_out(name: str, tmp_path: Path) -> None:
    reward = reward_file(tmp_path, "'refined 1' in completion", FAULTS[name][0])
    rows = run(engine_with_draft_digits(1, 2, 3), marked(reward, draft_timeout=limit(name)))
    group: Group = rows[0][GROUP]
    assert not group.trainable
    assert [refinement.outcome for refinement in group.refinements] == [Outcome.OK, FAULTS[name][1]]
    # Nothing is left that could not become a tensor on the way to where the group is left out.
    assert (rows[1]["reward"], rows[1]["scores"], rows[1]["extra_logs"]) == (None, None, {})
    assert float(rows[0]["reward"]) == 0


def test_an_engine_error_on_one_draft_costs_that_draft(tmp_path: Path) -> None:
    def script(prompt: str, n: int) -> str:
        if NOTE not in prompt and n == 0:
            raise RuntimeError("engine broke")
        return f"text {n}"

    rows = run(Engine(script), marked(reward_file(tmp_path, "False", "pass")))
    drafts = rows[0][GROUP].drafts
    assert [draft.outcome for draft in drafts] == [Outcome.EXCEPTION, Outcome.OK, Outcome.OK]
    assert "engine broke" in drafts[0].detail


def test_empty_drafts_are_no_drafts(tmp_path: Path) -> None:
    engine = Engine(lambda prompt, n: "" if n < 3 else "plain 1")
    group = run(engine, marked(reward_file(tmp_path, "False", "pass")))[0][GROUP]
    assert {draft.outcome for draft in group.drafts} == {Outcome.EMPTY}


# The reward over HTTP, as openrlhf.cli.serve_rm answers: lists of one.


@contextmanager
def server(answer: Callable[[int], tuple[int, float]]) -> Generator[tuple[str, list[float]]]:
    """An HTTP reward; ``answer`` gives status and delay of the n-th request."""
    times: list[float] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import json

            with lock:
                number = len(times)
                times.append(time.monotonic())
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, delay = answer(number)
            time.sleep(delay)
            value = float("".join(filter(str.isdigit, asked["query"][0][len(asked["prompts"][0]) :])) or 0) / 10
            body = json.dumps({"rewards": [value], "scores": [value], "extra_logs": {"http": [value]}}).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client gave up, which some tests want

        def log_message(self, format: str, *arguments: Any) -> None: ...

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/get_reward", times
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


def test_an_http_reward() -> None:
    with server(lambda n: (200, 0)) as (url, times):
        rows = run(engine_with_draft_digits(3, 7, 5), marked(url))
    assert len(times) == 5
    assert [draft.reward for draft in rows[0][GROUP].drafts] == [0.3, 0.7, 0.5]
    assert rows[0][GROUP].rounds[1].ask.show == 1
    assert [row["reward"] for row in rows] == [[0.0], [0.1]]


def test_an_http_reward_that_recovers_is_asked_again() -> None:
    with server(lambda n: (503 if n < 3 else 200, 0)) as (url, times):
        rows = run(engine_with_draft_digits(3, 7, 5), marked(url))
    assert len(times) == 3 + 5
    assert rows[0][GROUP].trainable
    assert rows[0][GROUP].refined


def test_a_slow_http_reward_costs_the_drafts_it_is_slow_for() -> None:
    with server(lambda n: (200, 1.5 if n == 0 else 0)) as (url, _):
        group = run(engine_with_draft_digits(3, 7, 5), marked(url, draft_timeout=0.7))[0][GROUP]
    assert sorted(draft.outcome.value for draft in group.drafts) == ["ok", "ok", "timeout"]
    assert group.trainable


def test_an_http_reward_that_is_down_is_said_to_be() -> None:
    group = run(engine_with_draft_digits(3, 7, 5), marked("http://127.0.0.1:9/get_reward", size=1), size=1)[0][GROUP]
    assert {draft.outcome for draft in group.drafts} == {Outcome.REWARD_EXCEPTION}
    assert not group.trainable
    assert "Request error for 5 times" in group.rows_S[0].detail


# The agent file cannot leave a group out.


def test_an_agent_file_gives_a_failed_refinement_the_mean_of_its_siblings(tmp_path: Path) -> None:
    reward = reward_file(tmp_path, "'refined 1' in completion", RAISING[0])
    executor = make_agent_executor(num_drafts=3, reward=reward)()
    rows = run(engine_with_draft_digits(1, 2, 3), Params(), executor, size=3)
    assert [float(row["reward"]) for row in rows] == [0.0, pytest.approx(0.1), pytest.approx(0.2)]
    assert len({tuple(sorted(row["extra_logs"])) for row in rows}) == 1
    assert rows[0]["extra_logs"]["refine/refinement_failures"] == 1


def test_an_agent_file_stops_where_no_refinement_has_a_reward(tmp_path: Path) -> None:
    reward = reward_file(tmp_path, "True", RAISING[0])
    executor = make_agent_executor(num_drafts=3, reward=reward)()
    with pytest.raises(NoRewardError, match="RuntimeError: broken"):
        run(engine_with_draft_digits(1, 2, 3), Params(), executor)


def test_an_agent_file_logs_the_same_keys_on_all_samples(tmp_path: Path) -> None:
    reward = reward_file(tmp_path, "'draft' in completion and '7' in completion", RAISING[0])
    executor = make_agent_executor(num_drafts=1, reward=reward)()
    refined = run(engine_with_draft_digits(1), Params(), executor)
    plain = run(Engine(lambda prompt, n: "draft 7" if n == 0 else "x"), Params(), executor)
    assert refined[0]["extra_logs"]["refine/refined_share"] == 1
    assert plain[0]["extra_logs"]["refine/refined_share"] == 0
    assert {frozenset(row["extra_logs"]) for row in (*refined, *plain)} == {frozenset({"seen", *LOGGED})}
