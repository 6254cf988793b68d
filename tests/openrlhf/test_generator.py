"""Which groups of a rollout are trained. UNIT TEST: upstream's sampling is scripted, the real one is in the runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from refine_wrapper.core.types import Action, GroupOutcome, GroupPlan, Refinement
from refine_wrapper.errors import NoRewardError

# OpenRLHF 0.9 has no such module, and no launcher of ours: an agent file works there without it.
pytest.importorskip("openrlhf.trainer.ppo_utils.samples_generator", exc_type=ModuleNotFoundError)

from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from refine_wrapper_openrlhf.generator import RefineSamplesGenerator

pytestmark = pytest.mark.launcher


def rollout(
    prompts: str, num_prompts: int, monkeypatch: pytest.MonkeyPatch, *, num_batches: int = 1
) -> tuple[str, int, bool]:
    """The prompts that are trained of one rollout, how many were taken, and whether the data set is at its end.

    Args:
        prompts: One letter per prompt: ``.`` is fine, ``x`` has a reward that fails on a refinement, ``s`` is skipped.
        num_prompts: Size of the rollout.
        monkeypatch: pytest's.
        num_batches: Rollouts that were trained before.
    """
    left = list(enumerate(prompts))
    generator: Any = object.__new__(RefineSamplesGenerator)
    generator._evaluating, generator._num_batches, generator._outcomes = False, num_batches, {}

    def sample(_: Any, iterator: Any, count: int, filtering: bool, **kwargs: Any) -> tuple[list[Any], int, bool]:
        taken, left[:] = left[:count], left[count:]
        for number, kind in taken:
            action = Action.SKIP if kind == "s" else Action.PLAIN
            failure = "reward_exception: broken" if kind in "xs" else ""
            plan = GroupPlan(f"train-{number}", action, "q", "q")
            generator._outcomes[plan.group_id] = GroupOutcome(plan, (Refinement(failure=failure),))
        samples = [SimpleNamespace(refine_group=f"train-{number}", kind=kind) for number, kind in taken]
        return samples, len(taken), len(taken) < count

    monkeypatch.setattr(SamplesGenerator, "_generate_vllm", sample)
    samples, consumed, exhausted = generator._generate_vllm(iter(()), num_prompts, False)
    return "".join(sample.kind for sample in samples), consumed, exhausted


@pytest.mark.parametrize(
    ("prompts", "trained", "consumed", "exhausted"),
    [
        ("...", "..", 2, False),
        ("x...", "..", 3, False),  # the next prompt takes its place
        (".x.", "..", 3, False),
        (".xxxx.", "..", 6, False),  # many replacements fail, one after the other
        ("s.s.", "..", 4, False),
        (".x", ".", 2, True),  # nothing left to take its place
        ("x", "", 1, True),  # the last prompt of the data set, alone
        ("s", "", 1, True),
    ],
)
def test_a_group_without_a_reward_is_replaced_and_never_ends_a_run(
    prompts: str, trained: str, consumed: int, exhausted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rollout(prompts, 2, monkeypatch) == (trained, consumed, exhausted)


@pytest.mark.parametrize(("prompts", "num_batches"), [("xx..", 1), ("sxxx", 1), ("x", 0)])
def test_a_reward_that_fails_on_a_whole_rollout_is_an_error(
    prompts: str, num_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoRewardError, match="reward_exception: broken"):
        rollout(prompts, 2, monkeypatch, num_batches=num_batches)
