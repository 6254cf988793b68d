from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from refine_wrapper.hosts.launch.environment import merge_patches
from refine_wrapper.plugins.manager import Plugins

BANNER = "refine: on. num_drafts 4 (default), selector best (default), template append (default)"
BANNER_PLUGIN = f"{BANNER}; also plugin_modules ['fake_plugin'] (--plugin)\n"
REFINED = "refined training, 4 drafts\nplain training\n"
PYTHON = sys.executable


@pytest.mark.parametrize(
    "command",
    [
        (PYTHON, "train.py"),
        (PYTHON, "-c", "from fakehost.trainer import Trainer; Trainer().train()"),
        (PYTHON, "-m", "train_module"),
        (PYTHON, "-c", "import runpy; runpy.run_path('train.py')"),
        ("sh", "-c", '"$0" train.py', PYTHON),
    ],
)
def test_an_unmodified_command_is_refined(project: Any, command: tuple[str, ...]) -> None:
    result = project.run(*command)
    assert (result.stdout, result.stderr, result.returncode) == (REFINED, BANNER_PLUGIN, 0)


@pytest.mark.parametrize(
    "starter",
    [
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, 'train.py']))",
        "import os, subprocess, sys\n"
        "env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}\n"  # as some launchers do
        "sys.exit(subprocess.call([sys.executable, 'train.py'], env=env))",
        "import multiprocessing as m, runpy\n"
        "if __name__ == '__main__':\n"
        "    p = m.get_context('spawn').Process(target=runpy.run_path, args=('train.py',)); p.start(); p.join()",
        "import os, runpy\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: runpy.run_path('train.py')",
    ],
    ids=["grandchild", "path-from-sys.path", "spawn", "fork"],
)
def test_processes_that_the_command_starts_are_refined(project: Any, starter: str) -> None:
    script = project.write("work/start.py", starter)
    result = project.run(PYTHON, str(script))
    assert (result.stdout, result.returncode) == (REFINED, 0)


def test_flags_reach_the_command_and_win_over_the_environment(project: Any) -> None:
    result = project.run(
        PYTHON, "train.py", flags=("--refine.num_drafts=2",), REFINE_WRAPPER_NUM_DRAFTS="3", REFINE_WRAPPER_SEED="7"
    )
    assert result.stdout == "refined training, 2 drafts\nplain training\n"
    assert result.stderr == (
        "refine: on. num_drafts 2 (--refine.num_drafts), selector best (default), template append (default); "
        "also seed 7 (REFINE_WRAPPER_SEED), plugin_modules ['fake_plugin'] (--plugin)\n"
    )


def test_a_relative_file_is_found_by_a_command_that_changes_its_folder(project: Any) -> None:
    project.write("work/refine.yaml", "num_drafts: 6\n")
    script = project.write("work/move.py", "import os\nos.chdir('/')\n" + (project.work / "train.py").read_text())
    result = project.run(PYTHON, str(script), flags=("--refine.config", "refine.yaml"))
    assert result.stdout == "refined training, 6 drafts\nplain training\n"
    assert f"num_drafts 6 ({project.work / 'refine.yaml'})" in result.stderr


def test_a_relative_template_is_handed_on_absolute(project: Any) -> None:
    project.write("work/again.txt", "{question} {draft}")
    show = "import os; os.chdir('/'); from refine_wrapper.settings.sources import resolve; print(resolve().template)"
    result = project.run(PYTHON, "-c", show, flags=("--refine.template", "again.txt"))
    assert result.stdout == f"{project.work / 'again.txt'}\n"


def test_the_users_sitecustomize_still_runs_once(project: Any) -> None:
    project.write("lib/sitecustomize.py", "mine = True; print('the user is here')")
    show = "import sitecustomize; print(sitecustomize.mine); import train_module"
    result = project.run(PYTHON, "-c", show)
    # Once in run's own interpreter, which inherits the variable as well, and once in the command.
    assert result.stdout == f"the user is here\nthe user is here\nTrue\n{REFINED}"


