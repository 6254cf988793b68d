"""Objective names: found, refused by name, extended by plugins; on the command line."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from refine_wrapper import hookimpl
from refine_wrapper.errors import ConfigError, PluginError
from refine_wrapper.hosts.adapter import ObjectiveSettings
from refine_wrapper.hosts.objectives import objective_table, settings_on
from refine_wrapper.plugins.manager import Plugins


class Objectives:
    @hookimpl
    def register_objectives(self) -> Any:
        return {
            "grpo": {"one": ObjectiveSettings({"loss": "grpo"}), "two": ObjectiveSettings({"estimator": "group"})},
            "dapo": {"one": ObjectiveSettings({"loss": "dapo"}, missing="dynamic sampling")},
            "reinforce": {"one": ObjectiveSettings(None, missing="it needs groups")},
        }


def plugins_with(*objects: object) -> Plugins:
    plugins = Plugins(entry_points=False)
    for number, plugin in enumerate(objects):
        plugins.register(plugin, f"objectives-{number}")
    return plugins


def test_what_an_objective_becomes_on_a_host() -> None:
    plugins = plugins_with(Objectives())
    assert settings_on("two", "grpo", plugins).settings == {"estimator": "group"}
    assert settings_on("one", "dapo", plugins).missing == "dynamic sampling"
    assert {"grpo", "dapo", "reinforce"} <= set(objective_table(plugins))


@pytest.mark.parametrize(
    ("host", "objective", "error", "message"),
    [
        ("one", "dpao", PluginError, "unknown objective 'dpao'. Did you mean 'dapo'?"),
        ("one", "reinforce", ConfigError, "cannot be trained on one: it needs groups. It can train: dapo, grpo"),
        ("two", "dapo", ConfigError, "on two: nobody registered what it is there. It can train: grpo"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_can(
    host: str, objective: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        settings_on(host, objective, plugins_with(Objectives()))
    assert message in str(raised.value)


def test_a_plugin_adds_a_host_to_an_objective_and_an_objective_of_its_own() -> None:
    class More:
        @hookimpl
        def register_objectives(self) -> Any:
            return {
                "dapo": {"three": ObjectiveSettings({"x": 1})},
                "mine": {"one": ObjectiveSettings({"loss": "mine"})},
            }

    plugins = plugins_with(Objectives(), More())
    assert settings_on("one", "dapo", plugins).settings == {"loss": "dapo"}
    assert settings_on("three", "dapo", plugins).settings == {"x": 1}
    assert settings_on("one", "mine", plugins).settings == {"loss": "mine"}


PLUGIN = """
from refine_wrapper import hookimpl
from refine_wrapper.hosts.adapter import ObjectiveSettings

@hookimpl
def register_objectives():
    return {
        "half_dapo": {"fakehost": ObjectiveSettings({"loss": "dapo"}, missing="the other half", trainer="Trainer")},
        "none": {"fakehost": ObjectiveSettings(None, missing="it cannot")},
    }
"""


def test_the_table_says_what_is_set_and_what_is_missing(project: Any, invoke: Any) -> None:
    project.write("lib/other_plugin.py", PLUGIN)
    shown = invoke("objectives", "--plugin", "other_plugin", "--host", "fakehost")
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    assert "half_dapo Trainer: loss=dapo missing: the other half" in text
    assert "none no: it cannot" in text
    listed = json.loads(invoke("objectives", "--plugin", "other_plugin", "--host", "fakehost", "--json").output)
    assert listed["half_dapo"]["fakehost"]["settings"] == {"loss": "dapo"}
    unknown = invoke("objectives", "--plugin", "other_plugin", "--host", "fakehots")
    assert (unknown.exit_code, "Did you mean 'fakehost'?" in unknown.stderr) == (2, True)


def test_with_refinement_off_a_named_objective_still_reaches_the_host(project: Any) -> None:
    """The baseline of a comparison: the same objective, plain. The fake host's patch shows what reaches the command."""
    project.write("lib/other_plugin.py", PLUGIN)
    project.write(
        "lib/fake_patch.py",
        "from refine_wrapper.settings.sources import resolve\n\ndef patch(module):\n"
        "    config = resolve()\n    print(config.active, config.objective)\n",
    )
    flags = ("--plugin", "other_plugin", "--refine.objective", "half_dapo", "--refine.num_drafts", "0")
    off = project.run(sys.executable, "train.py", flags=flags)
    assert (off.stdout, off.returncode) == ("False half_dapo\nplain training\n", 0)
    assert "off (num_drafts 0 (--refine.num_drafts)); the plain command runs, with objective half_dapo" in off.stderr
    elsewhere = project.run(sys.executable, "-c", "print('no host')", flags=flags)
    assert elsewhere.returncode == 3
    unknown = project.run(sys.executable, "train.py", flags=("--refine.objective", "dpao"))
    assert (unknown.returncode, "unknown objective 'dpao'" in unknown.stderr) == (2, True)
