"""The process that compares: nothing done there, or to it, reaches the caller or stays behind."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refine_wrapper.rewards.math import MathReward
from refine_wrapper.rewards.math_process import MathProcesses

pytestmark = [pytest.mark.usefixtures("stand_in"), pytest.mark.skipif(os.name != "posix", reason="signals")]


@pytest.fixture
def process() -> Iterator[MathProcesses]:
    process = MathProcesses(timeout=1.0)
    yield process
    process.close()


def test_starts_at_the_first_question_and_is_used_again(process: MathProcesses) -> None:
    assert _pid(process) is None
    assert process.ask("x 4", "4") is True
    pid = _pid(process)
    assert pid is not None
    assert process.ask("word", "4") is None
    assert process.ask("x 4", "y 4") is True
    assert process.ask("x 4", "y 5") is False
    assert process.ask("4", "raise 4") is False
    assert process.ask("4\n\u2028\ud800\0", "4") is True
    assert _pid(process) == pid


@pytest.mark.parametrize("how", ["hang", "sleep"])
def test_a_hang_ends_in_time_and_the_next_question_is_answered(process: MathProcesses, how: str) -> None:
    process.ask("4", "4")
    pid = _pid(process)
    started = time.monotonic()
    assert process.ask("4", how) == "timeout"
    assert _pid(process) is None
    assert time.monotonic() - started > 0.9
    assert pid is not None
    assert _gone(pid)
    assert process.ask("4", "4") is True


def test_one_that_hangs_does_not_hold_up_another(stand_in: Path) -> None:
    process = MathProcesses(timeout=50.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(process.ask, "4", "wait 4")
        assert [process.ask("4", answer) for answer in ("4", "5", "x 4")] == [True, False, True]
        assert not waiting.done()
        (stand_in / "math_verify" / "go").touch()
        assert waiting.result() is True
    process.close()


def test_a_question_larger_than_the_pipe(process: MathProcesses) -> None:
    assert process.ask("4 " + "x" * 1_000_000, "4") in (True, "timeout")
    assert process.ask("4", "4") is True


def test_an_answer_that_ends_the_process_is_no_answer(process: MathProcesses) -> None:
    assert process.ask("4", "die") == "crash"
    assert process.ask("4", "4") is True


def test_killed_from_outside_it_is_started_again(process: MathProcesses) -> None:
    process.ask("4", "4")
    first = _pid(process)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert process.ask("4", "4") is True
    assert _pid(process) != first


def test_killed_while_it_compares_the_question_is_asked_again(process: MathProcesses) -> None:
    slow = MathProcesses(timeout=3.0)
    slow.ask("4", "4")
    first = _pid(slow)
    assert first is not None
    killer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    killer.start()
    assert slow.ask("4", "sleep") == "timeout"  # not "crash": the second try hangs as well
    killer.join()
    slow.close()


def test_does_not_end_on_ctrl_c_meant_for_the_trainer(process: MathProcesses) -> None:
    process.ask("4", "4")
    pid = _pid(process)
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    assert process.ask("4", "4") is True
    assert _pid(process) == pid


def test_close_leaves_nothing_and_may_be_repeated() -> None:
    process = MathProcesses(1.0)
    process.ask("4", "4")
    pid = _pid(process)
    assert pid is not None
    process.close()
    process.close()
    assert _pid(process) is None
    assert _gone(pid)


def test_ends_with_the_object_and_without_a_warning() -> None:
    process = MathProcesses(1.0)
    process.ask("4", "4")
    pid = _pid(process)
    assert pid is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del process
        gc.collect()
    assert _gone(pid)


def test_threads_get_what_they_would_get_one_after_another() -> None:
    reward = MathReward(timeout=10)
    rows = [[(gold, answer) for answer in range(8)] for gold in range(8)]

    def score(row: list[tuple[int, int]]) -> list[float | None]:
        return reward(completions=[f"x {a}" for _, a in row], answer=[f"y {g}" for g, _ in row])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(score, rows)) == [[float(g == a) for g, a in row] for row in rows]
    reward.close()


def test_asyncio_to_thread() -> None:
    reward = MathReward(timeout=2)

    async def run() -> list[list[float | None]]:
        calls = [
            asyncio.to_thread(reward, completions=[text], answer=["x 4"]) for text in ("y 4", "hang", "y 5", "y 4 4")
        ]
        return await asyncio.gather(*calls)

    assert asyncio.run(run()) == [[1.0], [0.0], [0.0], [1.0]]
    reward.close()


def test_a_pickled_reward_works_with_a_process_of_its_own() -> None:
    reward = MathReward(timeout=5)
    assert reward(completions=["y 4"], answer=["x 4"]) == [1.0]
    copy = pickle.loads(pickle.dumps(reward))
    assert _pid(copy) is None
    assert copy(completions=["y 4"], answer=["x 4"]) == [1.0]
    assert _pid(copy) != _pid(reward)
    copy.close()
    assert reward._processes.ask("4", "4") is True
    reward.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_starts_its_own_and_leaves_ours_alone() -> None:
    reward = MathReward(timeout=5)
    reward(completions=["y 4"], answer=["x 4"])
    pid = _pid(reward)
    holder = threading.Thread(target=reward, kwargs={"completions": ["sleep"], "answer": ["5"]})
    holder.start()  # holds the lock while we fork, as another thread of a trainer may
    time.sleep(0.3)
    assert _in_fork(lambda: reward(completions=["z 4"], answer=["x 4"]) == [1.0] and _pid(reward) != pid)
    holder.join()
    again = MathReward(timeout=5)
    again(completions=["y 4"], answer=["x 4"])
    pid = _pid(again)
    assert _in_fork(lambda: again(completions=["z 4"], answer=["x 4"]) == [1.0])
    assert again._processes.ask("x 4", "4") is True
    assert _pid(again) == pid  # the fork has ended, and ended nothing
    reward.close()
    again.close()


def test_ends_with_the_interpreter(stand_in: Path) -> None:
    pid = _pid_printed_by(stand_in, "")
    assert _gone(pid)


def test_ends_with_an_interpreter_that_was_killed(stand_in: Path) -> None:
    pid = _pid_printed_by(stand_in, "os.kill(os.getpid(), 9)")
    assert _gone(pid)


def test_ends_with_an_interpreter_that_was_killed_while_its_fork_lives_on(stand_in: Path) -> None:
    pid = _pid_printed_by(
        stand_in, "if os.fork() == 0: os.close(1); time.sleep(30); os._exit(0)\nos.kill(os.getpid(), 9)"
    )
    assert _gone(pid)


def test_ends_with_a_killed_interpreter_even_while_it_hangs(stand_in: Path) -> None:
    hang = "threading.Thread(target=reward, kwargs=dict(completions=['hang'], answer=['4'])).start()"
    pid = _pid_printed_by(stand_in, f"{hang}; time.sleep(0.3); os.kill(os.getpid(), 9)")
    assert _gone(pid, seconds=20)


def test_the_users_script_is_not_imported_again(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    script = stand_in / "train.py"
    script.write_text(
        "print('imported')\nfrom refine_wrapper.rewards.math import MathReward\n"
        "print(MathReward()(completions=['y 4'], answer=['x 4']))\n"
    )
    folder = tmp_path_factory.mktemp("started_here")
    if sys.version_info >= (3, 11):
        # Nor do files in the current folder, which are not on our path, stand in for the standard library's.
        (folder / "json.py").write_text("raise SystemExit('wrong json')")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=_environment(stand_in),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stdout == "imported\n[1.0]\n", done.stderr


def test_a_fork_that_ends_as_usual_leaves_ours_alone(stand_in: Path) -> None:
    code = """
        import os, sys
        from refine_wrapper.rewards.math import MathReward
        reward = MathReward(timeout=5)
        reward(completions=["y 4"], answer=["x 4"])
        before = {process.pid for process in reward._processes._running}
        if (fork := os.fork()) == 0:
            sys.exit()
        os.waitpid(fork, 0)
        assert reward(completions=["y 5"], answer=["x 4"]) == [0.0]
        assert before == {process.pid for process in reward._processes._running}
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=_environment(stand_in),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")


def _pid(owner: MathReward | MathProcesses) -> int | None:
    """Of its one process."""
    running = (owner._processes if isinstance(owner, MathReward) else owner)._running
    assert len(running) <= 1
    return next((process.pid for process in running), None)


def _pid_printed_by(folder: Path, then: str) -> int:
    code = textwrap.dedent(
        """
        import os, threading, time
        from refine_wrapper.rewards.math import MathReward
        reward = MathReward(timeout=3)
        reward(completions=["y 4"], answer=["x 4"])
        print(*(process.pid for process in reward._processes._running), flush=True)
        """
    )
    code += then
    # Only one line is read: what is left behind would hold the pipe, so that it never ends.
    with subprocess.Popen(
        [sys.executable, "-c", code], env=_environment(folder), stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.wait(timeout=30)
    return pid


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def _in_fork(check: Callable[[], object]) -> bool:
    # fork is what is tested, in a process that also has threads
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(0 if check() else 1))
    child.start()
    child.join(20)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def _gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process ends; one that nobody reaped has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
