"""Loading plugins: the same hooks for built-ins and third parties, and messages that say exactly who is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from core_standins import paper_group, planner_with, plugins_with

from refine_wrapper import hookimpl
from refine_wrapper.core.types import Sample
from refine_wrapper.errors import PluginError
from refine_wrapper.hosts.adapter import ObjectiveSettings
from refine_wrapper.plugins.manager import REGISTRIES, Plugins

HERE = str(Path(__file__))


@dataclass(frozen=True)
class Shortest:
    """A third party's selector, as the documentation shows it."""

    min_tokens: int = 1

    def select(self, drafts: Sequence[Sample], context: Any) -> Sample:
        return min((d for d in drafts if d.num_tokens >= self.min_tokens), key=lambda d: d.num_tokens)


def registering(kind: str, **values: Any) -> object:
    """A plugin that registers ``values`` as things of one kind."""

    def register(self: object) -> Any:
        return values

    register.__name__ = REGISTRIES[kind]
    return type("Registering", (), {register.__name__: hookimpl(register)})()


def message_of(action: Callable[[], object]) -> str:
    with pytest.raises(PluginError) as raised:
        action()
    assert isinstance(raised.value, TypeError)
    return str(raised.value)


# Built-ins


def test_built_ins_come_through_the_public_hooks() -> None:
    plugins = Plugins(entry_points=False)
    assert [n for n in plugins.names() if n.startswith("refine_wrapper.")] == [
        "refine_wrapper.core.selection.hooks",
        "refine_wrapper.core.prompts.hooks",
        "refine_wrapper.core.modes.hooks",
        "refine_wrapper.rewards.hooks",
    ]
    for kind, hook in REGISTRIES.items():
        registered = {
            name: value
            for impl in getattr(plugins.hook, hook).get_hookimpls()
            for name, value in impl.function().items()
        }
        assert registered.keys() == plugins.all(kind).keys(), kind
    assert plugins.owner("selector", "best") == "refine_wrapper.core.selection.hooks"
    assert plugins.owner("template", "turns") == "refine_wrapper.core.prompts.hooks"
    assert plugins.owner("mode", "paper") == "refine_wrapper.core.modes.hooks"
    assert plugins.owner("reward", "math") == "refine_wrapper.rewards.hooks"


# Third parties


def test_a_third_partys_selector_end_to_end() -> None:
    plugin = registering("selector", shortest=Shortest)
    planner = planner_with(plugin, selector="shortest", selector_options={"min_tokens": 2}, num_drafts=3)
    group = paper_group(planner, (1.0, 0.0, 0.5), (1.0,))  # of 1, 2 and 3 tokens
    assert (group.rounds[1].ask.show, group.selector) == (1, "shortest")
    assert planner.plugins.owner("selector", "shortest") == "inline_0"


def test_modules_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "core_test_good_plugin.py", GOOD.format(name="from_module"))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = Plugins(["core_test_good_plugin"], entry_points=False)
    assert plugins.owner("selector", "from_module") == "core_test_good_plugin"
    assert plugins.names()[-1] == "core_test_good_plugin"


def test_objectives_of_one_name_come_from_several_plugins_one_for_each_host() -> None:
    one, two = ObjectiveSettings({"loss_type": "grpo"}), ObjectiveSettings({"loss": "x"}, missing="no clipping")
    plugins = plugins_with(
        registering("objective", ours={"trl": one}), registering("objective", ours={"verl": two}, theirs={"verl": two})
    )
    assert {name: plugins.all("objective")[name] for name in ("ours", "theirs")} == {
        "ours": {"trl": one, "verl": two},
        "theirs": {"verl": two},
    }


def test_objectives_of_one_name_and_host_are_refused() -> None:
    settings = {"trl": ObjectiveSettings({})}
    message = message_of(
        lambda: plugins_with(registering("objective", ours=settings), registering("objective", ours=settings))
    )
    assert "registers the objective 'ours', which plugin 'inline_0' registered already" in message


# What is wrong, and who