def test_a_sitecustomize_that_imports_the_host_and_looks_for_a_next_one(project: Any) -> None:
    project.write(
        "lib/sitecustomize.py",
        "import sys, importlib\n"
        "from importlib.machinery import PathFinder\n"
        "import fakehost.trainer\n"
        "rest = [p for p in sys.path if p not in __file__]\n"
        "spec = PathFinder.find_spec('sitecustomize', rest)\n"
        "assert spec is None or 'refine' not in spec.origin\n",
    )
    result = project.run(PYTHON, "train.py")
    assert (result.stdout, result.stderr) == (REFINED, BANNER_PLUGIN)


def test_a_broken_sitecustomize_is_reported_by_python_and_refinement_runs(project: Any) -> None:
    project.write("lib/sitecustomize.py", "raise RuntimeError('mine')")
    result = project.run(PYTHON, "train.py")
    assert (result.stdout, result.returncode) == (REFINED, 0)
    error = "Error in sitecustomize; set PYTHONVERBOSE for traceback:\nRuntimeError: mine\n"
    assert result.stderr == f"{error}{BANNER_PLUGIN}{error}"


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_is_the_commands(project: Any, code: int) -> None:
    assert project.run(PYTHON, "-c", f"import train_module, sys; sys.exit({code})").returncode == code


def test_a_command_that_fails_unrefined_keeps_its_exit_code_and_its_own_message(project: Any) -> None:
    result = project.run(PYTHON, "-c", "import sys; sys.exit('mine')")
    assert (result.stderr, result.returncode) == (f"{BANNER_PLUGIN}mine\n", 1)


def test_what_the_patch_raises_ends_the_import(project: Any) -> None:
    project.write("lib/fake_patch.py", "def patch(module):\n    raise RuntimeError('the host changed')\n")
    result = project.run(PYTHON, "train.py")
    assert result.returncode == 1
    assert result.stderr.endswith("RuntimeError: the host changed\n")
    assert "plain training" not in result.stdout


def _patched_modules() -> str:
    """All modules that are patched: an installed refine-wrapper has adapters beside the fake one."""
    return ", ".join([*merge_patches(Plugins(entry_points=False).all("adapter")), "fakehost.trainer"])


@pytest.mark.parametrize(
    ("command", "reasons"),
    [
        (
            (PYTHON, "-I", "-c", "pass"),
            "No Python of the command started with the hook. Possible reasons:\n"
            "  - it was started with -I, -E or -S, or something between replaced PYTHONPATH\n"
            "  - it is the python of another environment, in which refine-wrapper is not installed\n"
            "  - the command only submits a job that runs elsewhere: put `refine-wrapper run --` into that job\n",
        ),
        (
            (PYTHON, "-c", "pass"),
            "Python started with the hook, but imported none of MODULES. Possible reasons:\n"
            "  - the trainer's class is not from a supported host\n"
            "  - the host is not installed in the environment of the command's python\n"
            "  - the process that trains replaced PYTHONPATH or its environment, or runs on another machine\n",
        ),
        (
            (PYTHON, "-c", "from fakehost.trainer import Trainer; Trainer()"),
            "fakehost.trainer was patched, but no draft was sampled. Possible reasons:\n"
            "  - train() was never called, or had nothing left to do\n"
            "  - the trainer's class is not one that an adapter wraps (another of the host, or a copy)\n"
            "  - the trainer's own configuration switches refinement off\n",
        ),
    ],
    ids=["no-hook", "no-host", "no-training"],
)
def test_a_command_that_ends_well_but_refines_nothing_fails(
    project: Any, command: tuple[str, ...], reasons: str
) -> None:
    result = project.run(*command)
    assert result.returncode == 3
    assert result.stderr == (
        f"{BANNER_PLUGIN}refine: the command ended well, but nothing was refined: what it trained, if anything, is the "
        f"plain objective. {reasons.replace('MODULES', _patched_modules())}"
        "`refine-wrapper doctor` checks the hosts of this environment.\n"
    )


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--refine.num_drafts=0", "num_drafts 0 (--refine.num_drafts)"),
        ("--refine.enabled=false", "enabled False (--refine.enabled)"),
    ],
)
def test_off_is_the_plain_command(project: Any, flag: str, why: str) -> None:
    show = (
        "import os, sys, train_module; print('REFINE_WRAPPER_LAUNCH' in os.environ, "
        "'inject' in os.environ['PYTHONPATH'],"
        "sorted(m for m in sys.modules if m.startswith('refine')))"
    )
    result = project.run(PYTHON, "-c", show, flags=(flag,))
    assert (result.stdout, result.returncode) == ("plain training\nFalse False []\n", 0)
    assert result.stderr == f"refine: off ({why}); the plain command runs.\n"


