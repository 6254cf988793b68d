"""Stateless tools: the policy calls them in both stages, and each row's tool turns stay in that row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from refine_testing.resampled import PayingReward, flat_for, merged
from refine_testing.rewards import RecordingReward, text_of
from refine_testing.tiny import tiny_llama, tiny_tokenizer
from refine_testing.trl_host import chats, record_generation
from refine_testing.trl_runs import append, chat_data, make, trace_of, trained_rows
from trl.chat_template_utils import qwen3_chat_template

from refine_wrapper.errors import ConfigError

pytestmark = pytest.mark.timeout(180)
NUM_DRAFTS, GROUP = 3, 2


def _tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = qwen3_chat_template
    return tokenizer


class _Calculator:
    """A tool that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def tool(self) -> Any:
        def double(number: int) -> str:
            """Doubles a number.

            Args:
                number: What to double.
            """
            self.asked.append(number)
            return f"result {2 * number}"

        return double


class _Policy:
    """Calls the tool with a new number, then answers; keeps the prompts that it answered under."""

    def __init__(self) -> None:
        self.calls = 0
        self.answers: list[str] = []

    def __call__(self, prompt: str, row: int) -> str:
        if "<tool_response>" not in prompt.rpartition("<|im_start|>user")[2]:
            self.calls += 1
            call = {"name": "double", "arguments": {"number": self.calls}}
            return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        [seen] = [line for line in prompt.rpartition("<tool_response>")[2].splitlines() if line.startswith("result ")]
        self.answers.append(seen)
        return f"It is {seen.removeprefix('result ')}."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One batch: two groups of three drafts and two refinements, each with one call of the tool."""
    calculator, policy, reward = _Calculator(), _Policy(), RecordingReward()
    model, tokenizer = tiny_llama(), _tokenizer()
    generations = record_generation(model, tokenizer, policy)
    trainer = make(
        tmp_path_factory.mktemp("tools"),
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        tools=[calculator.tool()],
        train_dataset=chat_data(),
        num_generations=GROUP,
        refine_num_drafts=NUM_DRAFTS,
        max_completion_length=300,
        max_steps=1,
    )
    trainer.train()
    return {
        "trainer": trainer,
        "policy": policy,
        "asked": calculator.asked,
        "reward": reward,
        "generations": generations,
        "groups": trace_of(trainer),
    }


def test_the_tool_is_called_once_in_every_row_of_both_stages(run: dict[str, Any]) -> None:
    rows = 2 * (NUM_DRAFTS + GROUP)
    assert run["asked"] == list(range(1, rows + 1))
    assert run["policy"].answers == [f"result {2 * number}" for number in range(1, rows + 1)]


def test_rows_of_one_group_do_not_see_each_others_tool_turns(run: dict[str, Any]) -> None:
    """Hosts add turns to a row's conversation in place; rows that shared one list would read all of them."""
    for generation in run["generations"]:
        for prompt in generation.prompts:
            asked = prompt.rpartition("<|im_start|>user\nWhat is")[2]
            assert asked.count("<tool_response>") <= 1
    for call in run["reward"].calls:
        for question, completion in zip(call["prompts"], call["completions"], strict=True):
            assert [turn["role"] for turn in question] == ["user"]
            assert [turn["role"] for turn in completion] == ["assistant", "tool", "assistant"]


def test_the_draft_is_what_the_policy_said_without_the_tools_words(run: dict[str, Any]) -> None:
    assert [group["action"] for group in run["groups"]] == ["refine", "refine"]
    for group in run["groups"]:
        assert "It is" in group["draft_text"]
        assert "result" not in group["draft_text"]
        assert group["prompt"] == [
            {"role": "user", "content": append(group["question"][-1]["content"], group["draft_text"])}
        ]


def test_refinements_are_trained_under_q_prime_and_tool_results_are_not(run: dict[str, Any]) -> None:
    trainer, tokenizer = run["trainer"], run["trainer"].processing_class
    prompts = [prompt for prompt, _ in trained_rows(trainer)]
    assert len(prompts) == 2 * GROUP
    for prompt in prompts:
        assert any(group["prompt"][0]["content"] in prompt for group in run["groups"])
    for inputs in trainer.trained:
        for ids, mask, tool_mask in zip(
            inputs["completion_ids"], inputs["completion_mask"], inputs["tool_mask"], strict=True
        ):
            own = tokenizer.decode(ids[(mask * tool_mask).bool()])
            theirs = tokenizer.decode(ids[(mask * (1 - tool_mask)).bool()])
            assert "It is" in own
            assert "result" not in own
            assert "result" in theirs
            assert "It is" not in theirs


def test_tool_metrics_are_of_refinements(run: dict[str, Any]) -> None:
    [logged] = [entry for entry in run["trainer"].state.log_history if "tools/call_frequency" in entry]
    assert logged["tools/call_frequency"] == 1.0
    assert logged["tools/failure_frequency"] == 0.0


class _Environment:
    def reset(self, **row: Any) -> None:
        """Starts anew."""

    def look(self) -> str:
        """Looks around."""
        return "nothing"


def test_tools_are_called_once_for_each_row_that_dynamic_sampling_draws(tmp_path: Path) -> None:
    """Groups drawn again call their own tools; merging them into the batch calls none."""
    calculator, policy, reward = _Calculator(), _Policy(), PayingReward(pay=flat_for(*range(0, 16, 2)))
    model, tokenizer = tiny_llama(), _tokenizer()
    record_generation(model, tokenizer, policy)
    trainer = make(
        tmp_path,
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        tools=[calculator.tool()],
        train_dataset=chats(16, number=list(range(16))),
        per_device_train_batch_size=4 * GROUP,
        num_generations=GROUP,
        refine_num_drafts=0,
        refine_dynamic_sampling=5,
        max_completion_length=300,
        max_steps=1,
    )
    trainer.train()
    (batch,) = merged(reward.calls, reward.paid, group_size=GROUP, limit=5)
    assert batch.groups
    assert calculator.asked == list(range(1, 1 + sum(len(call["prompts"]) for call in reward.calls)))
    [inputs] = trainer.trained
    seen = sorted(text.rpartition("It is ")[2] for _, text in trained_rows(trainer))
    assert seen == sorted(text_of(c).removeprefix("It is ") for c in batch.both.refinements["completions"])
    for mask, own, text in zip(
        inputs["completion_mask"], inputs["tool_mask"], tokenizer.batch_decode(inputs["completion_ids"]), strict=True
    ):
        call = text[: text.index("</tool_call>")]
        assert 0 < int((mask * own).sum()) < int(mask.sum())
        assert "double" in call


def test_an_environment_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dynamic_sampling cannot draw groups with an environment_factory again"):
        make(
            tmp_path,
            processing_class=_tokenizer(),
            train_dataset=chat_data(),
            environment_factory=_Environment,
            refine_num_drafts=0,
            refine_dynamic_sampling=1,
        )
    with pytest.raises(ConfigError, match=r"environment_factory cannot be refined.*refine=False"):
        make(
            tmp_path,
            processing_class=_tokenizer(),
            train_dataset=chat_data(),
            environment_factory=_Environment,
        )
    plain = make(
        tmp_path,
        processing_class=_tokenizer(),
        train_dataset=chat_data(),
        environment_factory=_Environment,
        refine=False,
        max_steps=1,
    )
    plain.train()
    assert plain.state.global_step == 1
