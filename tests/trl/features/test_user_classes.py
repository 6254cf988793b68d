"""refine(): around TRL's classes, a user's subclass and its overrides, and a trainer that already runs."""

from __future__ import annotations

import importlib.util
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from refine_testing.rewards import RecordingReward, checksum
from refine_testing.trl_runs import (
    appended,
    best,
    capturing,
    check_refined,
    make,
    refined_settings,
    settings,
    trace_of,
    trained_rows,
)
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTTrainer

from refine_wrapper.errors import ConfigError, SeamError
from refine_wrapper_trl import RefineGRPOTrainer, refine
from refine_wrapper_trl.fields import RefineFields
from refine_wrapper_trl.mixin import RefineMixin
from refine_wrapper_trl.switch import switch_config, switch_trainer

pytestmark = [pytest.mark.timeout(120)]


def traced(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings for refine() itself."""
    return {"num_drafts": 3, "trace_dir": folder / "trace", "trace_texts": True, **changes}


@pytest.mark.oldest
@pytest.mark.parametrize(("host", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_refine_a_class_of_trl(tmp_path: Path, host: Any, config: Any) -> None:
    """With TRL's own config: the settings come from refine()."""
    reward = RecordingReward()
    refining = refine(capturing(host), **traced(tmp_path))
    assert issubclass(refining, host)
    trainer = make(tmp_path, trainer_class=refining, reward_funcs=reward, args=config(**settings(tmp_path)))
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


class Mine(GRPOTrainer):
    """A user's trainer: pays for the letter e, and scales the loss."""

    losses: list[int]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        bonus = torch.tensor([[float(len(ids))] for ids in completion_ids_list], device=rewards.device)
        self._metrics["train"]["rows_scored"].append(float(len(prompts)))
        return rewards + bonus

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.setdefault("losses", []).append(len(inputs["prompt_ids"]))
        return super().compute_loss(model, inputs, *args, **kwargs) * 0.5


@pytest.mark.oldest
@pytest.mark.parametrize("how", ["class", "instance", "mixin first"])
def test_overrides_of_a_subclass_hold_for_drafts_too(tmp_path: Path, how: str) -> None:
    reward = RecordingReward()
    arguments = {"reward_funcs": reward, "args": GRPOConfig(**settings(tmp_path))}
    if how == "class":
        trainer = make(tmp_path, trainer_class=refine(capturing(Mine), **traced(tmp_path)), **arguments)
    elif how == "instance":
        trainer = refine(make(tmp_path, trainer_class=capturing(Mine), **arguments), **traced(tmp_path))
    else:

        class Both(Mine, RefineGRPOTrainer):
            refine_settings = traced(tmp_path)

        trainer = make(tmp_path, trainer_class=capturing(Both), **arguments)
    trainer.train()
    # Random text ends early now and then, so that lengths differ and the bonus decides.
    assert trainer.losses == [4, 4]
    assert [entry["rows_scored"] for entry in trainer.state.log_history[:-1]] == [4.0, 4.0]
    assert len(reward.calls) == 4
    groups = trace_of(trainer)
    assert len(groups) == 4
    for group in groups:
        for row in [*group["drafts"], *group["refinements"]]:
            assert row["reward"] - row["num_tokens"] == pytest.approx(
                min((checksum(t) for t in seen(reward)), key=lambda v: abs(v - (row["reward"] - row["num_tokens"]))),
                abs=1e-5,
            )
        rewards = [draft["reward"] for draft in group["drafts"]]
        assert group["selected"] == rewards.index(max(rewards))
        assert group["prompt"] == appended(group["question"], group["drafts"][group["selected"]]["text"])
    assert Counter(prompt for prompt, _ in trained_rows(trainer)) == Counter(
        group["prompt"] for group in groups for _ in range(2)
    )


def seen(reward: RecordingReward) -> list[str]:
    return [text for call in reward.calls for text in call["completions"]]


@pytest.mark.oldest
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_refine_a_live_trainer_in_the_middle_and_switch_it_off_again(tmp_path: Path, algorithm: str) -> None:
    """Step 1 plain, steps 2 and 3 refined, step 4 plain, step 5 refined again: in one train()."""
    host, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[algorithm]
    reward = RecordingReward()
    args = config(**settings(tmp_path, max_steps=5))

    class Switch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                assert refine(trainer, **traced(tmp_path, num_drafts=2)) is trainer
            if state.global_step == 3:
                refine(trainer, enabled=False)
            if state.global_step == 4:
                refine(trainer)  # on again, with what was said before

    trainer = make(tmp_path, trainer_class=capturing(host), reward_funcs=reward, args=args, callbacks=[Switch()])
    trainer.train()
    assert [len(call["prompts"]) for call in reward.calls] == [4, 4, 4, 4, 4, 4, 4, 4]
    assert {prompt for call in reward.calls for prompt in call["prompts"]} <= set(trainer.train_dataset["prompt"])
    rows = trained_rows(trainer)
    assert {prompt for prompt, _ in rows[:4]} == set(reward.calls[0]["prompts"])
    assert {prompt for prompt, _ in rows[12:16]} == set(reward.calls[5]["prompts"])
    for step, drafts, refinements in [(1, 1, 2), (2, 3, 4), (4, 6, 7)]:
        texts = reward.calls[drafts]["completions"]
        expected = Counter(
            (appended(question, best(texts[2 * group : 2 * group + 2])), text)
            for group, question in enumerate(reward.calls[refinements]["prompts"][::2])
            for text in reward.calls[refinements]["completions"][2 * group : 2 * group + 2]
        )
        assert Counter(rows[4 * step : 4 * step + 4]) == expected
    refined = [entry.get("refine/groups") for entry in trainer.state.log_history[:-1]]
    assert refined == [None, 2.0, 2.0, None, 2.0]


@pytest.mark.oldest
def test_settings_given_in_several_places_add_up(tmp_path: Path) -> None:
    """refine() on refine() keeps what the outer one does not say, and both win over the config."""
    reward = RecordingReward()
    once = refine(capturing(RefineGRPOTrainer), template="turns", selector="median")
    twice = refine(once, num_drafts=5)
    trainer = make(tmp_path, trainer_class=twice, reward_funcs=reward, refine_selector="best")
    trainer.train()
    config = trainer._refine_batches.config
    assert (config.num_drafts, config.template, config.selector) == (5, "turns", "median")
    assert {len(group["drafts"]) for group in trace_of(trainer)} == {5}
    assert {group["selector"] for group in trace_of(trainer)} == {"median"}


@pytest.mark.oldest
@pytest.mark.parametrize("target", [SFTTrainer, dict, object(), "GRPOTrainer"])
def test_refine_refuses_anything_else(target: Any) -> None:
    name = (target if isinstance(target, type) else type(target)).__name__
    with pytest.raises(ConfigError) as error:
        refine(target, num_drafts=2)
    assert str(error.value) == (
        f"refine: {name} is neither a GRPOTrainer nor an RLOOTrainer (nor a subclass). Give refine() one of these."
    )


@pytest.mark.oldest
def test_refine_refuses_unknown_settings_at_construction(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'num_draft'.*num_drafts"):
        make(tmp_path, trainer_class=refine(GRPOTrainer, num_draft=2), args=GRPOConfig(**settings(tmp_path)))


@pytest.mark.oldest
def test_match_budget_without_our_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"match_budget must shrink num_generations.*RefineGRPOConfig"):
        make(tmp_path, trainer_class=refine(GRPOTrainer, match_budget=True), args=GRPOConfig(**settings(tmp_path)))


@pytest.mark.oldest
def test_a_subclass_that_replaces_the_host_method_is_refused(tmp_path: Path) -> None:
    """A copy of ``_generate_and_score_completions`` knows no rows: nothing may be trained as if it were refined."""

    class Copied(RefineGRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return self._generate([row["prompt"] for row in inputs])

    trainer = make(tmp_path, trainer_class=Copied)
    with pytest.raises(SeamError, match=r"Copied generates without calling _generate_and_score_completions of TRL"):
        trainer.train()


@pytest.mark.oldest
def test_a_subclass_that_never_generates_is_refused(tmp_path: Path) -> None:
    class Offline(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return {}

    trainer = make(tmp_path, trainer_class=refine(Offline), args=GRPOConfig(**settings(tmp_path)))
    with pytest.raises(SeamError, match=r"RefineOffline made a batch without TRL's _generate"):
        trainer.train()


@pytest.mark.oldest
def test_a_subclass_that_copied_the_host_method_but_calls_its_parts_is_refined(tmp_path: Path) -> None:
    """Wrapped from outside, a copy that still goes through _generate and _calculate_rewards is no problem."""

    class Copying(GRPOTrainer):
        _generate_and_score_completions = GRPOTrainer._generate_and_score_completions

    reward = RecordingReward()
    refining = refine(capturing(Copying), **traced(tmp_path))
    trainer = make(tmp_path, trainer_class=refining, reward_funcs=reward, args=GRPOConfig(**settings(tmp_path)))
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.skipif(importlib.util.find_spec("trl.experimental.gmpo") is None, reason="this TRL has no GMPO")
def test_an_experimental_objective_of_trl(tmp_path: Path) -> None:
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    reward = RecordingReward()
    refining = refine(capturing(GMPOTrainer), **traced(tmp_path))
    trainer = make(tmp_path, trainer_class=refining, reward_funcs=reward, args=GMPOConfig(**settings(tmp_path)))
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.oldest
@pytest.mark.skipif(
    importlib.util.find_spec("trl.experimental.grpo_with_replay_buffer") is None, reason="removed from this TRL"
)
def test_trls_replay_buffer(tmp_path: Path) -> None:
    """TRL's own copy of the method, and its advantages from a buffer: the rows it samples are refinements."""
    from trl.experimental.grpo_with_replay_buffer import GRPOWithReplayBufferConfig, GRPOWithReplayBufferTrainer

    reward = RecordingReward()
    refining = refine(capturing(GRPOWithReplayBufferTrainer), **traced(tmp_path))
    args = GRPOWithReplayBufferConfig(**settings(tmp_path), replay_buffer_size=4)
    trainer = make(tmp_path, trainer_class=refining, reward_funcs=reward, args=args)
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.oldest
def test_off_by_config_is_the_host_alone(tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, reward_funcs=reward, refine=False)
    trainer.train()
    assert [len(call["prompts"]) for call in reward.calls] == [4, 4]
    assert {prompt for prompt, _ in trained_rows(trainer)} == {q for call in reward.calls for q in call["prompts"]}
    assert not (tmp_path / "trace").exists()


@pytest.mark.oldest
def test_our_classes_stand_on_classes_that_the_launch_hook_swapped(tmp_path: Path) -> None:
    """`refine-wrapper run` around a script that imports RefineGRPOTrainer, or puts the mixin before GRPOTrainer itself."""
    module = types.ModuleType("trl.trainer.grpo_trainer")
    module.GRPOTrainer = GRPOTrainer  # type: ignore[attr-defined]
    switch_trainer(module)
    configs = types.ModuleType("trl.trainer.grpo_config")
    configs.GRPOConfig = GRPOConfig  # type: ignore[attr-defined]
    switch_config(configs)

    class Mine(RefineMixin, module.GRPOTrainer):  # type: ignore[name-defined]
        pass

    @dataclass
    class MyConfig(RefineFields, configs.GRPOConfig):  # type: ignore[name-defined]
        pass

    reward = RecordingReward()
    args = MyConfig(**refined_settings(tmp_path))
    trainer = make(tmp_path, trainer_class=capturing(Mine), reward_funcs=reward, args=args)
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.oldest
def test_flags_win_over_refine_and_refine_over_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINE_WRAPPER_FLAGS", '{"selector": "median"}')
    refining = refine(capturing(RefineGRPOTrainer), selector="random", num_drafts=2)
    config = make(tmp_path, trainer_class=refining, refine_num_drafts=3)._refine_batches.config
    assert (config.selector, config.num_drafts) == ("median", 2)
    plain = refine(capturing(GRPOTrainer), selector="random", num_drafts=2)
    config = make(tmp_path, trainer_class=plain, args=GRPOConfig(**settings(tmp_path)))._refine_batches.config
    assert (config.selector, config.num_drafts) == ("median", 2)


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "dapo"}, r"objective='dapo' must be set before RefineGRPOConfig lays out the loss"),
        ({"match_budget": True}, r"match_budget must shrink num_generations and the batch before RefineGRPOConfig"),
    ],
)
def test_what_the_config_lays_out_cannot_be_said_later(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, trainer_class=refine(RefineGRPOTrainer, **given))
