"""Plans: the grid, what is refused, and what a command becomes. No host is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from refine_wrapper.errors import BudgetError, ConfigError, RefineError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.study.ablation.cell import Cell, cells_of
from refine_wrapper.study.ablation.comparison import setting_label
from refine_wrapper.study.ablation.plan import Plan, fill, read_plan

TRL = {"hosts": {"trl": {"command": "python train.py", "python": "/opt/trl/bin/python"}}}


def cells(tmp_path: Path, **content: Any) -> list[Cell]:
    plan = Plan(**{**TRL, **content})
    plan.check(Plugins())
    return cells_of(plan, tmp_path / "run", Plugins())


def test_the_grid_is_hosts_tasks_objectives_settings_and_seeds(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        tasks={"a": {}, "b": {}},
        objectives=["grpo", "dapo"],
        refine={"num_drafts": [2, 4], "selector": ["best", "random"], "refine_share": 0.5},
        seeds=3,
    )
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * (1 + 2 * 2) * 3
    # Half a run can be compared already: whole seeds first, the plain cell before the refined ones.
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)
    assert [cell.refined for cell in found[:5]] == [False, True, True, True, True]
    assert found[1].name == "trl--grpo--a--2+6--selector_best--seed0"
    assert found[1].columns | {"cell": ""} == {
        "cell": "",
        "host": "trl",
        "objective": "grpo",
        "refined": True,
        "mode": "paper",
        "num_drafts": 2,
        "group_size": 6,
        "selector": "best",
        "template": "append",
        "share": 0.5,
        "options": None,
        "task": "a",
        "seed": 0,
    }


def test_modes_are_varied_and_their_completions_matched(tmp_path: Path) -> None:
    found = cells(tmp_path, refine={"mode": ["paper", "joint", "rescue"], "num_drafts": [2, 4]}, seeds=1)[1:]
    assert {cell.name: (cell.num_drafts, cell.group_size) for cell in found} == {
        "trl--grpo--task--2+6--seed0": (2, 6),
        "trl--grpo--task--4+4--seed0": (4, 4),
        "trl--grpo--task--joint-N2-S8--seed0": (2, 8),
        "trl--grpo--task--joint-N4-S8--seed0": (4, 8),
        "trl--grpo--task--rescue-N2-S6--seed0": (2, 6),
        "trl--grpo--task--rescue-N4-S4--seed0": (4, 4),
    }
    for cell in found:
        arguments = cell.arguments(tmp_path / "cell", None)
        assert arguments[arguments.index("--num_generations") + 1] == "8"  # the host's, before match_budget
        assert f"--refine.mode={cell.config.mode}" in arguments or cell.config.mode == "paper"
    labels = [setting_label(cell.columns) for cell in found]
    assert labels == [
        "2 + 6, best", "4 + 4, best", "joint 8, 2 drafts, best", "joint 8, 4 drafts, best", "rescue 6, 2 drafts, best",
        "rescue 4, 4 drafts, best",
    ]  # fmt: skip


def test_options_of_a_mode_are_varied(tmp_path: Path) -> None:
    options = [{"rounds": 2, "num_drafts": 1}, {"rounds": 3, "num_drafts": 2}]
    found = cells(tmp_path, refine={"mode": "rounds", "mode_options": options, "draft_tokens": [9, 5]}, seeds=1)[1:]
    assert [(cell.num_drafts, cell.group_size) for cell in found] == [(1, 6), (1, 6), (2, 2), (2, 2)]
    assert [setting_label(cell.columns) for cell in found] == [
        "rounds 6, 1 drafts, best, rounds=2, draft_tokens=9",
        "rounds 6, 1 drafts, best, rounds=2, draft_tokens=5",
        "rounds 2, 2 drafts, best, rounds=3, draft_tokens=9",
        "rounds 2, 2 drafts, best, rounds=3, draft_tokens=5",
    ]
    assert len({cell.name for cell in found}) == 4
    assert '--refine.mode_options={"rounds": 2, "num_drafts": 1}' in found[0].arguments(tmp_path / "cell", None)


def test_a_command_gets_what_it_does_not_place_itself(tmp_path: Path) -> None:
    command = "python train.py --seed {seed} --name '{task} {{x}}' --lr {lr}"
    found = cells(
        tmp_path, hosts={"trl": {"command": command}}, tasks={"a": {"lr": 2e-4}}, steps=50, seeds=[7], completions=6
    )
    plain, refined = (cell.arguments(tmp_path / "cell", cell.steps) for cell in found)
    own = plain[plain.index("--") + 1 :]
    assert own[:8] == ["python", "train.py", "--seed", "7", "--name", "a {x}", "--lr", "0.0002"]
    assert own.count("--seed") == 1
    assert own[own.index("--num_generations") + 1] == "6"
    assert own[own.index("--max_steps") + 1] == "50"
    assert own[own.index("--output_dir") + 1] == str(tmp_path / "cell" / "output")
    assert refined[refined.index("--") + 1 :] == own
    assert "--refine.enabled=false" in plain
    assert "--refine.objective=grpo" in plain
    assert {"--refine.num_drafts=4", "--refine.match_budget=true", "--refine.seed=7"} <= set(refined)
    environ = found[0].environment(tmp_path / "cell", 50)
    assert environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "cell" / "tensorboard")


def test_a_cell_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    from refine_wrapper.study.ablation.cell import CellFolder

    for cell in cells(tmp_path, evaluate={"data": "{run}/{task}.jsonl"}, start="{run}/model", tasks={"é": {}}):
        (tmp_path / "cell.json").write_text(cell.to_json(), encoding="utf-8")
        assert CellFolder(tmp_path).cell() == cell


def test_tokens_are_matched_to_the_plain_cell_of_the_same_seed(tmp_path: Path) -> None:
    found = cells(tmp_path, match="tokens", steps=20, seeds=2)
    assert [cell.plain_cell for cell in found] == ["", found[0].name, "", found[2].name]


def test_objectives_only_where_they_are_wanted(tmp_path: Path) -> None:
    hosts = {host: {"command": "train"} for host in ("trl", "openrlhf")}
    found = cells(
        tmp_path,
        hosts=hosts,
        objectives=["grpo", "reinforce++", "reinforce++-baseline"],
        only_on={"reinforce++": ["openrlhf"], "reinforce++-baseline": ["trl"]},
        seeds=1,
    )
    assert {(cell.host, cell.objective) for cell in found} == {
        ("trl", "grpo"),
        ("trl", "reinforce++-baseline"),
        ("openrlhf", "grpo"),
        ("openrlhf", "reinforce++"),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"objektives": ["grpo"]}, "unknown setting 'objektives'. Did you mean 'objectives'"),
        ({"refine": {"num_draft": 4}}, "unknown setting refine.num_draft in the plan. Did you mean 'num_drafts'"),
        ({"refine": {"enabled": [True, False]}}, "refine.enabled cannot be set"),
        ({"objectives": ["gropo"]}, "gropo.*Did you mean 'grpo'"),
        ({"objectives": ["reinforce\\+\\+".replace("\\", "")]}, "cannot be trained on trl"),
        ({"hosts": {"trll": {"command": "x"}}}, "no host is called 'trll'. Did you mean 'trl'"),
        (
            {"hosts": {"trl": {"command": "x {sed}"}}},
            "holds {sed} in 'x? ?{sed}', which is nothing. Did you mean 'seed'",
        ),
        ({"hosts": {"trl": {"command": "x {"}}}, "A brace itself is written twice"),
        ({"hosts": {"trl": {"command": ""}}}, "hosts.trl.command"),
        ({"match": "tokens"}, "Say how many `steps`"),
        ({"start": "m"}, "add `evaluate`"),
        ({"evaluate": {"data": "d", "sample": 3}}, "Did you mean|sample"),
        ({"refine": {"selector": "bset"}}, "Did you mean 'best'"),
        ({"refine": {"mode": "jiont"}}, "unknown mode 'jiont'. Did you mean 'joint'"),
        ({"refine": {"mode": "joint", "mode_options": {"rounds": 2}}}, "mode 'joint' has no option 'rounds'"),
        ({"refine": {"mode": "joint", "num_drafts": 8}}, "num_drafts must be from 1 to 7"),
        ({"refine": {"mode": "rounds", "mode_options": {"rounds": 2}}}, "8 drafts leave 0 refinements of a group of 8"),
        ({"refine": {"num_drafts": [4, 4]}}, "two cells called 'trl--grpo--task--4.4--seed0'"),
        ({"refine": {"template": "nowhere.txt"}}, "nowhere.txt"),
        ({"only_on": {"grpo": ["verl"]}}, "trains no objective on trl"),
        ({"seeds": []}, "seeds"),
        ({"hosts": {"openrlhf": {"command": "x"}}, "steps": 5}, "openrlhf has no setting for optimizer steps"),
    ],
)
def test_what_a_plan_may_not_say(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(RefineError, match=message):
        cells(tmp_path, **content)


def test_splits_that_leave_no_group_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="7 drafts leave 1"):
        cells(tmp_path, refine={"num_drafts": [4, 7]})


@pytest.mark.parametrize(
    ("text", "message"), [("- 1", "must hold a mapping"), ("a: [", "not valid YAML"), (None, "cannot read the plan")]
)
def test_files_that_are_no_plan(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "plan.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_plan(file)


def test_commands_start_in_the_folder_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(TRL), encoding="utf-8")
    assert read_plan(tmp_path / "plan.yaml").folder == tmp_path


@pytest.mark.parametrize("text", ["{a!r}", "{a:>9}", "{a.b}", "{a[0]}", "{}", "{0}"])
def test_only_names_are_filled_in(text: str) -> None:
    with pytest.raises(ConfigError):
        fill(text, {"a": "x"}, "here")
