"""The ``refine.*`` keys: the config group, what is prepared before a job starts, what is refused with which numbers."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn

from refine_wrapper.errors import BudgetError, ConfigError
from refine_wrapper.settings.config import field_names
from refine_wrapper_verl import settings as verl_settings
from refine_wrapper_verl.objectives import OBJECTIVES, apply_objective
from refine_wrapper_verl.settings import is_prepared, prepare, read_settings

GROUPS = sorted((Path(verl_settings.__file__).parent / "conf" / "refine").glob("*.yaml"))
PROMPT = "actor_rollout_ref.rollout.prompt_length"


def composed(*overrides: str) -> DictConfig:
    """The configuration that ``main_ppo`` would get, with our group found on Hydra's own search path."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def test_the_group_alone_switches_refinement_on(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed("+refine=best_of_4", "actor_rollout_ref.rollout.n=4")
    prepare(config)
    settings = read_settings(config)
    assert settings.num_drafts == 4
    assert (
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == "refine_wrapper_verl.RefineAgentLoopManager"
    )
    assert config.actor_rollout_ref.rollout.n == 4
    said = capsys.readouterr().err
    assert "N=4 drafts + G=4 refinements = 8 completions per prompt" in said
    prepare(config)
    assert capsys.readouterr().err == ""  # printed once


