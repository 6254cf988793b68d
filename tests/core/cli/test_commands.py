"""Help, `plugins`, `config`, commands of plugins, `demo`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from refine_wrapper.cli import cli
from refine_wrapper.settings.config import RefineConfig, field_names
from refine_wrapper.settings.sources import read_yaml
from refine_wrapper.version import __version__

COMMANDS = ["run", "ablate", "eval", "report", "doctor", "objectives", "plugins", "config", "demo"]


def test_help_lists_the_commands_as_they_describe_themselves(invoke: Any) -> None:
    text = " ".join(invoke("--help").output.split())
    context = click.Context(cli)
    assert cli.list_commands(context) == COMMANDS
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert f"{name} {(command.help or '').partition(chr(10))[0]}" in text


def test_a_command_of_our_own_needs_no_plugin_to_be_found() -> None:
    script = (
        "import sys\nfrom refine_wrapper.cli import cli\ncli(['--version'], standalone_mode=False)\n"
        "print({m.partition('.')[0] for m in sys.modules} & {'pydantic', 'pluggy', 'yaml', 'rich'})"
    )
    result = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=30)
    assert result.stdout.splitlines()[-1] == "set()"


def test_version(invoke: Any) -> None:
    assert invoke("--version").output == f"refine-wrapper, version {__version__}\n"


def test_an_unknown_command(invoke: Any) -> None:
    result = invoke("rnu")
    assert result.exit_code == 2
    assert "No such command 'rnu'" in result.stderr


def test_the_help_of_run_teaches_every_setting(invoke: Any) -> None:
    text = " ".join(invoke("run", "--help").output.split())
    assert "Usage: refine-wrapper run [--refine.NAME VALUE]... [OPTIONS] -- COMMAND..." in text
    for name, field in RefineConfig.model_fields.items():
        assert f"--refine.{name} " in text
        assert " ".join((field.description or "?").split()) in text
    assert "--refine.num_drafts INTEGER N, samples of a group's first round" in text
    assert "--refine.trace_texts [true|false]" in text
    assert "--refine.shorten [keep_tail|keep_head|drop_middle]" in text
    assert "--refine.draft_timeout NUMBER" in text
    assert "--refine.trace_dir PATH" in text
    assert "--refine.selector_options JSON" in text
    assert "[default: single_shot]" in text


def test_config_says_where_each_value_came_from(project: Any, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.write("work/refine.yaml", "num_drafts: 8\nselector: median\nseed: 1\n")
    monkeypatch.setenv("REFINE_WRAPPER_SELECTOR", "random")
    monkeypatch.setenv("REFINE_WRAPPER_SEED", "2")
    result = invoke("config", "--refine.config", "refine.yaml", "--refine.seed", "3", "--plugin", "fake_plugin")
    assert result.exit_code == 0
    lines = dict(line.split("  # ") for line in result.output.splitlines())
    found = {line.partition(":")[0]: (line.rstrip(), source) for line, source in lines.items()}
    assert tuple(found) == field_names()
    assert found["num_drafts"] == ("num_drafts: 8", str(path))
    assert found["selector"] == ("selector: random", "REFINE_WRAPPER_SELECTOR")
    assert found["seed"] == ("seed: 3", "--refine.seed")
    assert found["plugin_modules"] == ('plugin_modules: ["fake_plugin"]', "--plugin")
    assert found["template"] == ("template: append", "default")


def test_config_is_a_file_that_is_read_back(project: Any, invoke: Any) -> None:
    flags = (
        "--refine.selector_options",
        '{"pattern": "a #b"}',
        "--refine.template",
        "two\nlines",
        "--refine.draft_tokens=9",
    )
    path = project.write("work/again.yaml", invoke("config", *flags).output)
    assert RefineConfig(**read_yaml(path)) == RefineConfig(
        selector_options={"pattern": "a #b"}, template="two\nlines", draft_tokens=9
    )


def test_config_refuses_what_it_does_not_know(invoke: Any) -> None:
    result = invoke("config", "--refine.sed", "1")
    assert (result.stderr, result.exit_code) == (
        "refine: unknown setting 'sed' as a flag (--refine.sed). Did you mean 'seed'?\n",
        2,
    )
    assert invoke("config", "stray").exit_code == 2


def test_plugins_lists_what_is_registered_and_by_whom(project: Any, invoke: Any) -> None:
    project.write(
        "lib/other_plugin.py",
        '''
from dataclasses import dataclass

from refine_wrapper import hookimpl
from refine_wrapper.hosts.adapter import ObjectiveSettings

@dataclass(frozen=True)
class Shortest:
    """The shortest draft
    of them. A second sentence.

    More about it.
    """

    min_tokens: int = 3

def brief():
    """Rewards brevity."""

@hookimpl
def register_selectors():
    return {"shortest": Shortest}

@hookimpl
def register_rewards():
    return {"brief": brief}

@hookimpl
def register_objectives():
    return {"mine": {"fakehost": ObjectiveSettings({})}}
''',
    )
    result = invoke("plugins", "--plugin", "fake_plugin", "--plugin", "other_plugin")
    text = " ".join(result.output.split())
    assert "  fake_plugin\n  other_plugin\n" in result.output
    assert "selectors (choose with --refine.selector): best The draft with" in text
    assert "shortest The shortest draft of them. Options: min_tokens=3. [other_plugin]" in text
    assert "More about it" not in text
    assert "A second sentence" not in text
    assert "modes (choose with --refine.mode): paper N drafts on q as context only" in text
    assert "(iGRPO, arXiv 2602.09000). Options: num_drafts=4. [refine_wrapper.core.modes.hooks]" in text
    assert "Options: inner='joint', inner_options={}. [refine_wrapper.core.modes.hooks]" in text
    assert "brief Rewards brevity. [other_plugin]" in text
    assert "fakehost fakehost>=1.0,<2.0 [fake_plugin]" in text
    assert "mine for fakehost [other_plugin]" in text
    assert "[refine_wrapper.core.selection.hooks]" in text


# Commands of plugins

SAY = """
import click
from refine_wrapper import hookimpl

