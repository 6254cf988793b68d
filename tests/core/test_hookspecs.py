"""Every hook of the contract, called by the core as documented. A new hook needs a test here."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from core_standins import asked, built_in, carried_out, chatml, paper_group, planner_with, plugins_with, recorder_with

from refine_wrapper import hookimpl
from refine_wrapper.core.modes.interface import GroupSoFar, Mode
from refine_wrapper.core.prompts.turns import TurnTemplate
from refine_wrapper.core.types import End, Group, Outcome, Round, Sample, Use
from refine_wrapper.hosts.adapter import Adapter, ObjectiveSettings
from refine_wrapper.plugins import hookspecs

HOOKS = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction)]
FIRST_RESULT = {"normalize_reward", "extract_answer"}


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
    @dataclass(frozen=True)
    class Last:
        def select(self, drafts: Any, context: Any) -> Sample:
            return drafts[-1]

    class Plugin:
        @hookimpl
        def register_selectors(self) -> Any:
            return {"last": Last}

    group = paper_group(planner_with(Plugin(), selector="last", num_drafts=2), (1.0, 0.0), (1.0,))
    assert group.rounds[1].shown_text == "sample 1"


def test_register_templates() -> None:
    class Plugin:
        @hookimpl
        def register_templates(self) -> Any:
            return {"short": TurnTemplate.build("short", ["{draft}? {question}"], "{draft}: {question}")}

    planner = planner_with(Plugin(), template="short", num_drafts=1, tokenizer=chatml())
    assert paper_group(planner, (1.0,), (1.0,)).rounds[1].prompt == "sample 0: q"
    question = [{"role": "user", "content": "q"}]
    prompt = paper_group(planner, (1.0,), (1.0,), prompt=question).rounds[1].prompt
    assert prompt == [{"role": "user", "content": "sample 0? q"}]


def test_register_modes() -> None:
    """The mode that the interface shows to authors."""
    seen: list[GroupSoFar] = []

    @dataclass(frozen=True)
    class ShowLongest(Mode):
        """Half of the slots on q, the others on q' that shows the longest sample."""

        half: float = 0.5

        def next(self, group: GroupSoFar) -> Round | End:
            seen.append(group)
            if not group.rounds:
                return Round(int(group.num_slots * self.half), Use.FILL)
            if not group.candidates:
                return group.without_refinement()
            longest = max(group.candidates, key=lambda sample: sample.num_tokens)
            return Round(group.slots_left, Use.FILL, show=longest.index, final=True)

    class Plugin:
        @hookimpl
        def register_modes(self) -> Any:
            return {"show_longest": ShowLongest}

    planner = planner_with(Plugin(), mode="show_longest", mode_options={"half": 0.25}, max_reward=3.0)
    question = asked("q", columns={"level": 3})
    group = carried_out(planner, question, 8, (0.0, None), (1.0,) * 6)
    assert [planned.ask.show for planned in group.rounds] == [None, 0]
    assert group.mode == "show_longest"
    last = seen[-1]
    assert (last.question.columns, last.rules.max_reward, last.slots_left) == ({"level": 3}, 3.0, 6)
    assert [sample.outcome for sample in last.samples] == [Outcome.OK, Outcome.NO_REWARD]


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

    drafts = paper_group(planner_with(Plugin()), ({"score": 2.0}, 0.5, None, [0.25]), (0.5,)).drafts
    assert [draft.reward for draft in drafts] == [2.0, 0.5, None, 0.25]
    assert seen == [{"score": 2.0}, 0.5, [0.25], 0.5]  # no reward: nothing to ask about


def test_normalize_reward_that_raises_costs_this_sample_only() -> None:
    class Plugin:
        @hookimpl
        def normalize_reward(self, reward: Any) -> float | None:
            return reward["score"]

    group = paper_group(planner_with(Plugin(), num_drafts=2), ({"scores": 1}, {"score": 0.5}), ({"score": 1.0},))
    assert [draft.outcome for draft in group.drafts] == [Outcome.REWARD_EXCEPTION, Outcome.OK]
    assert group.samples[0].detail.startswith("KeyError: 'score' (test_hookspecs.py, line ")
    assert group.rounds[1].shown_text == "sample 1"


@pytest.mark.parametrize("answer", ["high", [1.0], object()])
def test_normalize_reward_that_answers_nonsense_costs_this_sample_only(answer: Any) -> None:
    class Plugin:
        @hookimpl
        def normalize_reward(self, reward: Any) -> Any:
            return answer if reward == 1.0 else None

    group = paper_group(planner_with(Plugin(), num_drafts=2), (1.0, 0.5), (0.5,))
    assert [draft.outcome for draft in group.drafts] == [Outcome.REWARD_EXCEPTION, Outcome.OK]


def test_extract_answer() -> None:
    class Plugin:
        @hookimpl
        def extract_answer(self, text: str) -> str | None:
            return text.rpartition("=")[2].strip() if "=" in text else None

    def copy_rate(text: str) -> float:
        planner, recorder = planner_with(num_drafts=1), recorder_with(Plugin())
        group = paper_group(planner, (Sample("6 x 7 = 42", reward=1.0),), (Sample(text, reward=1.0),))
        return recorder.record([group])["refine/copy_rate"]

    assert copy_rate("I get = 42") == 1.0
    assert copy_rate("I get 42") == 0.0


# Observers


def test_group_finished() -> None:
    seen: list[Any] = []

    class One:
        @hookimpl
        def group_finished(self, group: Group, config: Any) -> None:
            seen.append(("one", str(group.id), config.num_drafts))

    class Two:
        @hookimpl
        def group_finished(self, group: Group) -> None:
            seen.append(("two", str(group.id), len(group.refinements)))

    recorder = recorder_with(One(), Two(), num_drafts=1)
    recorder.record([paper_group(planner_with(num_drafts=1), (1.0,), (1.0, 0.0), place) for place in range(2)])
    assert sorted(seen) == [
        ("one", "train-0-0", 1),
        ("one", "train-0-1", 1),
        ("two", "train-0-0", 2),
        ("two", "train-0-1", 2),
    ]
