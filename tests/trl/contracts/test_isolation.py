"""Stage 1 leaves no trace in the host: what it logs, averages and restores belongs to the refinements alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from refine_testing.rewards import RecordingReward, checksum, text_of
from refine_testing.trl_host import ATTEMPT, logged, questions, recorded, trainer_for

pytestmark = pytest.mark.oldest


class Logging(RecordingReward):
    """A reward that fills a column of the table and a metric, and a column that only drafts cause."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        log_extra, log_metric = columns.pop("log_extra"), columns.pop("log_metric")
        paid = super().__call__(prompts, completions, **columns)
        log_extra("said", [text_of(completion) for completion in completions])
        log_metric("mean_characters", fmean(len(text_of(completion)) for completion in completions))
        if "draft" in text_of(completions[0]):
            log_extra("draft_only", [0.0] * len(completions))
            log_metric("draft_only", 1.0)
        return paid


def _script(prompt: str, row: int) -> str:
    return f"refined {'!' * row}" if ATTEMPT in prompt else f"draft{'?' * (2 * row)}"


@pytest.mark.parametrize("num_drafts", [2, 4, 6])
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_columns_and_metrics_belong_to_refinements(objective: str, num_drafts: int, tmp_path: Path) -> None:
    reward = Logging()
    trainer = trainer_for(
        tmp_path,
        reward,
        questions(8),
        objective=objective,
        script=_script,
        max_completion_length=32,
        num_generations=4,
        refine_num_drafts=num_drafts,
    )
    trainer.train()

    batches = recorded(reward)
    said = [text for both in batches for text in both.refinements["completions"]]
    table = trainer._logs
    assert list(table["extra"]["said"]) == said[-8:]
    assert set(table["extra"]) == {"said"}
    assert len(table["prompt"]) == len(table["completion"]) == len(table["advantages"]) == 8
    (name,) = trainer.reward_func_names
    assert list(table["rewards"][name]) == pytest.approx([checksum(text) for text in said[-8:]])
    assert logged(trainer, "draft_only") == []
    assert logged(trainer, "mean_characters") == [
        pytest.approx(fmean(len(text) for text in both.refinements["completions"])) for both in batches
    ]

    for number, both in enumerate(batches):
        lengths = [len(ids) for ids in both.refinements["completion_ids"]]
        entry = [entry for entry in trainer.state.log_history if "reward" in entry][number]
        assert entry["completions/mean_length"] == pytest.approx(fmean(lengths))
        assert entry["completions/min_length"] == min(lengths)
        assert entry["completions/max_length"] == max(lengths)
        assert entry["completions/clipped_ratio"] == fmean(length == 32 for length in lengths)
        assert entry["reward"] == pytest.approx(fmean(both.rewards), rel=1e-5)
        assert entry[f"rewards/{name}/mean"] == entry["reward"]
    assert not trainer._pending_extra_logs
    assert not trainer._pending_metrics


def test_tokens_of_both_stages_count_as_processed(tmp_path: Path) -> None:
    """The host's `num_tokens` is what the run processed so far, prompts and completions; drafts cost the same."""
    reward = RecordingReward()
    trainer = trainer_for(tmp_path, reward, questions(8), max_steps=1, refine_num_drafts=3)
    trainer.train()
    (both,) = recorded(reward)
    prompts = sum(len(trainer.processing_class(text=prompt)["input_ids"]) for prompt in both.drafts["prompts"])
    refined = sum(map(len, trainer.batches[0].prompt_ids))
    sampled = sum(len(ids) for call in reward.calls for ids in call["completion_ids"])
    assert logged(trainer, "num_tokens") == [prompts + refined + sampled]


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_the_host_is_as_before_when_stage_1_raises(objective: str, tmp_path: Path) -> None:
    broken = [True]

    def script(prompt: str, row: int) -> str:
        if broken[0] and ATTEMPT not in prompt:
            raise ConnectionError("the engine is gone")
        return _script(prompt, row)

    reward = RecordingReward()
    trainer = trainer_for(
        tmp_path,
        reward,
        questions(8),
        objective=objective,
        script=script,
        max_completion_length=32,
        more={"eval_dataset": questions(4)},
        refine_num_drafts=2,
        refine_evaluation="refine",
        num_generations_eval=4,
    )
    names = ("num_generations", "num_generations_eval", "reward_funcs", "_pending_extra_logs", "_pending_metrics")
    before = {name: getattr(trainer, name) for name in names}
    metrics = dict(trainer._metrics)
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(ConnectionError, match="the engine is gone"):
            run()
        for name, value in before.items():
            assert getattr(trainer, name) is value, name
        assert all(trainer._metrics[mode] is values for mode, values in metrics.items())
        assert trainer.reward_funcs == [reward]

    broken[0] = False
    trainer.train()
    assert [len(call["prompts"]) for call in reward.calls] == [4, 8] * 2
    assert logged(trainer, "refine/refined_share") == [1, 1]
