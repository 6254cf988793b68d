"""The judge as a reward: what is asked, averaged, cached, limited and counted. The client is a stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from refine_wrapper.errors import ConfigError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.rewards.format import FormatReward
from refine_wrapper.rewards.judge import AsyncJudgeReward, FailureKind, JudgeError, JudgeLimitError, JudgeReward
from refine_wrapper.rewards.judge.store import Store
from refine_wrapper.rewards.weighted import WeightedSum, weighted

from .conftest import Endpoint, quoted, verdict

Make = Callable[..., JudgeReward]


def test_scores_are_mapped_to_0_and_1(make: Make, endpoint: Endpoint) -> None:
    judge = make(scale=(1, 5))
    endpoint.answer = lambda request: verdict({"bad": 1, "fair": 2, "good": 5}[quoted(request)[1]])
    assert judge(prompts=["q"] * 3, completions=["good", "bad", "fair"]) == [1.0, 0.0, 0.25]


def test_it_sees_question_and_completion_and_no_label(make: Make, endpoint: Endpoint) -> None:
    completion = [{"role": "assistant", "content": "<think>hidden 7</think>It is 4."}]
    make()(prompts=[[{"role": "user", "content": "2+2?"}]], completions=[completion], answer=["secret"], draft=["x"])
    [request] = endpoint.asked
    assert quoted(request) == ["2+2?", "It is 4."]
    assert "secret" not in json.dumps(request)
    assert request["temperature"] == 0
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["reason", "score"]


def test_the_label_if_asked(make: Make, endpoint: Endpoint) -> None:
    make(label=True)(prompts=["2+2?"], completions=["5"], answer=["4"])
    make(label=True, label_column="gold")(prompts=["2+2?"], completions=["5"], answer=["no"], gold=[4])
    assert [quoted(request) for request in endpoint.asked] == [["2+2?", "4", "5"]]  # the second is the first
    with pytest.raises(ConfigError, match="finds no column 'gold'"):
        make(label=True, label_column="gold")(prompts=["q"], completions=["5"], golden=["4"])


def test_equal_completions_are_judged_once(make: Make, endpoint: Endpoint) -> None:
    judge = make()
    assert judge(prompts=["q", "q", "p", "q"], completions=["a", "a", "a", "bb"]) == [0.1, 0.1, 0.1, 0.2]
    assert len(endpoint.asked) == 3


def test_several_judgements_are_averaged(make: Make, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: verdict((2, 4, 9)[request["seed"]])
    assert make(judgements=3)(prompts=["q"], completions=["a"]) == [pytest.approx(0.5)]
    assert {request["temperature"] for request in endpoint.asked} == {1.0}


def test_a_failed_judgement_is_left_out_of_the_mean_and_counted(make: Make, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: ("I like it", verdict(4), verdict(6))[request["seed"]]
    judge = make(judgements=3)
    assert judge(prompts=["q"], completions=["a"]) == [0.5]
    assert judge.counts()["failures/no_score"] == 1


def test_a_group_is_what_has_one_question(make: Make, endpoint: Endpoint) -> None:
    """Sizes come from the rows; each is scored where it stood, whatever the order it was shown in."""

    def answer(request: dict[str, Any]) -> str:
        scores = [len(text) for text in quoted(request)[1:]]
        return json.dumps({"scores": scores})

    endpoint.answer = answer
    judge = make(together=True, judgements=4)
    texts = ["a", "bb", "ccc", "bb", "dddd", "eeeee"]
    questions = ["q", "q", "q", "q", "p", "p"]
    assert judge(prompts=questions, completions=texts) == [0.1, 0.2, 0.3, 0.2, 0.4, 0.5]
    assert len(endpoint.asked) == 2 * 4
    orders = {tuple(quoted(request)[1:]) for request in endpoint.asked if quoted(request)[0] == "q"}
    assert len(orders) > 1
    assert all(sorted(order) == ["a", "bb", "ccc"] for order in orders)
    schema = endpoint.asked[0]["response_format"]["json_schema"]["schema"]["properties"]["scores"]
    assert schema["minItems"] == schema["maxItems"] == 3
    assert judge.needs_group
    assert WeightedSum([(judge, 1.0)]).needs_group
    assert not WeightedSum([(make(), 1.0)]).needs_group


@pytest.mark.parametrize("reply", ['{"scores": [1, 2]}', '{"scores": [1, 2, 3, 4]}', '{"scores": 3}', '{"score": 3}'])
def test_a_group_needs_a_score_for_each(make: Make, endpoint: Endpoint, reply: str) -> None:
    judge = make(together=True)
    endpoint.answer = lambda request: verdict(5) if "p" in quoted(request) else reply
    endpoint.answer = lambda request: json.dumps({"scores": [5]}) if quoted(request)[0] == "p" else reply
    rewards = judge(prompts=["q", "q", "q", "p"], completions=["a", "b", "c", "d"])
    assert rewards == [None, None, None, 0.5]


FAILURES: dict[FailureKind, Any] = {
    FailureKind.NO_SCORE: "It is a fine answer.",
    FailureKind.OUT_OF_SCALE: verdict(11),
    FailureKind.CUT_OFF: ('{"score": 5}', "length"),
    FailureKind.NO_REPLY: " ",
    FailureKind.TIMEOUT: "APITimeoutError",
    FailureKind.UNREACHABLE: "APIConnectionError",
    FailureKind.RATE_LIMITED: 429,
    FailureKind.SERVER_ERROR: 503,
    FailureKind.REFUSED: 400,
}


def test_in_a_weighted_sum_a_failed_judgement_is_not_0(make: Make, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: verdict(5) if quoted(request)[1] == "\\boxed{4}" else "hm"
    both = WeightedSum([(make(), 1.0), (FormatReward(), 0.2)])
    assert both(prompts=["q"] * 2, completions=["\\boxed{4}", "\\boxed{5}"]) == [0.7, None]


@pytest.mark.parametrize("kind", FailureKind)
def test_what_fails_is_none_with_a_reason_and_counted(
    make: Make, endpoint: Endpoint, kind: FailureKind, caplog: pytest.LogCaptureFixture
) -> None:
    openai = sys.modules["openai"]
    fault = FAILURES[kind]
    if isinstance(fault, int):
        fault = openai.APIStatusError(fault)
    elif isinstance(fault, str) and fault.startswith("API"):
        fault = getattr(openai, fault)("down")
    endpoint.answer = lambda request: verdict(3) if quoted(request)[1] == "good" else fault
    judge = make()
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, float] = {}
    rewards = judge(
        prompts=["q"] * 3,
        completions=["x", "good", "y"],
        log_extra=extra.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert rewards == [None, 0.3, None]
    first, middle, last = extra["judge_failure"]
    assert first.startswith(f"{kind.value}: ")
    assert last.startswith(f"{kind.value}: ")
    assert middle == ""
    assert metrics["judge/failures"] == metrics[f"judge/failures/{kind.value}"] == 2
    assert metrics["judge/calls"] == 3
    assert sum(f"{kind.value}: " in record.message for record in caplog.records) == 1  # said once


def test_a_judge_that_never_works_is_an_error(make: Make, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: "no idea"
    judge = make()
    with pytest.raises(JudgeError, match=r"no score so far \(2 no_score\). The first: .*'no idea'") as raised:
        judge(prompts=["q"] * 2, completions=["a", "b"])
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.kind) == (str(raised.value), FailureKind.NO_SCORE)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_an_error_at_once(make: Make, endpoint: Endpoint, status: int) -> None:
    judge = make()
    judge(prompts=["q"], completions=["a"])
    endpoint.answer = lambda request: sys.modules["openai"].APIStatusError(status)
    with pytest.raises(ConfigError, match=rf"http://judge/v1 refuses every request \({status}\)"):
        judge(prompts=["q"], completions=["b"])


def test_patience_ends_a_judgement(make: Make, endpoint: Endpoint) -> None:
    judge = make(patience=0.2)
    judge(prompts=["q"], completions=["a"])
    endpoint.seconds = 30
    started = time.monotonic()
    assert judge(prompts=["q"], completions=["b"]) == [None]
    assert time.monotonic() - started < 20
    assert judge.counts()["failures/timeout"] == 1


def test_the_clients_own_retries_and_time_limit_are_used(make: Make, endpoint: Endpoint) -> None:
    make(retries=7, timeout=3)(prompts=["q"], completions=["a"])
    [client] = endpoint.clients
    assert client == {"api_key": "none", "base_url": "http://judge/v1", "max_retries": 7, "timeout": 3.0}


def test_calls_at_once_are_bounded(make: Make, endpoint: Endpoint) -> None:
    endpoint.seconds = 0.02
    make(concurrency=3)(prompts=["q"] * 10, completions=[str(n) for n in range(10)])
    assert len(endpoint.asked) == 10
    assert endpoint.most_at_once == 3


def test_a_resumed_run_pays_nothing_twice(make: Make, endpoint: Endpoint) -> None:
    rows = {"prompts": ["q"] * 3, "completions": ["a", "bb", "ccc"]}
    first = make()
    expected = first(**rows)
    first.close()
    resumed = make()
    assert resumed(**rows) == expected
    assert len(endpoint.asked) == 3
    assert resumed.counts()["cache_hits"] == 3
    assert resumed.counts()["calls"] == 0
    # Another model, prompt, temperature or schema is another question.
    for changed in ({"model": "n"}, {"temperature": 0.5}, {"scale": (0, 20)}, {"request": {"top_p": 0.5}}):
        make(**changed)(prompts=["q"], completions=["a"])
    assert len(endpoint.asked) == 3 + 4
    # Another address of the same model is not.
    make(base_url="http://elsewhere/v1")(prompts=["q"], completions=["a"])
    assert len(endpoint.asked) == 7


def test_an_unreadable_reply_was_paid_as_well(make: Make, endpoint: Endpoint) -> None:
    """And another pattern reads it, without a new call."""
    endpoint.answer = lambda request: "Grade 8"
    with pytest.raises(JudgeError):
        make(read="pattern", pattern=r"Mark (\d+)")(prompts=["q"], completions=["a"])
    assert make(read="pattern", pattern=r"Grade (\d+)")(prompts=["q"], completions=["a"]) == [0.8]
    assert len(endpoint.asked) == 1


def test_the_same_question_under_way_is_asked_once(make: Make, endpoint: Endpoint) -> None:
    endpoint.seconds = 0.3
    judge = make()
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(judge, prompts=["q"], completions=["a"]) for _ in range(6)]
        assert [call.result() for call in calls] == [[0.1]] * 6
    assert len(endpoint.asked) == 1
    assert judge.counts()["cache_hits"] == 5


def test_calls_of_a_run_are_limited_over_processes_and_resumptions(make: Make, endpoint: Endpoint) -> None:
    make(max_calls=3)(prompts=["q"] * 2, completions=["a", "b"])
    again = make(max_calls=3)
    with pytest.raises(JudgeLimitError, match=r"max_calls = 3\. What was paid is in .*judge\.sqlite: raise the limit"):
        again(prompts=["q"] * 4, completions=["a", "b", "c", "d"])
    assert len(endpoint.asked) == 3
    assert make(max_calls=1, run="another")(prompts=["q"], completions=["d" * 9]) == [0.9]
    assert make(max_calls=9)(prompts=["q"] * 2, completions=["a", "e"]) == [0.1, 0.1]


def test_tokens_of_a_run_are_limited(make: Make, endpoint: Endpoint) -> None:
    judge = make(max_total_tokens=300, concurrency=1)  # 110 a call
    with pytest.raises(JudgeLimitError, match=r"max_total_tokens = 300 \(330 spent\)"):
        judge(prompts=["q"] * 5, completions=list("abcde"))
    assert len(endpoint.asked) == 3


def test_the_time_of_a_process_is_limited(make: Make, endpoint: Endpoint) -> None:
    endpoint.seconds = 0.2
    judge = make(max_seconds=0.3, concurrency=1)
    with pytest.raises(JudgeLimitError, match=r"max_seconds = 0\.3"):
        judge(prompts=["q"] * 8, completions=list("abcdefgh"))
    assert 1 <= len(endpoint.asked) < 8
    assert judge(prompts=["q"], completions=["a"]) == [0.1]  # what is known costs no time


def test_without_a_cache_the_limit_says_what_that_means(make: Make) -> None:
    with pytest.raises(JudgeLimitError, match="Without `cache` a resumed run pays for all of them again"):
        make(max_calls=1, cache=None, concurrency=1)(prompts=["q"] * 2, completions=["a", "b"])


_COUNTER = """
import sys
from pathlib import Path
from refine_wrapper.rewards.judge.store import Reply, Store
store = Store(Path(sys.argv[1]), "run")
taken = 0
for number in range(100):
    taken += store.take_call(150, None) is None
    store.put(f"{number}", Reply("text", "stop", 1, 1))
