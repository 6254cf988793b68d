"""Shapes of prompts, and inner agent loops: tools, a user's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from refine_testing.verl_worker import Bench, answers, prompt

TEMPLATE = "Here is an attempt at this problem."
PARTS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def parts() -> str:
    """A chat template, as a Hydra override, that knows tools and content lists."""
    return "+actor_rollout_ref.model.custom_chat_template=" + json.dumps(PARTS)


def test_a_content_list_keeps_its_parts_in_place(bench: Callable[..., Bench], parts: str) -> None:
    """An image stays where it was in the question; the draft is text beside it. (No processor: veRL renders it as text.)"""
    host = bench(parts)
    content = [{"type": "image", "image": "x.png"}, {"type": "text", "text": "What is this?"}]
    row = prompt("a", raw_prompt=[{"role": "user", "content": content}])
    host.prompts(row)
    for stored in host.rows_of("a"):
        assert "<image>What is this?" in host.text(stored["prompts"])
        assert TEMPLATE in host.text(stored["prompts"])
        assert list(stored["raw_prompt"])[0]["content"] == content  # noqa: RUF015


def test_a_conversation_without_a_user_turn_stays_plain(bench: Callable[..., Bench]) -> None:
    host = bench()
    host.prompts(prompt("a", raw_prompt=[{"role": "system", "content": "Say something."}]))
    assert not any(TEMPLATE in text for text in host.engine.prompts)
    [group] = host.worker.take_finished_groups()
    assert group.cause.value == "unsupported_prompt"
    assert len(host.rows_of("a")) == 3


def test_a_last_message_that_is_not_the_users_is_kept(bench: Callable[..., Bench]) -> None:
    host = bench()
    turns = [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "Let me think."},
        {"role": "tool", "content": "calculator is ready"},
    ]
    host.prompts(prompt("a", raw_prompt=turns))
    [text] = {host.text(row["prompts"]) for row in host.rows_of("a")}
    assert text.index("What is 2+2?") < text.index(TEMPLATE) < text.index("Let me think.")
    assert text.endswith("calculator is ready<|im_end|>\n<|im_start|>assistant\n")


def test_thinking_stays_out_of_the_prompt(bench: Callable[..., Bench]) -> None:
    host = bench(answer=lambda text, number: f"<think>secret</think>answer {number}")
    host.prompts(prompt("a"))
    [text] = {host.text(row["prompts"]) for row in host.rows_of("a")}
    assert "secret" not in text
    assert "answer " in text


def _call(expression: str) -> str:
    return "<tool_call>" + json.dumps({"name": "calculate", "arguments": {"expression": expression}}) + "</tool_call>"


def test_tool_calls_in_drafts_and_refinements(bench: Callable[..., Bench], tmp_path: Path, parts: str) -> None:
    """veRL's own ToolAgentLoop with a real tool: what the tool says is in the sequence, and not in the draft."""
    tools = tmp_path / "tools_of_a_user.py"
    tools.write_text(
        "from verl.tools.function_tool import function_tool\n"
        "@function_tool\n"
        "def calculate(expression: str) -> str:\n"
        '    """Calculates.\n\n    Args:\n        expression: What to calculate.\n    """\n'
        f"    open({str(tmp_path / 'called.txt')!r}, 'a').write(expression + '\\n')\n"
        "    return 'tool says ' + str(sum(int(part) for part in expression.split('+')))\n"
    )

    def answer(text: str, number: int) -> str:
        return f"so it is 4, {number}" if "tool says" in text.rsplit("<|im_start|>user", 1)[1] else _call("2+2")

    host = bench(
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tools}",
        "actor_rollout_ref.rollout.multi_turn.format=hermes",
        "data.max_response_length=256",
        "actor_rollout_ref.rollout.prompt_length=1400",
        parts,
        answer=answer,
    )
    host.prompts(prompt("a", agent_name="tool_agent"))
    assert (tmp_path / "called.txt").read_text().splitlines() == ["2+2"] * (4 + 3)
    rows = host.rows_of("a")
    assert len(rows) == 3
    for row in rows:
        text = host.text(row["prompts"])
        assert TEMPLATE in text
        assert "so it is 4" in text
        assert "tool says" not in text  # the tool's words are not the policy's
        answer_text = host.text(row["responses"])
        assert "tool says 4" in answer_text
        own = [token for token, kept in zip(row["responses"].tolist(), row["loss_mask"].tolist(), strict=True) if kept]
        assert "tool says" not in host.text(own)
    [group] = host.worker.take_finished_groups()
    assert [draft.outcome.value for draft in group.drafts] == ["ok"] * 4


