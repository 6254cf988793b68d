"""Contract 10: the metrics mean what MEANINGS says, recomputed here by hand from what the reward function saw."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from refine_testing.rewards import RecordingReward
from refine_testing.trl_host import ATTEMPT, Recorded, logged, questions, recorded, spelled, trainer_for

from refine_wrapper.core.metrics import MEANINGS

pytestmark = pytest.mark.oldest

N, G, P, LENGTH = 3, 4, 4, 24
DRAFTS = [
    [r"\boxed{1}", r"well, \boxed{2}", "x" * LENGTH],
    [r"\boxed{3}", r"\boxed{2}", r"\boxed{3}!"],
    ["nothing", "", r"\boxed{1}"],
    ["", " ", ""],
]
"""By group. One that does not end by itself, two that are right already, some without text."""
REFINEMENTS = [
    [r"\boxed{2}", r"so \boxed{2}", r"\boxed{3}", "y" * LENGTH],
    [r"\boxed{3}", r"\boxed{3}", r"\boxed{3}", r"\boxed{3}"],
    [r"\boxed{1}", r"\boxed{1}", r"\boxed{2}", r"\boxed{2}"],
    ["nothing", r"\boxed{3}", r"\boxed{3}", r"\boxed{3}"],
]
PAID = {"1": 0.25, "2": 0.5, "3": 1.0}


def _answer(text: str) -> str:
    found = re.findall(r"\\boxed\{(.*?)\}", text)
    return found[-1] if found else text.strip()


def _pay(call: dict[str, Any]) -> list[float | None]:
    return [PAID.get(_answer(text), 0.0) for text in call["completions"]]


class Paid(RecordingReward):
    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        super().__call__(prompts, completions, **columns)
        return _pay({"completions": completions})


def _by_hand(both: Recorded) -> dict[str, float]:
    """Every metric of one batch but the times, from the recorded calls alone."""
    drafts, texts = both.drafts["completions"], both.refinements["completions"]
    usable = [bool(text.strip()) for text in drafts]
    refined = [g for g in range(P) if any(usable[g * N : g * N + N])]
    rewards = {g: [r for r in both.draft_rewards[g * N : g * N + N] if r is not None] for g in range(P)}
    best = {
        g: max((i for i in range(g * N, g * N + N) if usable[i]), key=lambda i: (both.draft_rewards[i], -i))
        for g in refined
    }
    chosen = {g: both.draft_rewards[i] for g, i in best.items()}
    paid = {g: both.rewards[g * G : g * G + G] for g in range(P)}
    active = {g: max(paid[g]) != min(paid[g]) for g in range(P)}  # type: ignore[type-var]
    ended = [ids[-1] == 3 for ids in both.drafts["completion_ids"]]  # <|im_end|>
    all_wrong = [g for g in range(P) if 1.0 not in rewards[g]]
    repaired = {g: [reward == 1.0 for reward in paid[g]] for g in all_wrong if g in refined}
    copied = {g: [_answer(t) == _answer(drafts[best[g]]) for t in texts[g * G : g * G + G]] for g in refined}
    return {
        "refine/groups": P,
        "refine/refined_share": len(refined) / P,
        "refine/draft_reward_mean": fmean(r for g in range(P) for r in rewards[g]),
        "refine/draft_reward_best": fmean(max(rewards[g]) for g in range(P)),
        "refine/draft_reward_selected": fmean(chosen[g] for g in refined),
        "refine/refinement_reward": fmean(r for g in refined for r in paid[g]),
        "refine/uplift": fmean(fmean(paid[g]) - fmean(rewards[g]) for g in refined),
        "refine/gradient_active_share": fmean(active.values()),
        "refine/gradient_active_share_draft_max": fmean(active[g] for g in refined if chosen[g] == 1.0),
        "refine/gradient_active_share_draft_below_max": fmean(active[g] for g in refined if chosen[g] < 1.0),
        "refine/draft_solve_rate": fmean(reward == 1.0 for reward in both.draft_rewards),
        "refine/all_wrong_share": len(all_wrong) / P,
        "refine/repair_rate": fmean(right for found in repaired.values() for right in found),
        "refine/repaired_share": fmean(any(found) for found in repaired.values()),
        "refine/copy_rate": fmean(copy for found in copied.values() for copy in found),
        "refine/copy_rate_wrong": fmean(copy for g in refined if chosen[g] < 1.0 for copy in copied[g]),
        "refine/trained_on_question": 0,
        "refine/draft_tokens": sum(map(len, both.drafts["completion_ids"])),
        "refine/refinement_tokens": sum(map(len, both.refinements["completion_ids"])),
        "refine/completions": P * (N + G),
        "refine/drafts_shortened_share": 0.0,
        "refine/drafts_unfinished_share": 1 - fmean(ended),
        "refine/draft_failures": usable.count(False),
        "refine/draft_failures/empty": usable.count(False),
        "refine/refinement_failures": 0,
        "refine/fallbacks": P - len(refined),
        "refine/fallbacks/no_usable_draft": P - len(refined),
    }


def _run(folder: Path, objective: str, tokenizer: Any, **settings: Any) -> tuple[Any, Paid]:
    reward = Paid()

    def script(prompt: str, row: int) -> str | list[int]:
        refining = len(trainer.generations) % 2 == 0
        text = REFINEMENTS[row // G][row % G] if refining else DRAFTS[row // N][row % N]
        return spelled(tokenizer, text) if len(text) == LENGTH else text

    trainer = trainer_for(
        folder,
        reward,
        questions(8),
        objective=objective,
        script=script,
        per_device_train_batch_size=P * G,
        num_generations=G,
        max_completion_length=LENGTH,
        refine_num_drafts=N,
        **settings,
    )
    trainer.train()
    return trainer, reward


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_metrics_are_what_was_recorded(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    trainer, reward = _run(tmp_path, objective, tokenizer, max_steps=1)
    (both,) = recorded(reward, _pay)
    expected = _by_hand(both)
    entry = next(entry for entry in trainer.state.log_history if "refine/groups" in entry)
    found = {name: value for name, value in entry.items() if name.startswith("refine/")}
    times = {"refine/stage1_seconds", "refine/stage2_seconds"}
    assert {name: value for name, value in found.items() if name not in times} == {
        name: pytest.approx(value) for name, value in expected.items()
    }
    assert all(found[name] > 0 for name in times)
    assert set(found) <= set(MEANINGS)
    # The case is not a degenerate one.
    assert expected["refine/refined_share"] == 0.75
    assert expected["refine/copy_rate"] == pytest.approx(8 / 12)
    assert expected["refine/gradient_active_share_draft_max"] == 0
    assert expected["refine/gradient_active_share_draft_below_max"] == 1
    assert 0 < expected["refine/drafts_unfinished_share"] < 1
    assert ATTEMPT in trainer.batches[0].prompts(tokenizer)[0]


def test_the_host_averages_over_the_batches_of_a_logging_step(tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = trainer_for(tmp_path, reward, questions(8), max_steps=4, logging_steps=2, refine_num_drafts=2)
    trainer.train()
    means = [fmean(r for r in both.draft_rewards if r is not None) for both in recorded(reward)]
    assert logged(trainer, "refine/draft_reward_mean") == [pytest.approx(fmean(means[i : i + 2])) for i in (0, 2)]


def test_a_refined_share_below_one_leaves_groups_plain_and_counts_them(tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = trainer_for(
        tmp_path,
        reward,
        questions(32),
        script=lambda prompt, row: f"text {row}",
        per_device_train_batch_size=32,
        num_generations=2,
        max_steps=2,
        refine_num_drafts=3,
        refine_refine_share=0.5,
    )
    trainer.train()
    for batch, share, plain, drafts in zip(
        trainer.batches,
        logged(trainer, "refine/refined_share"),
        logged(trainer, "refine/fallbacks/not_chosen"),
        reward.calls[::2],
        strict=True,
    ):
        refined = sum(ATTEMPT in prompt for prompt in batch.prompts(trainer.processing_class)) // 2
        assert 0 < refined < 16
        assert (share, plain) == (refined / 16, 16 - refined)
        assert len(drafts["prompts"]) == 3 * refined, "drafts were sampled for groups that stay plain"
