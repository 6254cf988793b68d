"""Every hook of the contract, called by the core as documented. A new hook needs a test here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from core_standins import built_in, finished, plugins_with, refiner_with, scored

from refine_wrapper import hookimpl
from refine_wrapper.core.prompts.turns import TurnTemplate
from refine_wrapper.core.types import Action, Draft, DraftOutcome, FallbackCause
from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import Adapter, ObjectiveSettings
from refine_wrapper.plugins import hookspecs

HOOKS = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction)]
FIRST_RESULT = {"normalize_reward", "select_draft", "build_prompt", "extract_answer"}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_here(hook: str) -> None:
    assert f"def test_{hook}" in Path(__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_and_typed(hook: str) -> None:
    function = getattr(hookspecs, hook)
    assert inspect.getdoc(function)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.mark.parametrize("hook", HOOKS)
def test_decisions_take_the_first_answer_and_all_others_are_collected(hook: str) -> None:
    options = getattr(built_in().hook, hook).spec.opts
    assert bool(options["firstresult"]) == (hook in FIRST_RESULT)


# Registration


def test_register_selectors() -> None:
    class Last:
        def select(self, drafts: Any, context: Any) -> Draft:
            return drafts[-1]

    class Plugin:
        @hookimpl
        def register_selectors(self) -> Any:
            return {"last": Last}

    plan = refiner_with(Plugin(), selector="last").plan("g", "q", scored(1.0, 0.0))
    assert plan.draft_text == "draft 1"


def test_register_templates() -> None:
    class Plugin:
        @hookimpl
        def register_templates(self) -> Any:
            return {"short": TurnTemplate.build("short", ["{draft}? {question}"], "{draft}: {question}")}

    refiner = refiner_with(Plugin(), template="short")
    assert refiner.plan("g", "q", scored(1.0)).prompt == "draft 0: q"
    question = [{"role": "user", "content": "q"}]
    assert refiner.plan("g", question, scored(1.0)).prompt == [{"role": "user", "content": "draft 0? q"}]


@pytest.mark.parametrize("answer", list(Action))
def test_register_plans(answer: Action) -> None:
    asked: list[Any] = []

    class Policy:
        def decide(self, group_id: str, drafts: Any, selected: Draft, max_reward: float) -> Action:
            asked.append((group_id, [d.index for d in drafts], selected.index, max_reward))
            return answer

    class Plugin:
        @hookimpl
        def register_plans(self) -> Any:
            return {"mine": Policy}

    plan = refiner_with(Plugin(), plan="mine", max_reward=3.0).plan("g", "q", scored(0.0, None, 2.0))
    assert asked == [("g", [0, 2], 2, 3.0)]
    assert plan.action is answer
    assert plan.cause is (None if answer is Action.REFINE else FallbackCause.PLAN_POLICY)
    assert (plan.prompt == "q") == (answer is not Action.REFINE)
    assert plan.draft_text == ("draft 2" if answer is Action.REFINE else "")
    assert len(plan.drafts_N) == 3


def test_register_plans_may_answer_with_the_name_of_an_action() -> None:
    class Policy:
        def decide(self, **arguments: Any) -> str:
            raise AssertionError("positional arguments")

        def __init__(self) -> None:
            self.decide = lambda *arguments: "refine"  # type: ignore[method-assign]

    class Plugin:
        @hookimpl
        def register_plans(self) -> Any:
            return {"mine": Policy}

    plan = refiner_with(Plugin(), plan="mine").plan("g", "q", scored(1.0))
    assert plan.action is Action.REFINE
    assert plan.draft_text == "draft 0"


def test_register_rewards() -> None:
    def length(*, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(len(c)) for c in completions]

    class Plugin:
        @hookimpl
        def register_rewards(self) -> Any:
            return {"length": length}

    plugins = plugins_with(Plugin())
    assert plugins.get("reward", "length")(prompts=["q"], completions=["abc"]) == [3.0]
    assert {"math", "format", "length"} <= set(plugins.all("reward"))


def test_register_adapters() -> None:
    adapter = Adapter("myhost", "my-host", ("1.0", None))

    class Plugin:
        @hookimpl
        def register_adapters(self) -> Any:
            return {"myhost": adapter}

    assert plugins_with(Plugin()).get("adapter", "myhost") is adapter


def test_register_objectives() -> None:
    settings = {"myhost": ObjectiveSettings({"loss": "grpo"})}

    class Plugin:
        @hookimpl
        def register_objectives(self) -> Any:
            return {"my_objective": settings}

    assert plugins_with(Plugin()).get("objective", "my_objective") == settings


def test_register_commands() -> None:
    class Plugin:
        @hookimpl
        def register_commands(self) -> Any:
            return {"mine": "my_package.command:mine"}

    assert plugins_with(Plugin()).get("command", "mine") == "my_package.command:mine"


# Decisions


def test_normalize_reward() -> None:
    seen: list[Any] = []

    class Plugin:
        @hookimpl
        def normalize_reward(self, reward: Any) -> float | None:
            seen.append(reward)
            return reward["score"] if isinstance(reward, dict) else None

    drafts = refiner_with(Plugin()).plan("g", "q", scored({"score": 2.0}, 0.5, None, [0.25])).drafts_N
    assert [draft.reward for draft in drafts] == [2.0, 0.5, None, 0.25]
    assert seen == [{"score": 2.0}, 0.5, [0.25]]  # no reward: nothing to ask about


def test_normalize_reward_that_raises_costs_this_draft_only() -> None:
    class Plugin:
        @hookimpl
        def normalize_reward(self, reward: Any) -> float | None:
            return reward["score"]

    plan = refiner_with(Plugin()).plan("g", "q", scored({"scores": 1}, {"score": 0.5}))
    assert [draft.outcome for draft in plan.drafts_N] == [DraftOutcome.REWARD_EXCEPTION, DraftOutcome.OK]
    assert plan.drafts_N[0].detail == "KeyError: 'score'"
    assert plan.draft_text == "draft 1"


@pytest.mark.parametrize("answer", ["high", [1.0], object()])
def test_normalize_reward_that_answers_nonsense_costs_this_draft_only(answer: Any) -> None:
    class Plugin:
        @hookimpl
        def normalize_reward(self, reward: Any) -> Any:
            return answer if reward == 1.0 else None

    plan = refiner_with(Plugin()).plan("g", "q", scored(1.0, 0.5))
    assert [draft.outcome for draft in plan.drafts_N] == [DraftOutcome.REWARD_EXCEPTION, DraftOutcome.OK]


def test_select_draft() -> None:
    seen: list[Any] = []

    class Plugin:
        @hookimpl
        def select_draft(self, group_id: str, drafts: Any, config: Any) -> int | None:
            seen.append((group_id, [draft.index for draft in drafts], config.seed))
            return 3 if group_id == "mine" else None

    refiner = refiner_with(Plugin(), seed=9)
    assert refiner.plan("mine", "q", scored(None, 1.0, 0.5, 0.0)).draft_text == "draft 3"
    assert refiner.plan("other", "q", scored(None, 1.0, 0.5, 0.0)).draft_text == "draft 1"
    assert seen == [("mine", [1, 2, 3], 9), ("other", [1, 2, 3], 9)]


@pytest.mark.parametrize("index", [0, 4, -1])
def test_select_draft_must_choose_a_usable_one(index: int) -> None:
    class Plugin:
        @hookimpl
        def select_draft(self) -> int:
            return index

    with pytest.raises(ConfigError) as raised:
        refiner_with(Plugin()).plan("g", "q", scored(None, 1.0, 0.5, 0.0))
    assert str(raised.value) == (
        f"refine: a plugin's select_draft chose draft {index}, which is not among the usable ones [1, 2, 3] of group 'g'."
    )


def test_build_prompt() -> None:
    seen: list[Any] = []

    class Plugin:
        @hookimpl
        def build_prompt(self, question: Any, draft: str, room: Any, config: Any) -> Any:
            seen.append((question, draft, room.max_prompt_tokens, config.template))
            return f"{draft} | {question}" if question != "theirs" else None

    refiner = refiner_with(Plugin(), limit=20)
    assert refiner.plan("g", "q", scored(0.0, 1.0)).prompt == "draft 1 | q"
    long = scored(1.0)[0].__class__(text="0123456789" * 3 + "<|endoftext|>", reward=1.0)
    plan = refiner.plan("g", "question", [long])
    assert plan.prompt == f"{plan.draft_text} | question"
    assert len(plan.prompt) <= 20
    assert plan.draft_shortened
    assert all("<|endoftext|>" not in draft for _, draft, _, _ in seen)  # neutralised before a plugin sees it
    assert {limit for _, _, limit, _ in seen} == {20}


def test_extract_answer() -> None:
    class Plugin:
        @hookimpl
        def extract_answer(self, text: str) -> str | None:
            return text.rpartition("=")[2].strip() if "=" in text else None

    refiner = refiner_with(Plugin())
    plan = refiner.plan("g", "q", [scored(1.0)[0].__class__(text="6 x 7 = 42", reward=1.0)])
    assert refiner.finish([finished(plan, [1.0], text="I get = 42")])["refine/copy_rate"] == 1.0
    assert refiner.finish([finished(plan, [1.0], text="I get 42")])["refine/copy_rate"] == 0.0


# Observers


def test_group_finished() -> None:
    seen: list[Any] = []

    class One:
        @hookimpl
        def group_finished(self, outcome: Any, config: Any) -> None:
            seen.append(("one", outcome.plan.group_id, config.num_drafts))

    class Two:
        @hookimpl
        def group_finished(self, outcome: Any) -> None:
            seen.append(("two", outcome.plan.group_id, len(outcome.refinements_G)))

    refiner = refiner_with(One(), Two(), num_drafts=1)
    outcomes = [finished(refiner.plan(group, "q", scored(1.0)), [1.0, 0.0]) for group in ("a", "b")]
    refiner.finish(outcomes)
    assert sorted(seen) == [("one", "a", 1), ("one", "b", 1), ("two", "a", 2), ("two", "b", 2)]
    assert [group for name, group, _ in seen if name == "one"] == ["a", "b"]