@hookimpl
def register_commands():
    return {commands}

@click.command
@click.argument("word")
def say(word):
    \"\"\"Say a word.\"\"\"
    click.echo(f"said {{word}}")
    click.get_current_context().exit(5)
"""


def _install(project: Any, commands: dict[str, str]) -> None:
    """What `pip install` leaves of a plugin that registers these commands."""
    project.write("lib/other_plugin.py", SAY.format(commands=commands))
    project.write("lib/other-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    project.write("lib/other-1.0.dist-info/entry_points.txt", "[refine_wrapper]\nother = other_plugin\n")


def test_an_installed_plugin_adds_a_command(project: Any, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(project, {"say": "other_plugin:say"})
    assert "No such command 'say'" in invoke("say", "hello").stderr  # installed plugins are left alone in these tests
    monkeypatch.setenv("REFINE_WRAPPER_PLUGINS", "other")
    result = invoke("say", "hello")
    assert (result.output, result.exit_code) == ("said hello\n", 5)
    assert "say Say a word." in " ".join(invoke("--help").output.split())
    assert "say other_plugin:say [other]" in " ".join(invoke("plugins").output.split())


@pytest.mark.parametrize(
    ("commands", "problem"),
    [
        ({"say": "other_plugin:sya"}, "the command 'say' (other_plugin:sya) cannot be imported: module"),
        ({"say": "no_such_module:say"}, "the command 'say' (no_such_module:say) cannot be imported: No module named"),
        ({"say": "other_plugin:click"}, "the command 'say' (other_plugin:click) is no click.Command but module."),
        ({"run": "other_plugin:say"}, "plugin 'other' registers the command 'run', which refine-wrapper has itself."),
    ],
)
def test_a_command_that_cannot_be_used_is_named_and_hinders_no_other(
    project: Any, invoke: Any, monkeypatch: pytest.MonkeyPatch, commands: dict[str, str], problem: str
) -> None:
    _install(project, commands)
    monkeypatch.setenv("REFINE_WRAPPER_PLUGINS", "other")
    refused = invoke("say", "hello")
    assert refused.exit_code == 2
    assert f"refine: {problem}" in refused.stderr
    helped = invoke("--help")
    assert helped.exit_code == 0
    assert f"refine: {problem}" in " ".join(helped.output.split())
    assert invoke("config").exit_code == 0


def test_the_demo_says_what_to_install(invoke: Any, tmp_path: Path) -> None:
    assert importlib.util.find_spec("trl") is None, "this environment is that of the core, without a host"
    result = invoke("demo", "--out", str(tmp_path / "demo"))
    assert result.exit_code == 2
    assert result.stderr == (
        "refine: the demo needs datasets, which is not installed. Install it with: pip install 'refine-wrapper[demo]'\n"
    )


def test_a_bug_in_the_demo_keeps_its_traceback(invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: Any) -> None:
        raise ModuleNotFoundError("No module named 'typo'", name="typo")

    monkeypatch.setattr("refine_wrapper_demo.command._train", fail)
    assert isinstance(invoke("demo", "--out", str(tmp_path / "demo")).exception, ModuleNotFoundError)


def test_the_template_with_line_breaks_is_yaml(invoke: Any) -> None:
    output = invoke("config", "--refine.template", "a\nb").output
    assert yaml.safe_load(output)["template"] == "a\nb"
