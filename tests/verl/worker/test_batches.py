"""A batch on its way from the trainer through our manager to the workers, as veRL hands it on; Ray is stood in for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import ray
import torch
from refine_testing.verl_worker import Bench, prompt
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.utils import tensordict_utils
from verl.utils.tracking import Tracking

from refine_wrapper.errors import SeamError
from refine_wrapper_verl.manager import RefineManagerTQ, RefineManagerV0

TEMPLATE = "Here is an attempt at this problem."


@pytest.fixture
def managed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bench, type], Any]:
    """The manager of a bench's configuration, with the bench's worker behind it."""
    for method in ("log", "finish"):
        monkeypatch.setattr(Tracking, method, getattr(Tracking, method))

    def manager_of(host: Bench, kind: type) -> Any:
        manager: Any = kind(host.worker.config, None, None, [])
        # Through pickle, as Ray would hand it over.
        remote = lambda batch: host.worker.generate_sequences(copy.deepcopy(batch))  # noqa: E731
        manager.agent_loop_workers = [SimpleNamespace(generate_sequences=SimpleNamespace(remote=remote))]
        return manager

    return manager_of


def test_v1(
    bench: Callable[..., Bench], managed: Callable[[Bench, type], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = bench()
    manager = managed(host, RefineManagerTQ)
    rows = [prompt(uid, f"What is {uid}?") for uid in ("a", "b")]
    batch = tensordict_utils.get_tensordict(
        {
            name: numpy.array([row[name] for row in rows] + [None], dtype=object)[:-1]
            for name in rows[0]
            if name != "global_steps"
        }
    )
    tensordict_utils.assign_non_tensor_data(batch, "global_steps", 7)

    async def run() -> None:
        started: list[Any] = []
        monkeypatch.setattr(ray, "get", started.extend)
        manager.generate_sequences(batch)
        for call in started:
            await call
        while host.worker.background_tasks:
            await next(iter(host.worker.background_tasks))

    host.run(run())
    assert host.queue.status == {"a": "finished", "b": "finished"}
    assert len(host.engine.prompts) == 2 * (4 + 3)
    for uid in "ab":
        assert all(f"What is {uid}?" in host.text(row["prompts"]) for row in host.rows_of(uid))
        assert all(TEMPLATE in host.text(row["prompts"]) for row in host.rows_of(uid))
    groups = sorted(host.worker.take_finished_groups(), key=lambda group: group.id)
    assert [(str(group.id), group.step) for group in groups] == [("train-7-0", 7), ("train-7-1", 7)]
    assert "refine_group_id" not in batch


async def _generated(manager: Any, batch: Any) -> Any:
    return await manager.generate_sequences(batch)  # in the worker's loop


def _v0_batch(*uids: str, **columns: Any) -> Any:
    rows = [prompt(uid, f"What is {uid}?") for uid in uids]
    made = {name: numpy.empty(len(rows), dtype=object) for name in rows[0] if name not in ("index", "global_steps")}
    for name, column in made.items():
        column[:] = [row[name] for row in rows]
    made.update(columns)
    return DataProto(TensorDict({"row": torch.arange(len(rows))}, batch_size=len(rows)), made, {"global_steps": 3})


@pytest.mark.parametrize("named", [True, False], ids=["with-uid", "without-uid"])
def test_v0(bench: Callable[..., Bench], managed: Callable[[Bench, type], Any], named: bool) -> None:
    """Recipes on RayPPOTrainer name the groups only after generation; their rows are adjacent."""
    host = bench("transfer_queue.enable=False", kind="RefineAgentLoopWorker")
    manager = managed(host, RefineManagerV0)
    batch = _v0_batch(*"aaabbb")
    if not named:
        del batch.non_tensor_batch["uid"]
    output = host.run(_generated(manager, batch))
    texts = [host.text(ids) for ids in output.batch["prompts"]]
    assert [f"What is {uid}?" in text and TEMPLATE in text for uid, text in zip("aaabbb", texts, strict=True)] == [
        True
    ] * 6
    groups = sorted(host.worker.take_finished_groups(), key=lambda group: group.id)
    assert [str(group.id) for group in groups] == ["train-3-0", "train-3-1"]
    assert ("uid" in batch.non_tensor_batch) == named
    assert "refine_group_id" not in batch.non_tensor_batch


def test_v0_rows_that_are_no_groups_are_refused(
    bench: Callable[..., Bench], managed: Callable[[Bench, type], Any]
) -> None:
    host = bench("transfer_queue.enable=False", kind="RefineAgentLoopWorker")
    batch = _v0_batch(*"aaab")
    del batch.non_tensor_batch["uid"]
    with pytest.raises(SeamError, match=r"4 rows without a uid.*n=3"):
        host.run(_generated(managed(host, RefineManagerV0), batch))
