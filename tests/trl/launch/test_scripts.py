"""Training scripts and commands that nobody edits, switched on by `refine-wrapper run`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from refine_testing.tiny import tiny_tokenizer

PYTHON = sys.executable
SCRIPTS = Path(__file__).parent / "scripts"
BANNER = "refine-wrapper: on for GRPOTrainer. "

pytestmark = pytest.mark.timeout(280)


def train_py(workshop: Any, folder: Path, *options: str) -> tuple[str, ...]:
    """scripts/train.py and its options: 2 steps."""
    fixed = ("--model", workshop.model, "--data", workshop.data, "--output", str(folder / "out"))
    return str(SCRIPTS / "train.py"), *fixed, *options


def assert_refined(launched: Any, *, drafts: int, refinements: int, groups_per_step: int) -> None:
    """The trace has these groups, each q' holds its best draft, and exactly the refinements of q' had a gradient."""
    groups = launched.groups
    assert Counter(group["step"] for group in groups) == {0: groups_per_step, 1: groups_per_step}
    expected: Counter[tuple[str, str]] = Counter()
    for group in groups:
        assert group["action"] == "refine"
        assert len(group["drafts"]) == drafts
        assert len(group["refinements"]) == refinements
        assert group["drafts"][group["selected"]]["reward"] == max(draft["reward"] for draft in group["drafts"])
        assert group["question"] in group["prompt"]
        assert group["draft_text"] in group["prompt"]
        assert group["draft_text"] == group["drafts"][group["selected"]]["text"].strip()
        expected[group["prompt"]] += refinements
    assert len({group["group_id"] for group in groups}) == len(groups)
    tokenizer = tiny_tokenizer()
    trained = [tokenizer.decode(ids[:-COMPLETION]) for ids in launched.trained()]
    assert Counter(trained) == expected


COMPLETION = 12  # train.py's max_completion_length, which a random model always uses up


@pytest.fixture(scope="module")
def refined(workshop: Any) -> Any:
    """`refine-wrapper run ... -- python train.py`."""
    folder = workshop.folder()
    return workshop.run(PYTHON, *train_py(workshop, folder), flags=("--refine.num_drafts", "3"), folder=folder)


@pytest.fixture(scope="module")
def isolated(workshop: Any) -> Any:
    """The same with `python -I`, which hides the hook: trained plainly."""
    folder = workshop.folder()
    command = (PYTHON, "-I", *train_py(workshop, folder, "--batch", "8", "--generations", "4"))
    return workshop.run(*command, folder=folder)


def test_python(refined: Any) -> None:
    assert refined.code == 0, refined.screen
    assert_refined(refined, drafts=3, refinements=2, groups_per_step=2)
    assert [step["refine/completions"] for step in refined.steps] == [10, 10]


def test_it_says_so_once_with_numbers(refined: Any) -> None:
    assert refined.screen.count(BANNER) == 1
    assert (
        f"{BANNER}N=3 drafts + G=2 refinements = 5 completions per prompt; the plain run samples 2." in refined.screen
    )
    assert refined.screen.startswith("refine: on. num_drafts 3 (--refine.num_drafts)")
    assert refined.screen.count("refine: ") == 1
    assert "refine" not in "".join(
        line for line in refined.output.splitlines(keepends=True) if not line.startswith("{")
    )


def test_torchrun_with_groups_that_straddle_two_ranks(workshop: Any) -> None:
    folder = workshop.folder()
    launcher = (PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = (*launcher, *train_py(workshop, folder, "--batch", "3"))
    launched = workshop.run(*command, flags=("--refine.num_drafts", "4"), folder=folder)
    assert launched.code == 0, launched.screen
    assert len(list((folder / "out").glob("trained-*.jsonl"))) == 2
    assert_refined(launched, drafts=4, refinements=2, groups_per_step=3)
    assert launched.screen.count(BANNER) == 1  # not once a rank


def test_accelerate_launch_with_matched_budget(workshop: Any, isolated: Any) -> None:
    folder = workshop.folder()
    launcher = (PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1")
    command = (*launcher, *train_py(workshop, folder, "--batch", "8", "--generations", "4"))
    flags = ("--refine.num_drafts", "2", "--refine.match_budget")
    launched = workshop.run(*command, flags=flags, folder=folder)
    assert launched.code == 0, launched.screen
    # The plain run has 2 questions of 4 completions a step: 2 drafts and 2 refinements take their place.
    assert_refined(launched, drafts=2, refinements=2, groups_per_step=2)
    plain_completions = len(isolated.trained())
    assert plain_completions == 16
    assert sum(step["refine/completions"] for step in launched.steps) == plain_completions
    summary = "N=2 drafts + G=2 refinements = 4 completions per prompt, as many as the plain run samples."
    assert f"{BANNER}{summary}" in launched.screen


def test_python_isolated_from_the_hook_is_reported(isolated: Any) -> None:
    assert isolated.code == 3
    assert "but nothing was refined" in isolated.screen
    assert "No Python of the command started with the hook" in isolated.screen
    assert "it was started with -I, -E or -S" in isolated.screen
    assert BANNER not in isolated.screen
    # What trained is the plain objective: questions as they are.
    trained = [tiny_tokenizer().decode(ids) for ids in isolated.trained()]
    assert len(trained) == 16
    assert all(re.match(r"\d+ plus \d+ is", text) and "attempt" not in text for text in trained)
    assert not (isolated.folder / "trace").exists()


def test_trl_grpo_with_settings_in_its_yaml(workshop: Any) -> None:
    """`trl` parses the YAML in one interpreter, and trains in a child that parses it again."""
    folder = workshop.folder()
    settings = {
        "model_name_or_path": workshop.model,
        "dataset_name": "json",
        "datasets": [{"path": "json", "data_files": workshop.chats, "split": "train"}],
        "reward_funcs": ["accuracy_reward", "local_rewards.solution_letters"],
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 12,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "eval_strategy": "no",
        "refine_num_drafts": 3,
        "refine_template": "turns",
    }
    del settings["dataset_name"]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "local_rewards.py").write_text((SCRIPTS / "local_rewards.py").read_text())
    trl = (PYTHON, "-m", "trl.cli.main", "grpo", "--config", "config.yaml", "--num_processes", "1")
    launched = workshop.run(*trl, flags=("--refine.selector", "median"), folder=folder)
    assert launched.code == 0, launched.screen
    assert launched.screen.count(BANNER) == 1
    groups = launched.groups
    assert len(groups) == 4
    calls = read_lines(folder / "calls.jsonl")
    for group in groups:
        assert len(group["drafts"]) == 3
        assert [turn["role"] for turn in group["prompt"]] == ["user", "assistant", "user"]  # the template `turns`
        assert group["selector"] == "median"
    # Stage 1 of 2 questions has 6 drafts, then come 4 refinements; the reward sees q and its label with both.
    assert [len(call["prompts"]) for call in calls] == [6, 4] * 2
    questions = {group["question"][0]["content"] for group in groups}
    assert {turns[0]["content"] for call in calls for turns in call["prompts"]} == questions
    assert all(len(turns) == 1 for call in calls for turns in call["prompts"])


def test_a_trlparser_script_takes_settings_and_flags_win(workshop: Any) -> None:
    folder = workshop.folder()
    options = {
        "dataset_name": workshop.data,
        "model_name_or_path": workshop.model,
        "output_dir": folder / "out",
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": False,
        "refine_num_drafts": 3,
        "refine_selector": "best",
        "refine_seed": 5,
    }
    command = [PYTHON, str(SCRIPTS / "train_parser.py")]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    launched = workshop.run(
        *command, flags=("--refine.selector", "worst_formatted", "--refine.seed", "0"), folder=folder
    )
    assert launched.code == 0, launched.screen
    [group] = launched.groups
    assert len(group["drafts"]) == 3  # only the script says so: the default is 4
    assert group["selector"] == "worst_formatted"  # the flag, not the script


def read_lines(path: Path) -> list[Any]:
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]
