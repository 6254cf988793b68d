"""Every setting, metric and hook is documented, and the plugin that docs/plugins.md shows runs."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from core_standins import asked, built_in, carried_out, plain, planner_with, plugins_with

from refine_wrapper.core.metrics import MEANINGS
from refine_wrapper.core.planner import make_rules
from refine_wrapper.plugins import hookspecs
from refine_wrapper.rewards.judge import JudgeSettings
from refine_wrapper.settings.config import RefineConfig, field_names

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("configuration.md", [f"`--refine.{name}`" for name in field_names()]),
        ("rewards.md", [f"| `{name}` |" for name in JudgeSettings.model_fields]),
        ("metrics.md", [f"`{name.rpartition('/')[2]}`" if name.count("/") > 1 else f"`{name}`" for name in MEANINGS]),
        ("plugins.md", [f"### `{name}`" for name, _ in inspect.getmembers(hookspecs, inspect.isfunction)]),
    ],
)
def test_nothing_is_undocumented(file: str, names: list[str]) -> None:
    text = (DOCS / file).read_text()
    assert [name for name in names if name not in text] == []


def test_every_setting_says_what_it_does() -> None:
    assert all(field.description for field in RefineConfig.model_fields.values())


def test_the_plugin_of_the_documentation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(from dataclasses.*?)```", (DOCS / "plugins.md").read_text(), re.DOTALL)
    assert code is not None
    # Registered with sys.modules for the length of the test: dataclasses look their module up there.
    plugin = ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", plugin)
    exec(code[1], vars(plugin))
    config = RefineConfig(selector="shortest", selector_options={"min_tokens": 8})
    assert make_rules(config, plugins_with(plugin)).selector.min_tokens == 8  # type: ignore[attr-defined]


def test_the_mode_of_the_documentation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(from dataclasses.*?)```", (DOCS / "modes.md").read_text(), re.DOTALL)
    assert code is not None
    plugin = ModuleType("documented_mode")
    monkeypatch.setitem(sys.modules, "documented_mode", plugin)
    exec(f"from __future__ import annotations\n{code[1]}", vars(plugin))
    planner = planner_with(plugin, mode="show_longest")
    group = carried_out(planner, asked(), 4, (0.0, 0.0), (1.0, 0.0))
    assert [planned.ask.show for planned in group.rounds] == [None, 1]


def test_every_mode_is_in_the_table() -> None:
    text = (DOCS / "modes.md").read_text()
    assert [name for name in built_in().all("mode") if f"| `{name}`" not in text] == []


class Trainer:
    """A STAND-IN for a host, for the adapter in the documentation: it repeats its prompts and pays by their length."""

    def __init__(self, group_size: int) -> None:
        self.tokenizer = plain()
        self.group_size, self.steps = group_size, 0
        self.sampled: list[str] = []
        self.trained: list[tuple[str, str, float]] = []

    def sample(self, prompts: list[str]) -> list[str]:
        self.sampled += prompts
        return [f"answer {number}" for number in range(len(prompts))]

    def score(self, prompts: list[str], texts: list[str]) -> list[float]:
        assert set(prompts) <= {"one?", "two?"}, "a reward is given q"
        return [float(text.endswith("3")) for text in texts]

    def train(self, rows: list[tuple[str, str, float]]) -> None:
        self.trained = rows


@pytest.mark.parametrize(
    ("mode", "sampled", "trained"),
    [("paper", 2 * 2 + 2 * 4, 8), ("joint", 8, 8), ("rescue", 8, 8), ("alternate", 8, 8)],
)
def test_the_adapter_of_the_documentation_runs(mode: str, sampled: int, trained: int) -> None:
    code = re.search(r"```python\n(from refine_wrapper.*?)```", (DOCS / "adding_a_host.md").read_text(), re.DOTALL)
    assert code is not None
    namespace: dict[str, object] = {"Trainer": Trainer}
    exec(code[1], namespace)
    made: type = namespace["RefinedTrainer"]  # type: ignore[assignment]
    trainer = made(4, mode=mode, num_drafts=2)
    trainer.step(["one?", "two?"])
    assert len(trainer.sampled) >= sampled
    assert len(trainer.trained) == trained
    assert trainer.metrics["refine/groups"] == 2
    if mode == "paper":
        assert trainer.metrics["refine/refined_share"] == 1.0
        assert not {prompt for prompt, _, _ in trainer.trained} & {"one?", "two?"}
