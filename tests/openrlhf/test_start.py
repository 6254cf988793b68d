"""Flags of both sides, and what is refused before anything starts. OpenRLHF's real command line, up to where it trains."""

from __future__ import annotations

import contextlib
import importlib.util
import runpy
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from refine_testing.openrlhf_runs import Workshop

from refine_wrapper.errors import BudgetError, ConfigError, PluginError
from refine_wrapper_openrlhf import train_ppo_ray as launcher
from refine_wrapper_openrlhf.objectives import OBJECTIVES
from refine_wrapper_openrlhf.switch import switch_command_line

pytestmark = pytest.mark.launcher

Reach = Callable[..., Any]


class _ReachedError(Exception):
    """Training would begin."""


@pytest.fixture
def reach(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Reach:
    """Run the command line in this process with changed flags; gives the arguments that it would train with."""
    import argparse

    import ray
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", argparse.ArgumentParser.parse_args)
    for module in (ppo_trainer, ppo_trainer_async):
        monkeypatch.setattr(module, "SamplesGenerator", module.SamplesGenerator)
    monkeypatch.setattr(ray, "is_initialized", lambda: (_ for _ in ()).throw(_ReachedError))
    folder = workshop.folder()
    workshop.reward(folder)

    def start(*refine: str, switched: bool = True, **changed: Any) -> SimpleNamespace:
        if switched:
            switch_command_line()
        monkeypatch.setattr(sys, "argv", ["train_ppo_ray", *workshop.flags(folder, **changed), *refine])
        with pytest.raises(_ReachedError) as reached:
            runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
        frames = [entry.frame for entry in reached.traceback]
        return next(frame.f_locals["args"] for frame in frames if frame.code.name == "train")

    return start


def test_a_refined_run_is_the_plain_one_but_for_the_agent(reach: Reach) -> None:
    from openrlhf.trainer import ppo_trainer
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    plain = reach(switched=False)
    assert ppo_trainer.SamplesGenerator is SamplesGenerator
    refined = reach("--refine.num_drafts", "3")
    assert Path(refined.train.agent_func_path).name == "launched_agent.py"
    assert ppo_trainer.SamplesGenerator.__name__ == "RefineSamplesGenerator"
    refined.train.agent_func_path, refined.reward.remote_url = None, plain.reward.remote_url
    del refined.refine
    refined.logger.wandb.run_name = plain.logger.wandb.run_name  # has the time of day
    assert refined == plain


@pytest.mark.parametrize("off", ["--refine.enabled=false", "--refine.num_drafts=0"])
def test_off_changes_nothing(off: str, reach: Reach) -> None:
    from openrlhf.trainer import ppo_trainer
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    plain = reach(switched=False)
    switched_off = reach(off)
    del switched_off.refine
    switched_off.logger.wandb.run_name = plain.logger.wandb.run_name
    assert switched_off == plain
    assert ppo_trainer.SamplesGenerator is SamplesGenerator


def test_settings_from_everywhere(reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    Path("refine.yaml").write_text("num_drafts: 2\nselector: median\ntemplate: mine.txt\n")
    Path("mine.txt").write_text("{question} {draft}")
    monkeypatch.setenv("REFINE_WRAPPER_SELECTOR", "random")
    args = reach("--refine.config", "refine.yaml", "--refine.trace_dir=traces", "--refine.trace_texts")
    config = json.loads(args.refine.settings)["config"]
    assert (config["num_drafts"], config["selector"], config["trace_texts"]) == (2, "random", True)
    # The engines run in other folders.
    assert config["trace_dir"] == str(tmp_path / "traces")
    assert config["template"] == str(tmp_path / "mine.txt")
    assert not Path("traces").exists()


def test_the_budget_of_the_plain_run(reach: Reach) -> None:
    args = reach("--refine.match_budget", rollout__n_samples_per_prompt=8, train__batch_size=16, rollout__batch_size=4)
    assert (args.rollout.n_samples_per_prompt, args.train.batch_size) == (4, 8)


@pytest.mark.parametrize(
    ("changed", "refine", "error", "message"),
    [
        (
            {"reward__remote_url": None, "reward__model_name_or_path": "judge"},
            (),
            ConfigError,
            r"openrlhf\.cli\.serve_rm --reward\.model_name_or_path judge --port 5000",
        ),
        ({"reward__remote_url": "absent.py"}, (), ConfigError, r"there is no file 'absent\.py'"),
        ({"train__agent_func_path": "agent.py"}, (), ConfigError, "make_agent_executor"),
        ({"train__batch_size": 16}, (), BudgetError, r"Set --train\.batch_size to 4 or a divisor"),
        ({"data__max_len": 100}, (), BudgetError, r"Raise --data\.max_len to at least \d+"),
        (
            {"rollout__n_samples_per_prompt": 1, "train__batch_size": 2},
            (),
            BudgetError,
            r"Set --rollout\.n_samples_per_prompt to 2 or more",
        ),
        ({}, ("--refine.match_budget",), BudgetError, "Raise the group size to at least 6"),
        ({}, ("--refine.num_draft=4",), ConfigError, "num_drafts"),
        ({}, ("--refine.selector=bets",), PluginError, "best"),
        ({}, ("--refine.objective=grop",), PluginError, "grpo"),
        ({}, ("--refine.draft_ahead",), ConfigError, "draft_ahead is for hosts that generate whole batches"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(
    changed: dict[str, Any],
    refine: tuple[str, ...],
    error: type[Exception],
    message: str,
    reach: Reach,
) -> None:
    with pytest.raises(error, match=message):
        reach(*refine, **changed)


@pytest.mark.parametrize(
    ("changed", "refine", "error", "message"),
    [
        ({}, ("--refine.mode=joint",), ConfigError, r"Set --refine\.num_drafts 1"),
        ({}, ("--refine.mode=jiont",), PluginError, "joint"),
        ({}, ("--refine.mode=joint", "--refine.mode_options={num_draft: 1}"), ConfigError, "num_drafts"),
        (
            {"eval__dataset": "eval.jsonl", "eval__n_samples_per_prompt": 4},
            ("--refine.mode=rescue", "--refine.evaluation=refine"),
            ConfigError,
            "evaluation=refine would measure nothing",
        ),
        (
            {"eval__dataset": "eval.jsonl", "eval__n_samples_per_prompt": 1},
            ("--refine.mode=joint", "--refine.num_drafts=1", "--refine.evaluation=refine"),
            ConfigError,
            r"about --eval\.n_samples_per_prompt=1",
        ),
        (
            {"rollout__n_samples_per_prompt": 4, "train__batch_size": 8, "train__micro_batch_size": 4},
            ("--refine.num_drafts=1", "--refine.match_budget"),
            BudgetError,
            r"--train\.batch_size 8 into 6.* a multiple of --train\.micro_batch_size 4 x 1 processes = 4",
        ),
    ],
)
def test_what_a_mode_cannot_do_is_refused_with_what_to_write(
    changed: dict[str, Any], refine: tuple[str, ...], error: type[Exception], message: str, reach: Reach
) -> None:
    with pytest.raises(error, match=message):
        reach(*refine, **changed)


@pytest.mark.parametrize("mode", ["on_failure", "rescue", "adaptive"])
def test_training_under_the_question_and_correcting_by_the_samplers_logprobs(mode: str, reach: Reach) -> None:
    group = {"rollout__n_samples_per_prompt": 8, "train__batch_size": 16}
    args = reach(f"--refine.mode={mode}", **group)
    assert args.rollout.n_samples_per_prompt == 8
    if not hasattr(args.algo.advantage, "is_correction_level"):  # before 0.11.2
        flags, instead = ("--algo.advantage.is_correction_enable",), r"no --algo\.advantage\.is_correction_enable"
    else:
        flags = ("--algo.advantage.is_correction_level", "token")
        instead = r"--algo\.advantage\.is_correction_level off"
    with pytest.raises(ConfigError, match=rf"Set {instead}, or train_under=sampled"):
        reach(*flags, f"--refine.mode={mode}", **group)
    reach(*flags, f"--refine.mode={mode}", "--refine.train_under=sampled", **group)


@pytest.mark.parametrize("mode", ["joint", "on_failure"])
def test_modes_that_train_all_samples_keep_the_plain_runs_shapes(
    mode: str, reach: Reach, capsys: pytest.CaptureFixture[str]
) -> None:
    group = {"rollout__n_samples_per_prompt": 8, "train__batch_size": 16}
    args = reach(f"--refine.mode={mode}", "--refine.match_budget", **group)
    assert (args.rollout.n_samples_per_prompt, args.train.batch_size) == (8, 16)
    assert "8 completions per prompt, all of them trained, as many as the plain run samples" in capsys.readouterr().err


def test_a_changed_group_size_is_said(reach: Reach, capsys: pytest.CaptureFixture[str]) -> None:
    refine = ("--refine.match_budget", "--refine.refine_share=0.5")
    reach(*refine, rollout__n_samples_per_prompt=8, train__batch_size=16)
    said = capsys.readouterr().err
    assert "The group size changed from 8 to 4" in said
    assert "a group that is not refined has 4 completions, fewer than the plain run's 8" in said


def test_the_tokenizer_comes_from_modelscope_where_the_host_takes_it_from_there(
    reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A STAND-IN for modelscope, which is not installed here; its names are as in modelscope 1.20 and newer."""
    inside: list[bool] = []
    patcher: Any = ModuleType("modelscope.utils.hf_util.patcher")
    within = [False]

    @contextlib.contextmanager
    def patch_context() -> Generator[None]:
        within[0] = True
        yield
        within[0] = False

    patcher.patch_context = patch_context
    hf_util: Any = ModuleType("modelscope.utils.hf_util")
    hf_util.patch_hub, hf_util.patcher = lambda: None, patcher
    for name in ("modelscope", "modelscope.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "modelscope.utils.hf_util", hf_util)
    monkeypatch.setitem(sys.modules, "modelscope.utils.hf_util.patcher", patcher)
    import openrlhf.utils.utils as utils

    load = utils.get_tokenizer
    monkeypatch.setattr(
        utils, "get_tokenizer", lambda *args, **kwargs: inside.append(within[0]) or load(*args, **kwargs)
    )
    reach(use_ms=True)
    assert inside[0]


def test_a_train_batch_that_fits_roughly_is_told(reach: Reach, capsys: pytest.CaptureFixture[str]) -> None:
    reach(train__batch_size=3, rollout__batch_size=2)
    assert "does not divide the 4 samples" in capsys.readouterr().err


def test_one_refinement_is_enough_without_groups(reach: Reach) -> None:
    args = reach(rollout__n_samples_per_prompt=1, train__batch_size=2, algo__advantage__estimator="reinforce")
    assert args.rollout.n_samples_per_prompt == 1


def test_help_shows_both_sets_of_flags(
    reach: Reach, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from refine_wrapper.settings.config import field_names

    monkeypatch.setattr(sys, "argv", ["train_ppo_ray", "--help"])
    with pytest.raises(SystemExit) as ended:
        launcher.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--algo.advantage.estimator" in shown
    assert all(f"--refine.{name}" in shown for name in field_names())


def test_an_error_is_one_line_on_the_screen(reach: Reach, monkeypatch: pytest.MonkeyPatch, workshop: Workshop) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *workshop.flags(workshop.root, reward__remote_url="absent.py")])
    with pytest.raises(SystemExit) as ended:
        launcher.main()
    assert str(ended.value).startswith("refine: --reward.remote_url: there is no file 'absent.py'")


def test_other_parsers_are_left_alone() -> None:
    from argparse import ArgumentParser

    switch_command_line()
    parser = ArgumentParser()
    parser.add_argument("--refine.x")
    assert vars(parser.parse_args(["--refine.x", "1"])) == {"refine.x": "1"}


@pytest.mark.parametrize("off", [(), ("--refine.num_drafts=0",)], ids=["refined", "plain"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_by_name_is_its_flags(
    name: str, off: tuple[str, ...], reach: Reach, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(importlib.util.find_spec("openrlhf.cli.train_ppo_ray").origin).read_text()  # type: ignore[union-attr, arg-type]
    settings = OBJECTIVES[name].settings or {}
    absent = [flag for flag in settings if f'"--{flag}"' not in source]
    if absent:  # 0.10.4 always takes the mean over tokens
        with pytest.raises(ConfigError, match=rf"objective '.*' needs --{absent[0]}, which this OpenRLHF does not"):
            reach(f"--refine.objective={name}", *off)
        return
    args = reach(f"--refine.objective={name}", *off)
    for flag, value in settings.items():
        found: Any = args
        for part in flag.split("."):
            found = getattr(found, part)
        assert found == value
    assert f"objective={name}" in capsys.readouterr().err