def test_the_papers_budget(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed("+refine=matched_4", "actor_rollout_ref.rollout.n=8")
    prepare(config)
    assert config.actor_rollout_ref.rollout.n == 4
    assert "as many as the plain run samples" in capsys.readouterr().err
    prepare(config)
    assert config.actor_rollout_ref.rollout.n == 4  # not shrunk twice


@pytest.mark.parametrize("group", GROUPS, ids=lambda path: path.stem)
def test_a_group_knows_every_setting(group: Path) -> None:
    assert tuple(yaml.safe_load(group.read_text())["refine"]) == field_names()


def test_each_setting_can_be_changed_on_the_command_line() -> None:
    config = composed("+refine=best_of_4", "refine.selector=random", "refine.selector_options={}", "refine.seed=3")
    settings = read_settings(config)
    assert (settings.selector, settings.seed) == ("random", 3)


def test_single_keys_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINE_WRAPPER_SELECTOR", "median")
    monkeypatch.setenv("REFINE_WRAPPER_NUM_DRAFTS", "2")
    settings = read_settings(composed("+refine.num_drafts=3"))
    assert (settings.num_drafts, settings.selector) == (3, "median")  # keys are stronger


def test_a_prepared_configuration_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a Ray cluster do not have the driver's."""
    monkeypatch.setenv("REFINE_WRAPPER_SELECTOR", "median")
    config = composed("+refine=best_of_4")
    prepare(config)
    monkeypatch.delenv("REFINE_WRAPPER_SELECTOR")
    assert read_settings(config).selector == "median"


def test_paths_are_those_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed("+refine=best_of_4", "refine.trace_dir=trace")
    prepare(config)
    assert read_settings(config).trace_dir == tmp_path / "trace"


def test_off_changes_nothing() -> None:
    config = composed("+refine=best_of_4", "refine.enabled=false")
    before = OmegaConf.to_container(config)
    prepare(config)
    assert OmegaConf.to_container(config) == before
    assert not is_prepared(config)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'num_draft'.*num_drafts.*In a veRL command"):
        read_settings(composed("+refine.num_draft=3"))
    with pytest.raises(ConfigError, match=r"Write \+refine=best_of_4"):
        read_settings(OmegaConf.create({"refine": 4}))


def test_the_prompt_grows_by_template_and_draft(capsys: pytest.CaptureFixture[str]) -> None:
    """veRL's default is the data's length, and it cuts the beginning off longer prompts."""
    config = composed("+refine=best_of_4", "data.max_prompt_length=100", "data.max_response_length=50")
    prepare(config)
    grown = int(config.actor_rollout_ref.rollout.prompt_length)
    assert 100 + 50 + 200 < grown < 100 + 50 + 400
    assert f"{PROMPT} 100 -> {grown}" in capsys.readouterr().err
    own = composed("+refine=best_of_4", "data.max_prompt_length=100", f"{PROMPT}=2000")
    prepare(own)
    assert own.actor_rollout_ref.rollout.prompt_length == 2000


@pytest.mark.parametrize(
    ("overrides", "numbers"),
    [
        # The engine is too short for even one token of a draft.
        (
            ["actor_rollout_ref.rollout.max_model_len=1024"],
            r"prompt_length=512 .*Set .*prompt_length=\d+ and .*max_model_len=\d+",
        ),
        ([f"{PROMPT}=1500", "actor_rollout_ref.rollout.max_model_len=2000"], "max_model_len=2012"),
        (
            [
                f"{PROMPT}=1500",
                "actor_rollout_ref.actor.use_dynamic_bsz=True",
                "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=2000",
            ],
            "ppo_max_token_len_per_gpu=2012 or more",
        ),
        ([f"{PROMPT}=520", "refine.draft_tokens=64"], r"draft \(64\)"),
        (
            ["refine.match_budget=true", "actor_rollout_ref.rollout.n=4", "algorithm.adv_estimator=grpo"],
            "to at least 6",
        ),
    ],
)
def test_lengths_that_cannot_work_are_refused_with_numbers(overrides: list[str], numbers: str) -> None:
    with pytest.raises(BudgetError, match=numbers):
        prepare(composed("+refine=best_of_4", *overrides))


def test_gpus_that_share_a_sequence_hold_more_of_it() -> None:
    """Megatron's context parallelism, per role: what is valid for the host is not refused."""
    sizes = (
        *(f"{PROMPT}=1500", "actor_rollout_ref.rollout.n=4"),
        *("actor_rollout_ref.actor.use_dynamic_bsz=True", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1100"),
        *("actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False", "critic.use_dynamic_bsz=False"),
        *("actor_rollout_ref.ref.log_prob_use_dynamic_bsz=False",),
    )
    with initialize_config_module("verl.trainer.config", version_base=None):
        parallel = compose(
            "ppo_megatron_trainer",
            overrides=["+refine=best_of_4", *sizes, "actor_rollout_ref.actor.megatron.context_parallel_size=2"],
        )
        alone = compose("ppo_megatron_trainer", overrides=["+refine=best_of_4", *sizes])
    prepare(parallel)
    with pytest.raises(BudgetError, match="ppo_max_token_len_per_gpu=2012 or more"):
        prepare(alone)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["reward.reward_model.enable=True"], "colocated reward model.*enable_resource_pool=True"),
        (["actor_rollout_ref.rollout.full_determinism=True"], "full_determinism=False"),
        (["algorithm.adv_estimator=remax"], "ReMax compares each sample with a greedy one"),
        (
            ["actor_rollout_ref.rollout.agent.agent_loop_manager_class=mine.Manager"],
            "agent_loop_manager_class=mine.Manager, and refinement needs its own",
        ),
        (["refine.mode=joint", "actor_rollout_ref.rollout.n=4"], "num_drafts must be from 1 to 3"),
        (["refine.mode=joint", "actor_rollout_ref.rollout.n=8", "refine.evaluation=refine"], "val_kwargs.n=1"),
    ],
)
def test_what_cannot_be_refined_is_refused(overrides: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        prepare(composed("+refine=best_of_4", *overrides))


ON_QUESTION = ("+refine=best_of_4", "refine.mode=on_failure", "actor_rollout_ref.rollout.n=8")


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ("algorithm.rollout_correction.bypass_mode=True", "bypass_mode=False"),
        ("algorithm.rollout_correction.rollout_is=token", "rollout_is=null"),
        ("algorithm.rollout_correction.rollout_rs=token_k1", "rollout_rs=null"),
        ("actor_rollout_ref.rollout.enable_rollout_routing_replay=True", "enable_rollout_routing_replay=False"),
    ],
)
def test_rows_trained_under_q_have_no_log_probs_of_their_sampler(setting: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"Set .*{instead}, or train_under=sampled"):
        prepare(composed(*ON_QUESTION, setting))
    prepare(composed(*ON_QUESTION, setting, "refine.train_under=sampled"))
    prepare(composed("+refine=best_of_4", setting))  # mode paper trains under what was sampled on