def test_what_the_inner_loop_adds_is_counted(bench: Callable[..., Bench], tmp_path: Path, parts: str) -> None:
    """Tool schemas are part of the prompt; without them counted, the host would cut the question's beginning."""
    tools = tmp_path / "tools_with_a_long_schema.py"
    tools.write_text(
        "from verl.tools.function_tool import function_tool\n"
        "@function_tool\n"
        "def wait(seconds: str) -> str:\n"
        f'    """{"Waits. " * 20}\n\n    Args:\n        seconds: How long.\n    """\n'
        "    return ''\n"
    )
    text = "Q" * 60

    def longest(room: int) -> tuple[int, bool]:
        host = bench(
            f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tools}",
            f"actor_rollout_ref.rollout.prompt_length={room}",
            parts,
            answer=lambda text, number: "d" * 60 + str(number),
        )
        host.prompts(prompt("a", text, agent_name="tool_agent"))
        prompts = [row["prompts"] for row in host.rows_of("a")]
        assert all(host.text(ids).startswith("<|im_start|>system") for ids in prompts)
        assert all(text in host.text(ids) and TEMPLATE in host.text(ids) for ids in prompts)
        [group] = host.worker.take_finished_groups()
        return max(map(len, prompts)), group.rounds[-1].shortened

    whole, shortened = longest(2000)
    assert not shortened
    assert longest(whole) == (whole, False)
    cut, shortened = longest(whole - 20)
    assert shortened
    assert cut <= whole - 20


def test_a_users_own_loop_with_strict_arguments_and_several_outputs(bench: Callable[..., Bench]) -> None:
    """Every prompt that is scored is q: what an output goes on from stays, and what may hold the draft elsewhere does not."""
    from refine_testing.verl_loops import REQUESTS

    REQUESTS.clear()
    host = bench(answer=answers)
    host.prompts(prompt("a", agent_name="strict_and_several"))
    assert sorted(session for session, _ in REQUESTS) == [0, 1, 2, 3, 4, 5, 6]  # drafts are further sessions
    rows = host.rows_of("a")
    assert len(rows) == 3 * 3
    assert all(TEMPLATE in host.text(row["prompts"]) for row in rows)
    assert len(host.reward.scored) == 4 + 3  # a trajectory is scored once, by its last output
    for data in host.reward.given:
        first, second, third = (host.text(ids) for ids in data.batch["prompts"])
        assert TEMPLATE not in first + second + third
        assert all("What is 2+2?" in text for text in (first, second, third))
        assert "And then?" in second


def test_a_loop_that_appends_to_its_conversation(bench: Callable[..., Bench]) -> None:
    """Each row has a conversation of its own: none reads what another one wrote, and the trainer's stays as it was."""
    import refine_testing.verl_loops  # noqa: F401

    host = bench()
    given = prompt("a", agent_name="appends_in_place")
    host.prompts(given)
    assert given["raw_prompt"] == [{"role": "user", "content": "What is 2+2?"}]
    drafts, refinements = host.engine.prompts[:4], host.engine.prompts[4:]
    assert len(set(drafts)) == len(set(refinements)) == 1
    assert not re.search(r"answer \d", drafts[0])
    assert len(re.findall(r"answer \d", refinements[0])) == 1
    for row in host.rows_of("a"):
        assert list(row["raw_prompt"]) == [{"role": "user", "content": "What is 2+2?"}]


def test_a_loop_that_does_not_read_the_prompt_is_not_refined(bench: Callable[..., Bench]) -> None:
    """Refined is what was sampled on q', not what was planned."""
    import refine_testing.verl_loops  # noqa: F401

    host = bench()
    host.prompts(prompt("a", agent_name="own_messages"))
    assert not any(TEMPLATE in text for text in host.engine.prompts)
    [group] = host.worker.take_finished_groups()
    assert (group.refined, group.cause.value) == (False, "not_held")


def test_a_question_is_cut_as_the_plain_host_cuts_it(bench: Callable[..., Bench]) -> None:
    """prompt_length was raised for q'. A question that is longer than the plain run's stays plain, and is cut there."""
    host = bench("+refine._plain_n=3", "+refine._plain_prompt_length=150")
    text = "Q" * 200
    host.prompts(prompt("a", text))
    assert len(host.engine.prompts) == 3
    assert all(len(row["prompts"]) == 150 for row in host.rows_of("a"))
    [group] = host.worker.take_finished_groups()
    assert group.cause.value == "question_too_long"
    host.prompts(prompt("b", text), validate=True)
    assert [len(row["prompts"]) for row in host.rows_of("b")] == [150]
    host.prompts(prompt("c", "Q" * 60))
    assert all(TEMPLATE in host.text(row["prompts"]) for row in host.rows_of("c"))


def test_a_prompt_that_asks_for_greedy_sampling_stays_plain(bench: Callable[..., Bench]) -> None:
    """All its drafts would be the same."""
    host = bench()
    host.prompts(prompt("a", __do_sample__=False))
    assert len(host.engine.prompts) == 3
    assert all(params["temperature"] == 0 for params in host.engine.params)
    assert host.worker.take_finished_groups() == []
