"""The manager: which one a run gets, and what it refuses that only the tokenizer can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refine_testing.tiny import save_tiny
from refine_testing.verl_worker import compose_config
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from refine_wrapper.core.trace import read_trace
from refine_wrapper.core.types import Group, GroupId, PlannedRound, Purpose, Question, Round, Sample, Slot, Use
from refine_wrapper.errors import BudgetError, ConfigError
from refine_wrapper_verl import RefineAgentLoopManager
from refine_wrapper_verl.manager import RefineManagerTQ, RefineManagerV0


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Managers are made, workers are not started."""

    async def nothing(self: Any) -> None:
        self.agent_loop_workers = []

    monkeypatch.setattr(AgentLoopManager, "_init_agent_loop_workers", nothing)
    from verl.utils.tracking import Tracking

    for method in ("log", "finish"):  # put back what a manager hooks into
        monkeypatch.setattr(Tracking, method, getattr(Tracking, method))


def _create(config: Any) -> Any:
    return RefineAgentLoopManager.create(
        config=config, llm_client=None, teacher_client=None, reward_loop_worker_handles=[]
    )


@pytest.mark.parametrize(("queue", "kind"), [(True, RefineManagerTQ), (False, RefineManagerV0)])
def test_one_name_serves_both_trainers(model: str, queue: bool, kind: type) -> None:
    """TransferQueue tells them apart: trainer.use_v1 is true in every composed configuration, also of recipes on V0."""
    config = compose_config(model, "+refine.num_drafts=4", f"transfer_queue.enable={queue}")
    assert config.trainer.use_v1
    assert type(_create(config)) is kind


@pytest.mark.parametrize("off", ["+refine.enabled=false", "+refine.num_drafts=0"])
@pytest.mark.parametrize(("queue", "kind"), [(True, AgentLoopManagerTQ), (False, AgentLoopManager)])
def test_off_is_the_hosts_own_manager_and_workers(model: str, queue: bool, kind: type, off: str) -> None:
    """Not a subclass that does nothing: the very objects of the plain run."""
    from verl.utils.tracking import Tracking

    log = Tracking.log
    manager = _create(compose_config(model, off, f"transfer_queue.enable={queue}"))
    assert type(manager) is kind
    assert "refine_wrapper" not in manager.agent_loop_workers_class.__module__
    assert Tracking.log is log


def test_the_settings_are_printed_once_and_handed_to_workers(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers get the resolved settings, whatever their environment.
    config = compose_config(model, "+refine.num_drafts=4")
    monkeypatch.setenv("REFINE_WRAPPER_SELECTOR", "median")
    _create(config)
    assert config.refine.selector == "median"
    assert capsys.readouterr().err.count("refine-wrapper: on for veRL. N=4 drafts + G=3 refinements") == 1


def test_a_prompt_length_without_room_is_refused_with_the_exact_number(model: str) -> None:
    with pytest.raises(
        BudgetError, match=r"prompt_length=128 cannot hold.*template \(2\d\d tokens\).*prompt_length=\d\d\d"
    ):
        _create(compose_config(model, "+refine.num_drafts=4", "actor_rollout_ref.rollout.prompt_length=128"))


def test_a_model_that_is_too_short_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    """With max_model_len unset its positions are the limit, here as in the workers."""
    short = save_tiny(tmp_path / "short", max_positions=400)
    config = compose_config(short, "+refine.num_drafts=4", "actor_rollout_ref.rollout.max_model_len=null")
    with pytest.raises(BudgetError, match=r"the model holds 400 tokens, response_length=64.*Lower .* to at most \d+"):
        _create(config)


def test_match_budget_comes_too_late_here(model: str) -> None:
    with pytest.raises(ConfigError, match=r"\+refine=matched_4"):
        _create(compose_config(model, "+refine.num_drafts=4", "+refine.match_budget=true"))


@pytest.mark.parametrize("switch", ["+refine.num_drafts=4", "+refine.enabled=false"])
def test_an_objective_comes_too_late_here(model: str, switch: str) -> None:
    """It is refused, with refinement on and off: never silently another objective."""
    with pytest.raises(ConfigError, match="objective=dapo must be set before the trainer starts"):
        _create(compose_config(model, switch, "+refine.objective=dapo"))


def test_a_colocated_reward_model_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="colocated reward model"):
        _create(compose_config(model, "+refine.num_drafts=4", "reward.reward_model.enable=True"))


def _group(purpose: Purpose, place: int) -> Group:
    rounds = (
        PlannedRound(0, 0, Round(2, Use.CONTEXT), "q"),
        PlannedRound(1, 2, Round(2, Use.FILL, show=1, final=True), "q'", "b"),
    )
    rewards = ((0.0, 0, None), (1.0, 0, None), (1.0, 1, 1), (0.0, 1, 1))
    samples = tuple(
        Sample(text=str(index), reward=reward, index=index, round=number, shown=shown)
        for index, (reward, number, shown) in enumerate(rewards)
    )
    return Group(Question(GroupId(purpose, 1, place), "q"), "paper", 2, samples, rounds, (Slot(2), Slot(3)), step=1)


def test_groups_of_all_workers_are_recorded_where_the_trainer_logs(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray
    from verl.utils.tracking import Tracking

    logged: list[Any] = []
    monkeypatch.setattr(Tracking, "log", lambda self, data, step, backend=None: logged.append((data, step)))
    monkeypatch.setattr(Tracking, "finish", lambda self, exit_code=0: None)
    manager = _create(compose_config(model, "+refine.num_drafts=2", f"+refine.trace_dir={tmp_path}"))
    last = _group("train", 2)
    taken = [[_group("train", 0), _group("eval", 0)], [_group("train", 1)], [], [], [last], []]
    take = SimpleNamespace(remote=lambda: taken.pop(0))
    manager.agent_loop_workers = [SimpleNamespace(take_finished_groups=take)] * 2
    monkeypatch.setattr(ray, "get", lambda asked, timeout: asked)
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(taken))
    host_data = {"actor/loss": 0.5}
    tracking = object.__new__(Tracking)
    tracking.log(host_data, step=1)
    tracking.log(data=host_data, step=2)
    (first, step), (second, _) = logged
    assert step == 1
    assert first["actor/loss"] == 0.5
    assert first["refine/groups"] == 2
    assert first["refine/draft_reward_mean"] == 0.5
    assert first["val/refine/groups"] == 1
    assert host_data == {"actor/loss": 0.5} == second  # nothing finished since; the trainer's own dict is its own
    tracking.finish()  # with what finished since the last step
    traced = [record["group_id"] for record in read_trace(tmp_path)]
    assert traced == ["train-1-0", "train-1-1", "eval-1-0", "train-1-2"]


def test_what_modes_learn_from_reaches_all_workers(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    manager = _create(compose_config(model, "+refine.num_drafts=2"))
    group = _group("train", 0)
    tried = replace(
        group, rounds=(group.rounds[0], replace(group.rounds[1], ask=replace(group.rounds[1].ask, arm="x")))
    )
    told: list[Any] = []

    def worker(groups: list[Group]) -> Any:
        take, note = SimpleNamespace(remote=lambda: groups), SimpleNamespace(remote=told.append)
        return SimpleNamespace(take_finished_groups=take, note_finished_groups=note)

    manager.agent_loop_workers = [worker([group]), worker([tried])]
    monkeypatch.setattr(ray, "get", lambda asked, timeout: asked)
    manager._refine_log.collect()
    assert told == [[tried], [tried]]
