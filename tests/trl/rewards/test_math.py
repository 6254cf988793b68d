r"""The math reward with math-verify itself: what is equal, and that sympy cannot hang a trainer."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from refine_wrapper.rewards.math import MathReward
from refine_wrapper.rewards.weighted import WeightedSum, weighted

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    reward = MathReward(timeout=30)
    yield reward
    reward.close()


EQUAL = [
    ("42", "The answer is 42."),
    ("42", r"\boxed{42.0}"),
    ("1,000", r"\boxed{1000}"),
    ("1000", r"\boxed{1{,}000}"),
    ("1/2", r"\boxed{\frac{1}{2}}"),
    (r"\frac{1}{2}", "<answer>1/2</answer>"),
    (r"\frac12", r"\boxed{\dfrac{2}{4}}"),
    ("0.5", r"I find $\frac{1}{2}$"),
    ("2 1/2", r"\boxed{\frac{5}{2}}"),
    (r"-\frac{3}{4}", r"\boxed{-0.75}"),
    ("50%", r"\boxed{0.5}"),
    (r"50\%", r"\boxed{50}"),
    ("(1,2]", r"\boxed{(1, 2]}"),
    (r"(-\infty, 3)", r"\boxed{\left(-\infty,3\right)}"),
    (r"(-\infty,3]\cup[4,\infty)", r"\boxed{[4,\infty)\cup(-\infty,3]}"),
    (r"\left(1, \frac{\pi}{2}\right)", r"\boxed{(1, \pi/2)}"),
    (r"\{1, 2\}", r"\boxed{2, 1}"),
    ("(1, 2, 3)", r"\boxed{(1,2,3)}"),
    (r"x^2 + 2x + 1", r"\boxed{(x+1)^2}"),
    (r"2\sqrt{2}", r"\boxed{\sqrt{8}}"),
    ("3!", r"\boxed{6}"),
    ("7", "3 + 4\n= 7"),
    ("5", r"\boxed{\$5}"),
    ("(1, 2)", r"Hence \((1, 2)\)."),
    ("2**3", "<answer>8</answer>"),
    ("1e-7", r"\boxed{10^{-7}}"),
    (1e-7, r"\boxed{0.0000001}"),
    (r"\pi", "<answer>pi</answer>"),
    ("x = 3", r"\boxed{3}"),
    ("3", r"\boxed{x = 3}"),
    ("3 cm", r"\boxed{3\text{ cm}}"),
    ("3", r"\boxed{3\text{ cm}}"),
    (r"90^\circ", r"\boxed{90}"),
    ("yes", r"\boxed{\text{Yes}}"),
    ("A", r"\boxed{\text{(A)}}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    ("Natalia sold 48/2 = 24 clips.\n#### 72", "she sold 72 in all\n#### 72.0"),
    (r"We have $x=\boxed{\frac{1}{3}}$.", r"<think>maybe \boxed{3}</think> so $\boxed{\frac{2}{6}}$"),
]

DIFFERENT = [
    ("42", "The answer is 43."),
    ("42", ""),
    ("42", "I do not know."),
    ("42", r"\boxed{}"),
    ("42", r"\boxed{-42}"),
    ("1/2", r"\boxed{0.51}"),
    ("1/3", r"\boxed{0.33}"),
    ("50%", r"\boxed{5}"),
    ("[1,2]", r"\boxed{[1,2)}"),
    ("(1,2)", r"\boxed{(2,1)}"),
    (r"\{1, 2\}", r"\boxed{1}"),
    ("1", r"\boxed{1, 2}"),
    ("x+1", r"\boxed{x-1}"),
    ("no", r"\boxed{on}"),
    ("hello", r"\boxed{olleh}"),
    ("yes", r"\boxed{no}"),
    ("A", r"\boxed{B}"),
    ("3", r"<think>\boxed{3}</think> so \boxed{4}"),
    ("3", r"\boxed{3} no, \boxed{4}"),
    ("3", "\\boxed{" * 5000),
    ("3", r"\boxed{\frac{1}{}}"),
    ("3", r"\boxed{1/0}"),
    ("3", "\ud800\0\u2028"),
]


@pytest.mark.parametrize(("gold", "completion"), EQUAL)
def test_equal(reward: MathReward, gold: Any, completion: str) -> None:
    assert reward(prompts=["q"], completions=[completion], answer=[gold]) == [1.0]


@pytest.mark.parametrize(("gold", "completion"), DIFFERENT)
def test_different(reward: MathReward, gold: Any, completion: str) -> None:
    assert reward(prompts=["q"], completions=[completion], answer=[gold]) == [0.0]


@pytest.mark.parametrize("gold", [None, "", "$", "}{", float("nan")])
def test_without_a_readable_gold_answer_it_does_not_apply(reward: MathReward, gold: Any) -> None:
    completions = ["1", str(gold), rf"\boxed{{{gold}}}"]
    assert reward(prompts=["q"] * 3, completions=completions, answer=[gold] * 3) == [None] * 3


HANGING = [
    "9^{9^{9^{9}}}",
    "9^{9^{9}}",
    "(10!)!",
    "1000000000!",
    "(" * 400 + "1" + ")" * 400,
    "x^{100000}+(x+1)^{30000}",
]


@pytest.mark.parametrize("answer", HANGING)
def test_what_hangs_sympy_is_given_up_and_counted(answer: str) -> None:
    reward = MathReward(timeout=4)
    rewards = reward(completions=[rf"\boxed{{{answer}}}", r"\boxed{2/4}"], answer=["1/2", "1/2"])
    assert rewards == [0.0, 1.0]
    assert reward.timeouts == 1
    reward.close()


@pytest.mark.parametrize(
    "unit", ["7", "7 ", "(", "\\frac{", "x+", "answer is 7 ", "\\boxed{", "<answer>", "####", "7,", "√("]
)
def test_a_hundred_thousand_characters_cost_no_more_than_the_limit(reward: MathReward, unit: str) -> None:
    """Twice the limit at most, for a comparison and, if it hangs, the gold answer alone; the session's limit is 300 s."""
    text = (unit * 100_000)[:100_000]
    completions = [text, rf"\boxed{{{text}}}", f"<answer>{text}</answer>", f"#### {text}", r"\boxed{1/2}"]
    assert reward(completions=completions, answer=["1/2"] * 5) == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_gold_answer_of_a_hundred_thousand_characters_returns() -> None:
    reward = MathReward(timeout=2)
    rewards = reward(completions=["1", r"\boxed{1/2}"], answer=["(" * 100_000, "1/2"])
    assert rewards[0] in (0.0, None)
    assert rewards[1] == 1.0
    reward.close()