print(taken)
"""


def test_processes_share_one_file(tmp_path: Path) -> None:
    """Three at once: no call too many, no count and no reply lost."""
    path = tmp_path / "judge.sqlite"
    command = [sys.executable, "-c", _COUNTER, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    taken = [int(process.communicate(timeout=50)[0]) for process in running]
    assert sum(taken) == 150
    store = Store(path, "run")
    assert store.counts() == {"calls": 150, "prompt_tokens": 300, "completion_tokens": 300}
    assert all(store.get(str(number)) is not None for number in range(100))
    store.close()


def test_a_disk_that_fails_costs_a_warning(
    make: Make, endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = make(max_calls=3, trace_dir=tmp_path / "trace", concurrency=1)
    judge(prompts=["q"], completions=["a"])
    with sqlite3.connect(tmp_path / "judge.sqlite") as file:
        file.executescript("drop table replies; drop table counts")
    file.close()
    (tmp_path / "trace" / "judge.jsonl").unlink()
    (tmp_path / "trace").rmdir()
    (tmp_path / "trace").write_text("no folder")
    assert judge(prompts=["q"] * 2, completions=["b", "c"]) == [0.1, 0.1]
    assert judge.counts()["cache_failures"] > 0
    assert sum("the cache fails" in record.message for record in caplog.records) == 1
    assert sum("judge.jsonl cannot be written" in record.message for record in caplog.records) == 1
    with pytest.raises(JudgeLimitError):  # limits hold for this process then
        judge(prompts=["q"], completions=["d"])


def test_a_file_that_is_no_cache_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("These are notes and no database, and long enough to be seen as such." * 20)
    with pytest.raises(ConfigError, match=r"the cache .*notes\.txt' cannot be used"):
        make(cache=tmp_path / "notes.txt")(prompts=["q"], completions=["a"])


def test_prompts_and_replies_are_traced_if_texts_are(
    make: Make, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFINE_WRAPPER_TRACE_DIR", str(tmp_path / "numbers"))
    make()(prompts=["q"], completions=["a"])
    assert not (tmp_path / "numbers").exists()
    monkeypatch.setenv("REFINE_WRAPPER_TRACE_TEXTS", "true")
    endpoint.answer = lambda request: "hm" if quoted(request)[1] == "odd" else verdict(2)
    make()(prompts=["q"] * 3, completions=["a", "bb", "odd"])
    lines = [json.loads(line) for line in (tmp_path / "numbers" / "judge.jsonl").read_text().splitlines()]
    by_answer = {quoted(line)[1]: line for line in lines}
    assert by_answer["a"]["cached"] is True
    assert by_answer["bb"]["cached"] is False
    assert by_answer["bb"]["reply"] == verdict(2)
    assert by_answer["bb"]["scores"] == [0.2]
    assert by_answer["odd"]["scores"] is None
    assert by_answer["odd"]["failure"].startswith("no_score: ")


def test_the_asynchronous_one(make: Make, endpoint: Endpoint) -> None:
    """From several event loops, and a caller that gives up loses its answer but not what was paid."""
    endpoint.seconds = 0.1
    judge: Any = make(AsyncJudgeReward)
    assert asyncio.iscoroutinefunction(type(judge).__call__)

    async def give_up() -> None:
        await asyncio.wait_for(judge(prompts=["q"], completions=["a"]), 0.02)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(give_up())
    time.sleep(0.3)
    assert asyncio.run(judge(prompts=["q"] * 2, completions=["a", "bb"])) == [0.1, 0.2]
    assert len(endpoint.asked) == 2


def test_registered_with_settings_from_the_environment(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = Plugins(entry_points=False).get("reward", "judge")
    with pytest.raises(ConfigError, match="set REFINE_WRAPPER_JUDGE to its path"):
        registered(prompts=["q"], completions=["a"])
    (tmp_path / "prompt.txt").write_text("To {question}: rate {completion}, {{low}} is {low}")
    (tmp_path / "judge.yaml").write_text("model: m\nbase_url: http://judge/v1\nprompt: prompt.txt\ncache: c.sqlite\n")
    monkeypatch.setenv("REFINE_WRAPPER_JUDGE", str(tmp_path / "judge.yaml"))
    monkeypatch.chdir("/")  # paths in the file are relative to it
    both = weighted(("judge", 2.0), ("format", 1.0))
    assert both(prompts=["q"], completions=["\\boxed{4}"]) == [pytest.approx(2 * 0.9 + 1)]
    assert "{low} is 0" in endpoint.asked[0]["messages"][1]["content"]
    assert (tmp_path / "c.sqlite").exists()
    registered.close()
    registered._forget()


def test_pickled_and_forked_it_goes_on(make: Make, endpoint: Endpoint) -> None:
    judge = make()
    judge(prompts=["q"], completions=["a"])
    copy = pickle.loads(pickle.dumps(judge))
    assert copy(prompts=["q"], completions=["a"]) == [0.1]
    copy.close()
    child = os.fork()
    if child == 0:
        # Its thread is not here: a child that used it would wait for ever.
        rewards = judge(prompts=["q"] * 2, completions=["a", "bb"])
        os._exit(0 if rewards == [0.1, 0.2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert judge(prompts=["q"], completions=["bb"]) == [0.2]
    assert len(endpoint.asked) == 1  # the child's calls were its own, and its replies are shared


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'refine-wrapper\[judge\]'"):
        JudgeReward(model="m", base_url="http://judge/v1")(prompts=["q"], completions=["a"])


def test_without_key_and_address_it_says_what_to_set(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY has no key"):
        JudgeReward(model="m")(prompts=["q"], completions=["a"])
    monkeypatch.setenv("MY_KEY", "k")
    judge = JudgeReward(model="m", api_key_variable="MY_KEY")
    judge(prompts=["q"], completions=["a"])
    assert endpoint.clients[-1]["api_key"] == "k"
    judge.close()


def test_no_question_is_an_error(make: Make) -> None:
    with pytest.raises(ConfigError, match="needs the question as text or as a conversation, not None"):
        make()(prompts=[None], completions=["a"])
    assert make(question_column="problem")(prompts=[None], completions=["a"], problem=["q"]) == [0.1]
