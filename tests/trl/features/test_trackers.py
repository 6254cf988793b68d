"""What trackers receive: the names of docs/metrics.md under the prefix that the host's callbacks give them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refine_testing.resampled import PayingReward
from refine_testing.trl_host import logged, questions, trainer_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TrackioCallback, WandbCallback

from refine_wrapper.core.metrics import MEANINGS, is_cause

pytestmark = pytest.mark.timeout(120)

TABLE = re.compile(r"^\| `(refine/[a-z0-9_]+)` \|", re.MULTILINE)


class _Sink:
    """STAND-IN for the modules `wandb` and `trackio`: keeps what their callbacks log."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.run = SimpleNamespace(summary=dict[str, Any]())

    def log(self, values: dict[str, Any], **_: Any) -> None:
        self.logged.append(values)


def _tracking(kind: Any, name: str) -> tuple[Any, _Sink]:
    """The host's own callback, set up, with a stand-in for the tracker's module."""
    callback, sink = kind.__new__(kind), _Sink()
    callback.__dict__.update({name: sink, "_initialized": True})
    callback.on_train_begin = callback.on_train_end = callback.on_save = lambda *_, **__: None
    return callback, sink


def _pay(prompt: str, text: str, columns: dict[str, Any]) -> float:
    """Groups of questions 0 to 5 have no gradient; drafts of some groups are right already, of others not."""
    return 1.0 if columns["number"] < 6 else (len(text) % 3 + (columns["number"] % 2)) / 3


def test_every_documented_name_arrives_at_every_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = next(p for p in Path(__file__).parents if (p / "docs").is_dir()) / "docs" / "metrics.md"
    # Counts of causes come with their first occurrence.
    documented = {name for name in TABLE.findall(docs.read_text(encoding="utf-8")) if not is_cause(name)}
    assert documented == {name for name in MEANINGS if not is_cause(name)}
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    wandb, to_wandb = _tracking(WandbCallback, "_wandb")
    trackio, to_trackio = _tracking(TrackioCallback, "_trackio")
    trainer = trainer_for(
        tmp_path,
        PayingReward(pay=_pay),
        questions(16, number=list(range(16))),
        script=lambda prompt, row: "abcdefgh"[: 1 + row % 5],
        more={
            "eval_dataset": questions(20, number=list(range(20))).select(range(16, 18)),
            "callbacks": [wandb, trackio],
        },
        report_to=["tensorboard"],
        per_device_train_batch_size=16,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        num_generations_eval=2,
        per_device_eval_batch_size=2,
        refine_num_drafts=2,
        refine_evaluation="refine",
        refine_dynamic_sampling=2,
    )
    trainer.train()

    events = EventAccumulator(str(tmp_path / "events")).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if "refine/" in tag}
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 3
    for name in documented:
        found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        expected = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in history if name in entry]
        assert expected, f"{name} was never logged"
        assert found == expected
        for sink in (to_wandb, to_trackio):
            at = {
                entry["train/global_step"]: entry[f"train/{name}"] for entry in sink.logged if f"train/{name}" in entry
            }
            assert at == {entry["step"]: entry[name] for entry in history if name in entry}
    assert any(logged(trainer, "refine/resampled_groups")), "the case has no group that is drawn again"
    # Refined evaluation has its own: what is not of training is under eval/.
    assert {tag.partition("/")[0] for tag in tags} == {"train", "eval"}
    assert {tag for tag in tags if tag.startswith("eval/")} == {
        name.replace("eval_", "eval/", 1)
        for entry in trainer.state.log_history
        for name in entry
        if name.startswith("eval_refine/")
    }
    assert [event.value for event in events.Scalars("eval/refine/refined_share")] == logged(
        trainer, "eval_refine/refined_share"
    )