def test_a_wrong_signature_names_plugin_hook_and_file() -> None:
    class Wrong:
        @hookimpl
        def extract_answer(self, draughts: Any) -> None: ...

    message = message_of(lambda: Plugins(entry_points=False).register(Wrong(), "wrong_one"))
    assert message.startswith(f"refine: plugin 'wrong_one' ({HERE}): ")
    assert "extract_answer" in message
    assert "draughts" in message


def test_an_unknown_hook_names_plugin_file_and_the_nearest_hook() -> None:
    class Wrong:
        @hookimpl
        def extract_answers(self) -> None: ...

    message = message_of(lambda: Plugins(entry_points=False).register(Wrong(), "wrong_one"))
    assert message == (
        f"refine: plugin 'wrong_one' ({HERE}) implements 'extract_answers', which is no hook. "
        "Did you mean 'extract_answer'?"
    )


def test_a_name_that_is_taken_names_both_plugins_the_hook_and_the_file() -> None:
    message = message_of(lambda: plugins_with(registering("selector", best=Shortest)))
    assert message == (
        f"refine: plugin 'inline_0' ({HERE}), hook 'register_selectors' registers the selector 'best', which plugin "
        "'refine_wrapper.core.selection.hooks' registered already. Give it another name."
    )


@pytest.mark.parametrize("returned", [None, [Shortest], Shortest])
def test_what_is_no_mapping_is_refused(returned: Any) -> None:
    class Wrong:
        @hookimpl
        def register_modes(self) -> Any:
            return returned

    message = message_of(lambda: plugins_with(Wrong()))
    assert message == (
        f"refine: plugin 'inline_0' ({HERE}), hook 'register_modes' must return a mapping of names, not "
        f"{type(returned).__name__}."
    )


def test_a_plugin_that_is_loaded_twice_is_refused() -> None:
    plugin = registering("selector", mine=Shortest)
    assert "plugin 'inline_1'" in message_of(lambda: plugins_with(plugin, plugin))
    assert "is loaded twice" in message_of(lambda: plugins_with(plugin, plugin))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_an_unknown_name_gets_the_nearest(kind: str) -> None:
    plugins = plugins_with(registering(kind, wonderful={} if kind == "objective" else object()))
    message = message_of(lambda: plugins.get(kind, "wonderfull"))
    assert message == f"refine: unknown {kind} 'wonderfull'. Did you mean 'wonderful'?"


def test_an_unknown_name_far_from_all_gets_all() -> None:
    message = message_of(lambda: Plugins(entry_points=False).get("template", "xyz"))
    assert message == "refine: unknown template 'xyz'. Valid names: append, turns."


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "No module named 'core_test_bad_plugin'. It must be importable from where the trainer starts; add its"),
        ("import core_test_missing", "No module named 'core_test_missing'. It must be importable from"),
        ("1 / 0", "ZeroDivisionError: division by zero."),
        ("def (", "SyntaxError: "),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    source: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is not None:
        write(tmp_path / "core_test_bad_plugin.py", source)
    monkeypatch.syspath_prepend(str(tmp_path))
    message = message_of(lambda: Plugins(["core_test_bad_plugin"], entry_points=False))
    assert message.startswith(f"refine: the plugin module 'core_test_bad_plugin' cannot be imported: {problem}")


def test_a_plugin_defined_interactively_has_no_file() -> None:
    module = ModuleType("made_up")
    exec("from refine_wrapper import hookimpl\n@hookimpl\ndef nonsense(): ...", module.__dict__)
    message = message_of(lambda: Plugins(entry_points=False).register(module, "made_up"))
    assert message.startswith("refine: plugin 'made_up' (defined interactively) implements 'nonsense'")


# Who is asked


def test_decisions_are_asked_latest_plugin_first_and_none_passes_on() -> None:
    asked: list[str] = []

    def deciding(name: str, answer: str | None) -> object:
        class Deciding:
            @hookimpl
            def extract_answer(self, text: str) -> str | None:
                asked.append(name)
                return answer

        return Deciding()

    plugins = plugins_with(deciding("first", "1"), deciding("second", "0"), deciding("third", None))
    assert plugins.hook.extract_answer(text="x") == "0"
    assert asked == ["third", "second"]


