"""Every setting, metric and hook is documented, and the plugin that docs/plugins.md shows runs."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from core_standins import plugins_with

from refine_wrapper.core.metrics import METRICS
from refine_wrapper.core.refiner import build_selector
from refine_wrapper.plugins import hookspecs
from refine_wrapper.rewards.judge import JudgeSettings
from refine_wrapper.settings.config import RefineConfig, field_names

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("configuration.md", [f"`--refine.{name}`" for name in field_names()]),
        ("rewards.md", [f"| `{name}` |" for name in JudgeSettings.model_fields]),
        ("metrics.md", [f"`{name.rpartition('/')[2]}`" if name.count("/") > 1 else f"`{name}`" for name in METRICS]),
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
    selector = build_selector(
        RefineConfig(selector="shortest", selector_options={"min_tokens": 8}), plugins_with(plugin)
    )
    assert selector.min_tokens == 8  # type: ignore[attr-defined]