def test_off_reaches_a_script_that_names_the_adapter_itself(project: Any) -> None:
    show = "from refine_wrapper.settings.sources import resolve; print(resolve().active)"
    assert project.run(PYTHON, "-c", show, flags=("--refine.num_drafts=0",)).stdout == "False\n"


def test_the_environment_of_the_command(project: Any) -> None:
    show = (
        "import train_module, json, os, sys; e = os.environ; print(json.dumps([e['PYTHONPATH'], "
        "e['REFINE_WRAPPER_FLAGS'],"
        "sorted(os.listdir(json.loads(e['REFINE_WRAPPER_LAUNCH'])['reports']))[:1], e.get('MINE')]))"
    )
    result = project.run(PYTHON, "-c", show, MINE="kept")
    path, flags, reports, mine = json.loads(result.stdout.splitlines()[-1])
    inject, _, inherited = path.partition(":")
    assert inherited == project.environment()["PYTHONPATH"]
    assert Path(inject).parts[-4:] == ("refine_wrapper", "hosts", "launch", "inject")
    assert json.loads(flags) == {"plugin_modules": ["fake_plugin"]}
    assert reports[0].startswith("fakehost-")
    assert mine == "kept"


def test_the_hook_takes_no_heavy_module_along(project: Any) -> None:
    heavy = {"pydantic", "pluggy", "yaml", "click", "dataclasses", "inspect"}
    show = f"import sys; print(sorted({{m.partition('.')[0] for m in sys.modules}} & {heavy}))"
    assert project.run(PYTHON, "-c", show).stdout == "[]\n"