def test_the_packages_own_answer_comes_last() -> None:
    class First:
        @hookimpl
        def extract_answer(self, text: str) -> str | None:
            return "theirs" if "{x}" in text else None

    hook = plugins_with(First()).hook
    assert hook.extract_answer(text=r"\boxed{x}") == "theirs"
    assert hook.extract_answer(text=r"\boxed{y}") == "y"


# Installed plugins, in a process of its own

GOOD = """
from refine_wrapper import hookimpl
from refine_wrapper.core.selection.best import Best

@hookimpl
def register_selectors():
    return {{"{name}": Best}}
"""

LIST = """
import sys
from refine_wrapper.errors import PluginError
from refine_wrapper.plugins.manager import Plugins
try:
    plugins = Plugins()
    names = plugins.all("selector")
    print(*sorted(name for name in names if not plugins.owner("selector", name).startswith("refine_wrapper.")))
except PluginError as error:
    print(error)
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def install(folder: Path, distribution: str, **entry_points: str) -> None:
    """What `pip install` leaves of a distribution with plugins."""
    metadata = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    write(metadata / "METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {target}" for name, target in entry_points.items())
    write(metadata / "entry_points.txt", f"[refine_wrapper]\n{lines}\n")


def load(*folders: Path, code: str = LIST, **environ: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("REFINE_WRAPPER_")}
    path = os.pathsep.join([*map(str, folders), inherited.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**inherited, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def two_installed(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        write(tmp_path / f"core_plugin_{name}.py", GOOD.format(name=f"{name}s"))
    install(tmp_path, "their-plugins", one="core_plugin_one", two="core_plugin_two")
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "loaded"),
    [
        ({}, "ones twos"),
        ({"REFINE_WRAPPER_PLUGINS": "two"}, "twos"),
        ({"REFINE_WRAPPER_PLUGINS": " one , two ,"}, "ones twos"),
        ({"REFINE_WRAPPER_PLUGINS": ""}, ""),
        (
            {"REFINE_WRAPPER_PLUGINS": "oen"},
            "refine: REFINE_WRAPPER_PLUGINS names 'oen', which is not installed. Did you mean 'one'?",
        ),
    ],
)
def test_the_variable_limits_installed_plugins(two_installed: Path, environ: dict[str, str], loaded: str) -> None:
    assert load(two_installed, **environ) == loaded


def test_installed_plugins_can_be_left_alone(two_installed: Path) -> None:
    assert load(two_installed, code=LIST.replace("Plugins()", "Plugins(entry_points=False)")) == ""


def test_our_own_adapters_are_not_limited(tmp_path: Path) -> None:
    write(tmp_path / "core_plugin_own.py", GOOD.format(name="own"))
    install(tmp_path, "refine-wrapper", own="core_plugin_own")
    # First on the path, so that it stands for an installed refine-wrapper.
    assert load(tmp_path, REFINE_WRAPPER_PLUGINS="") == "own"


def test_the_same_distribution_twice_on_the_path_is_one(two_installed: Path, tmp_path: Path) -> None:
    install(tmp_path / "again", "their-plugins-copy", one="core_plugin_one")
    assert load(two_installed, tmp_path / "again") == "ones twos"


def test_two_installed_plugins_of_one_name_are_refused(two_installed: Path, tmp_path: Path) -> None:
    install(tmp_path / "again", "others", one="core_plugin_two")
    assert load(two_installed, tmp_path / "again") == (
        "refine: two installed plugins are called 'one': core_plugin_one and core_plugin_two. Uninstall one of them."
    )


@pytest.mark.parametrize(
    ("source", "problem"),
    [("import core_missing", "ModuleNotFoundError: No module named 'core_missing'"), ("1 / 0", "ZeroDivisionError")],
)
def test_an_installed_plugin_that_cannot_be_imported_is_named_with_the_way_out(
    tmp_path: Path, source: str, problem: str
) -> None:
    write(tmp_path / "core_plugin_broken.py", source)
    install(tmp_path, "broken", mine="core_plugin_broken")
    message = load(tmp_path)
    assert message.startswith(f"refine: plugin 'mine' (core_plugin_broken) cannot be imported: {problem}")
    assert message.endswith("Leave it out with REFINE_WRAPPER_PLUGINS=.")
    assert load(tmp_path, REFINE_WRAPPER_PLUGINS="") == ""
