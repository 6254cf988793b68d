"""Which groups of a rollout are trained, counted and when. UNIT TEST: upstream's sampling is scripted, the real one is in the runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refine_wrapper.core.recorder import Recorder
from refine_wrapper.core.types import Cause, Group, GroupId, Outcome, PlannedRound, Question, Round, Sample, Slot, Use
from refine_wrapper.errors import NoRewardError
from refine_wrapper.settings.config import RefineConfig

# OpenRLHF 0.9 has no such module, and no launcher of ours: an agent file works there without it.
pytest.importorskip("openrlhf.trainer.ppo_utils.samples_generator", exc_type=ModuleNotFoundError)

from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from refine_wrapper_openrlhf.generator import RefineSamplesGenerator, num_steps, resumed_step

pytestmark = pytest.mark.launcher

GROUP_SIZE = 2


def group_of(kind: str, place: int) -> Group:
    """A finished group: ``.`` is fine, ``x`` has a reward that fails, ``s`` is skipped, ``p`` has an untrained slot."""
    broken = Sample(outcome=Outcome.REWARD_EXCEPTION, detail="broken")
    samples = [Sample("a", reward=1.0), broken if kind in "xs" else Sample("b", reward=0.0)]
    samples = [replace(sample, index=number) for number, sample in enumerate(samples)]
    slots = [Slot(0, trained=kind != "s"), Slot(1, trained=kind not in "sp")]
    planned = PlannedRound(0, 0, Round(2, Use.FILL, final=True), "q")
    cause = Cause.NO_USABLE_DRAFT if kind == "s" else None
    question = Question(GroupId("train", 0, place), "q")
    return Group(question, "paper", GROUP_SIZE, tuple(samples), (planned,), tuple(slots), cause)


def made(monkeypatch: pytest.MonkeyPatch, prompts: str, *, trained_any: bool = True, **args: Any) -> Any:
    """A generator whose engine answers these prompts, a letter each (``f``: the host's dynamic filter evicts it)."""
    left = list(enumerate(prompts))
    generator: Any = object.__new__(RefineSamplesGenerator)
    generator._config = RefineConfig()
    generator._recorder = Recorder(generator._config)
    generator._purpose, generator._step, generator._place, generator._trained_any = "train", 0, 0, trained_any
    generator._groups = {}
    generator.prompts_dataloader = ()
    generator.args = SimpleNamespace(
        vllm=SimpleNamespace(enable_sleep=False),
        algo=SimpleNamespace(dynamic_filtering_enable=False),
        rollout=SimpleNamespace(n_samples_per_prompt=GROUP_SIZE, **args),
    )

    def sample(_: Any, iterator: Any, count: int, *filtering: bool, **kwargs: Any) -> tuple[list[Any], int, bool]:
        count = kwargs.get("num_prompts", count)
        taken, left[:] = left[:count], left[count:]
        samples: list[Any] = []
        for place, kind in taken:
            group = group_of(kind, place)
            generator._groups[group.id] = group
            if kind != "f":
                rows = [SimpleNamespace(refine_group=group.id, kind=kind, info={}) for _ in range(GROUP_SIZE)]
                samples.extend(rows)
        return samples, len(taken), len(taken) < count

    monkeypatch.setattr(SamplesGenerator, "_generate_vllm", sample)
    return generator


def rollout(
    prompts: str, num_prompts: int, monkeypatch: pytest.MonkeyPatch, *, trained_any: bool = True
) -> tuple[str, int, bool]:
    """The prompts that are trained of one rollout, how many were taken, and whether the data set is at its end."""
    generator = made(monkeypatch, prompts, trained_any=trained_any)
    samples, consumed, exhausted = generator._generate_vllm(iter(()), num_prompts, False)
    return "".join(sample.kind for sample in samples[::GROUP_SIZE]), consumed, exhausted


@pytest.mark.parametrize(
    ("prompts", "trained", "consumed", "exhausted"),
    [
        ("...", "..", 2, False),
        ("x...", "..", 3, False),  # the next prompt takes its place
        (".x.", "..", 3, False),
        (".xxxx.", "..", 6, False),  # many replacements fail, one after the other
        ("s.s.", "..", 4, False),
        ("p..", "..", 3, False),  # a group is trained as a whole
        (".x", ".", 2, True),  # nothing left to take its place
        ("x", "", 1, True),  # the last prompt of the data set, alone
        ("s", "", 1, True),
    ],
)
def test_a_group_without_a_reward_is_replaced_and_never_ends_a_run(
    prompts: str, trained: str, consumed: int, exhausted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rollout(prompts, 2, monkeypatch) == (trained, consumed, exhausted)


@pytest.mark.parametrize(
    ("prompts", "trained_any"), [("xx..", True), ("sxxx", True), ("x", False), ("ssss", True), ("s", False)]
)
def test_a_reward_that_fails_on_a_whole_rollout_is_an_error(
    prompts: str, trained_any: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``on_no_draft=skip`` too: it must not run through the data set without training, and end as if all were well."""
    with pytest.raises(NoRewardError, match="reward_exception: broken"):
        rollout(prompts, 2, monkeypatch, trained_any=trained_any)


def test_over_sampled_groups_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream samples four batches at once and hands them over one by one: 16 completions in all, not 4 x 16."""
    generator = made(monkeypatch, "........", batch_size=2, vllm_generate_batch_size=8)
    logged = []
    for _ in range(4):
        samples = generator.generate_samples()[0]
        assert len({tuple(sorted(sample.info)) for sample in samples}) == 1
        logged.append(torch.stack([sample.info["refine/completions"] for sample in samples]).mean().item())
    assert logged == [4, 4, 4, 4]
    assert not generator._groups
    assert generator._step == 4


def test_what_the_filter_evicts_is_sampled_and_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = made(monkeypatch, ".f.", batch_size=3, vllm_generate_batch_size=None)
    [sample, *_] = generator.generate_samples()[0]
    assert sample.info["refine/completions"].item() == 6
    assert sample.info["refine/groups"].item() == 2


@pytest.mark.parametrize(
    ("tag", "load", "step"),
    [("global_step12", True, 12), ("best_global_step3", True, 3), ("global_step12", False, 0), (None, True, 0)],
)
def test_a_resumed_run_goes_on_with_its_numbers(tag: str | None, load: bool, step: int, tmp_path: Path) -> None:
    (tmp_path / "_actor").mkdir()
    if tag:
        (tmp_path / "_actor" / "latest").write_text(tag)
    assert resumed_step(SimpleNamespace(ckpt=SimpleNamespace(path=str(tmp_path), load_enable=load))) == step


def test_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    args = SimpleNamespace(rollout=SimpleNamespace(batch_size=4), train=SimpleNamespace(num_episodes=2))
    assert num_steps(args, 9) == 6
