"""Help, `plugins`, `config`, `demo`."""

from __future__ import annotations

import subprocess
import sys
import types
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


def test_help_imports_no_subcommand() -> None:
    script = (
        "import sys\nfrom refine_wrapper.cli import cli\ncli(['--help'], standalone_mode=False)\n"
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
    assert "--refine.num_drafts INTEGER N, drafts sampled" in text
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
from refine_wrapper import hookimpl
from refine_wrapper.hosts.adapter import ObjectiveSettings

class Shortest:
    """The shortest draft.

    More about it.
    """

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
    assert "shortest The shortest draft. [other_plugin]" in text
    assert "More about it" not in text
    assert "brief Rewards brevity. [other_plugin]" in text
    assert "fakehost fakehost>=1.0,<2.0 [fake_plugin]" in text
    assert "mine for fakehost [other_plugin]" in text
    assert "[refine_wrapper.core.selection.hooks]" in text


def _install_demo(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """A demo command in place of the TRL adapter's, which needs TRL."""
    module = types.ModuleType("refine_wrapper_trl.demo.command")
    module.demo = click.command(  # pyright: ignore[reportAttributeAccessIssue]
        params=[click.Option(["--seeds"], type=int, default=3)], context_settings={"help_option_names": ["--help"]}
    )(function)
    for name in ("refine_wrapper_trl", "refine_wrapper_trl.demo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "refine_wrapper_trl.demo.command", module)


def test_demo_forwards_arguments_and_help(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_demo(monkeypatch, lambda seeds: click.echo(f"seeds {seeds}"))
    assert invoke("demo", "--seeds", "1").output == "seeds 1\n"
    assert "--seeds INTEGER" in invoke("demo", "--help").output
    wrong = invoke("demo", "--sedes", "1")
    assert (wrong.exit_code, "No such option" in wrong.stderr) == (2, True)


def test_the_exit_code_of_the_demo_is_kept(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_demo(monkeypatch, lambda seeds: click.get_current_context().exit(seeds))
    assert invoke("demo", "--seeds", "5").exit_code == 5


@pytest.mark.parametrize("missing", ["trl", "reasoning_gym", "matplotlib.pyplot"])
def test_the_demo_says_what_to_install(invoke: Any, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def fail(seeds: int) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    _install_demo(monkeypatch, fail)
    result = invoke("demo")
    assert (result.stderr, result.exit_code) == (
        f"refine: the demo needs {missing}, which is not installed. Install it with: "
        "pip install 'refine-wrapper[demo]'\n",
        2,
    )


def test_a_bug_in_the_demo_keeps_its_traceback(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seeds: int) -> None:
        raise ModuleNotFoundError("No module named 'typo'", name="typo")

    _install_demo(monkeypatch, fail)
    assert isinstance(invoke("demo").exception, ModuleNotFoundError)


def test_the_template_with_line_breaks_is_yaml(invoke: Any) -> None:
    output = invoke("config", "--refine.template", "a\nb").output
    assert yaml.safe_load(output)["template"] == "a\nb"