def test_modes_without_context_are_the_plain_runs_size(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed("+refine=matched_4", "refine.mode=joint", "actor_rollout_ref.rollout.n=8")
    prepare(config)
    assert config.actor_rollout_ref.rollout.n == 8
    said = capsys.readouterr().err
    assert "8 completions per prompt, all of them trained, as many as the plain run samples" in said
    assert "mode=joint" in said


def test_a_named_objective_is_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """What the command says of another objective does not stay."""
    other = ("actor_rollout_ref.actor.clip_ratio_high=0.28", "actor_rollout_ref.actor.policy_loss.loss_mode=gspo")
    config = composed("+refine=best_of_4", "refine.objective=grpo", "actor_rollout_ref.rollout.n=4", *other)
    prepare(config)
    actor = config.actor_rollout_ref.actor
    assert (actor.clip_ratio_high, actor.policy_loss.loss_mode, actor.loss_agg_mode) == (
        0.2,
        "vanilla",
        "seq-mean-token-mean",
    )
    assert "clip_ratio_high 0.28 -> 0.2" in capsys.readouterr().err


@pytest.mark.parametrize(("version", "metric"), [("0.9.0", "acc"), ("0.9.1", "reward")])
def test_dapo_filters_by_a_metric_that_the_version_knows(
    monkeypatch: pytest.MonkeyPatch, version: str, metric: str
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    config = composed("actor_rollout_ref.rollout.n=4")
    apply_objective(config, "dapo", OBJECTIVES["dapo"])
    assert config.algorithm.filter_groups.metric == metric


def test_fully_async_policy_is_refused() -> None:
    host: Any = importlib.util.find_spec("verl")
    folder = Path(host.origin).parent / "experimental" / "fully_async_policy" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("fully_async_ppo_trainer", overrides=["+refine=best_of_4"])
    with pytest.raises(ConfigError, match="fully_async_policy makes its own agent loop manager"):
        prepare(config)


def test_one_refinement_is_enough_for_an_objective_without_groups() -> None:
    config = composed(
        "+refine=matched_4", "actor_rollout_ref.rollout.n=5", "algorithm.adv_estimator=reinforce_plus_plus"
    )
    prepare(config)
    assert config.actor_rollout_ref.rollout.n == 1


def test_the_launch_hook_prepares_before_the_host_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    from refine_wrapper_verl.switch import switch_validation

    validated: list[Any] = []
    module = types.ModuleType("stands_in_for_verl_utils_config")
    module.validate_config = lambda config, use_reference_policy, use_critic: validated.append(config)  # type: ignore[attr-defined]
    switch_validation(module)
    monkeypatch.setenv("REFINE_WRAPPER_FLAGS", '{"num_drafts": "2"}')
    config = composed()
    module.validate_config(config=config, use_reference_policy=False, use_critic=False)  # type: ignore[attr-defined]
    assert validated == [config]
    assert is_prepared(config)
    assert read_settings(config).num_drafts == 2


@pytest.mark.parametrize("num_drafts", [4, 0], ids=["refined", "plain"])
def test_an_objective_by_name_is_its_keys(num_drafts: int, capsys: pytest.CaptureFixture[str]) -> None:
    host = composed("+refine=best_of_4", "actor_rollout_ref.rollout.n=4", f"refine.num_drafts={num_drafts}")
    for name, objective in OBJECTIVES.items():
        config = copy.deepcopy(host)
        config.refine.objective = name
        prepare(config)
        for key, value in (objective.settings or {}).items():
            assert OmegaConf.select(config, key) == value
        assert f"objective={name}" in capsys.readouterr().err
        assert get_adv_estimator_fn(config.algorithm.adv_estimator)
        assert get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode)


def test_draft_ahead_is_refused() -> None:
    with pytest.raises(ConfigError, match="draft_ahead is for hosts that generate whole batches"):
        prepare(composed("+refine=best_of_4", "refine.draft_ahead=true"))