def test_a_gold_answer_that_hangs_is_skipped_or_wrong_but_returns() -> None:
    reward = MathReward(timeout=2)
    rewards = reward(completions=["1", "1"], answer=["(" * 400 + "1" + ")" * 400, "x = 1"])
    assert rewards == [None, 1.0]
    reward.close()


def test_eight_threads_get_what_one_gets(reward: MathReward) -> None:
    completions = [completion for _, completion in EQUAL + DIFFERENT]
    golds = [gold for gold, _ in EQUAL + DIFFERENT]
    expected = [1.0] * len(EQUAL) + [0.0] * len(DIFFERENT)
    fresh = MathReward(timeout=30)  # remembers nothing yet
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(fresh, completions=completions, answer=golds) for _ in range(8)]
        assert [call.result() for call in calls] == [expected] * 8
    fresh.close()


def test_from_an_event_loop(reward: MathReward) -> None:
    async def run() -> list[list[float | None]]:
        calls = [asyncio.to_thread(reward, completions=[c], answer=[g]) for g, c in EQUAL[:6] + DIFFERENT[:6]]
        return await asyncio.gather(*calls)

    assert asyncio.run(run()) == [[1.0]] * 6 + [[0.0]] * 6


def test_killed_and_pickled_it_goes_on() -> None:
    reward = MathReward(timeout=30)
    assert reward(completions=["0.5"], answer=["1/2"]) == [1.0]
    for process in reward._processes._running:
        os.kill(process.pid, signal.SIGKILL)
    assert reward(completions=["0.25"], answer=["1/4"]) == [1.0]
    copy = pickle.loads(pickle.dumps(WeightedSum([(reward, 2.0)])))
    assert copy(completions=["0.25"], answer=["1/4"]) == [2.0]
    reward.close()


def test_the_process_has_neither_torch_nor_a_limitless_memory(reward: MathReward) -> None:
    reward(completions=["0.5"], answer=["1/2"])
    proc = Path(f"/proc/{next(iter(reward._processes._running)).pid}")
    if not proc.exists():
        pytest.skip("needs /proc")
    assert "torch" not in (proc / "maps").read_text()
    limit = next(line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max address space"))
    assert limit.split()[3].isdigit()


@pytest.mark.timeout(240)
def test_trl_trains_with_it(tmp_path: Path, reward: MathReward) -> None:
    """TRL's own trainer calls it: names, columns, extra keywords, None and metrics are TRL's."""
    trainer = _grpo(tmp_path, [reward, weighted(("format", 0.5), (_counting, 1.0))])
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/math/mean"] == 0.0  # a random model is never right
    assert "rewards/0.5*format+_counting/mean" in logged
    assert logged["math/timeouts"] == 0.0
    del trainer
    gc.collect()


def _counting(completions: list[Any], **columns: Any) -> list[float | None]:
    return [float(len(completion)) for completion in completions]


def _grpo(folder: Path, rewards: list[Any]) -> Any:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    from refine_testing.tiny import tiny_llama, tiny_tokenizer

    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        seed=0,
    )
    return trl.GRPOTrainer(
        model=tiny_llama(),
        reward_funcs=rewards,
        args=arguments,
        processing_class=tiny_tokenizer(),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["what is two"] * 8, "answer": ["x = 17", None] * 4}),
    )