def test_dry_run_starts_nothing(project: Any) -> None:
    result = project.run(
        PYTHON, "-c", "open('started', 'w')", flags=("--dry-run", "--refine.seed", "5", "--refine.trace_texts")
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not (project.work / "started").exists()
    banner, rest = result.stdout.split("\n\nSettings:\n")
    settings, rest = rest.split("\nPatched when imported:\n")
    patches, command = rest.split("\n\nCommand, not started:\n")
    assert banner == (
        f"{BANNER}; also seed 5 (--refine.seed), trace_texts True (--refine.trace_texts), "
        "plugin_modules ['fake_plugin'] (--plugin)"
    )
    assert (yaml.safe_load(settings)["seed"], yaml.safe_load(settings)["trace_texts"]) == (5, True)
    assert patches.splitlines()[-1] == "fakehost.trainer by fake_patch:patch"
    assert command == f"{PYTHON} -c 'open('\"'\"'started'\"'\"', '\"'\"'w'\"'\"')'\n"


def test_dry_run_when_off(invoke: Any) -> None:
    result = invoke("run", "--refine.num_drafts", "0", "--dry-run", "--", PYTHON)
    assert result.exit_code == 0
    assert "\nPatched when imported: nothing\n" in result.output


PLUGIN = ("--plugin", "fake_plugin")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            PLUGIN,
            "refine: no command given. Put it after `--`: refine-wrapper run --refine.num_drafts 4 -- python train.py",
        ),
        (
            (*PLUGIN, "python", "train.py", "--lr", "1"),
            "refine: put `--` before the command: refine-wrapper run ... -- python train.py --lr 1",
        ),
        ((*PLUGIN, "--", "no-such-command"), "refine: no-such-command: command not found."),
        (
            (*PLUGIN, "--", "./train.py", "--lr", "1"),
            "refine: ./train.py: command not found. It is a file that may not be executed. Did you mean: "
            "python ./train.py --lr 1",
        ),
        (
            ("--refine.num_draft", "3", "--", "true"),
            "refine: unknown setting 'num_draft' as a flag (--refine.num_draft). Did you mean 'num_drafts'?",
        ),
        (
            ("--refine.num_drafts", "many", "--", "true"),
            "refine: num_drafts = 'many': input should be a valid integer, unable to parse string as an integer.",
        ),
        ((*PLUGIN, "--refine.selector", "bset", "--", "true"), "refine: unknown selector 'bset'. Did you mean 'best'?"),
        (
            (*PLUGIN, "--refine.selector_options", "{a: 1}", "--", "true"),
            "refine: selector 'best' has no option 'a' (selector_options). It has none.",
        ),
        (
            (*PLUGIN, "--refine.template", "appendd", "--", "true"),
            "refine: unknown template 'appendd'. Did you mean 'append'?",
        ),
        ((*PLUGIN, "--refine.plan", "papre", "--", "true"), "refine: unknown mode 'papre'. Did you mean 'paper'?"),
        ((*PLUGIN, "--refine.mode", "jiont", "--", "true"), "refine: unknown mode 'jiont'. Did you mean 'joint'?"),
        (
            (*PLUGIN, "--refine.mode=rounds", "--refine.mode_options", "{rounds: many}", "--", "true"),
            "refine: mode 'rounds', mode_options rounds = 'many': input should be a valid integer, unable to parse "
            "string as an integer.",
        ),
        (
            ("--plugin", "no_such_plugin", "--", "true"),
            "refine: the plugin module 'no_such_plugin' cannot be imported: No module named 'no_such_plugin'. It must "
            "be importable from where the trainer starts; add its folder to PYTHONPATH.",
        ),
    ],
)
def test_mistakes_are_found_before_anything_starts(invoke: Any, arguments: tuple[str, ...], message: str) -> None:
    result = invoke("run", *arguments)
    assert (result.stdout, result.stderr, result.exit_code) == ("", f"{message}\n", 2)


def test_a_mistake_is_one_message_without_a_traceback(project: Any) -> None:
    result = project.run("true", flags=("--refine.num_draft", "3"))
    assert (result.stdout, result.returncode) == ("", 2)
    assert result.stderr == (
        "refine: unknown setting 'num_draft' as a flag (--refine.num_draft). Did you mean 'num_drafts'?\n"
    )


def test_a_file_that_cannot_be_executed(project: Any) -> None:
    project.write("work/garbage", "\0").chmod(0o755)
    result = project.run("./garbage")
    assert (result.stderr, result.returncode) == (
        f"{BANNER_PLUGIN}refine: cannot start './garbage': Exec format error.\n",
        2,
    )


def test_no_adapter_is_refused(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    result = invoke("run", "--", "true")
    assert (result.stderr, result.exit_code) == (
        "refine: no loaded plugin has an adapter that `run` can switch on, so nothing would be refined. Adapters come "
        "with an installed refine-wrapper or with --plugin; see `refine-wrapper plugins`.\n",
        2,
    )


def test_run_inside_run_is_refused(project: Any) -> None:
    inner = (PYTHON, "-m", "refine_wrapper.cli", "run", *PLUGIN, "--", PYTHON, "train.py")
    result = project.run(*inner)
    assert (result.stderr, result.returncode) == (
        f"{BANNER_PLUGIN}refine: this was started by another `refine-wrapper run`. "
        "Use it once, around the whole command.\n",
        2,
    )


def test_plugins_of_other_sources_stay_beside_those_of_the_flag(project: Any) -> None:
    project.write("lib/other_plugin.py", "")
    result = project.run(PYTHON, "train.py", REFINE_WRAPPER_PLUGIN_MODULES="other_plugin")
    assert result.stderr == f"{BANNER}; also plugin_modules ['other_plugin', 'fake_plugin'] (--plugin)\n"
