"""The folder of an evaluation: going on, refusing, starting anew. The engine is a stand-in."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from evaluation_standins import StandInEngine, digits, measured, questions

from refine_wrapper.errors import ConfigError, NoRewardError

FILES = ("answers.jsonl", "evaluation.json", "settings.json")


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class _Killed(BaseException):
    """As good as a kill: nothing of ours catches it."""


def _dying(after: int) -> StandInEngine:
    """An engine that ends the process, so to speak, after a number of completions."""
    sampled = 0

    def script(prompt: str, rng: random.Random) -> str:
        nonlocal sampled
        sampled += 1
        if sampled > after:
            raise _Killed
        return digits(prompt, rng)

    return StandInEngine(script=script)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of an evaluation that nothing stopped."""
    measured(StandInEngine(), out=tmp_path / "whole", draft_choice="both")
    return _content(tmp_path / "whole")


def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert sorted(whole) == sorted(FILES)
    measured(StandInEngine(), out=tmp_path / "again", draft_choice="both")
    assert _content(tmp_path / "again") == whole
    measured(StandInEngine(), out=tmp_path / "other", draft_choice="both", seed=1)
    assert _content(tmp_path / "other")["answers.jsonl"] != whole["answers.jsonl"]


@pytest.mark.parametrize("after", [0, 7, 8, 30, 47, 58])
def test_going_on_gives_the_identical_files(tmp_path: Path, whole: dict[str, bytes], after: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(_Killed):
        measured(_dying(after), out=out, draft_choice="both")
    assert not (out / "evaluation.json").exists()
    engine = StandInEngine()
    measured(engine, out=out, draft_choice="both")
    assert _content(out) == whole
    assert len(engine.asked) == 60 - after // 24 * 24  # only whole batches (two problems) are kept


@pytest.mark.parametrize("cut", [1, 5, 300, 900])
def test_what_a_kill_left_half_is_sampled_again(tmp_path: Path, whole: dict[str, bytes], cut: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(_Killed):
        measured(_dying(48), out=out, draft_choice="both")
    answers = out / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-cut])
    measured(StandInEngine(), out=out, draft_choice="both")
    assert _content(out) == whole


def test_a_finished_evaluation_asks_nothing_again(tmp_path: Path) -> None:
    first = measured(StandInEngine(), out=tmp_path)
    before = _content(tmp_path)
    engine = StandInEngine()
    assert measured(engine, out=tmp_path) == first
    assert engine.prompts == []
    assert _content(tmp_path) == before
    # Unless somebody cut its answers.
    answers = tmp_path / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-9])
    measured(engine, out=tmp_path)
    assert len(engine.asked) == 8
    assert _content(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 3}, "settings.samples: 4 there, 3 now"),
        ({"temperature": 0.5}, "settings.temperature: 1.0 there, 0.5 now"),
        ({"correct_at": 0.5}, "reward.correct_at: 1.0 there, 0.5 now"),
        ({"problems": questions(6)}, "data.problems: 5 there, 6 now"),
        ({"refine": {"template": "turns"}}, "refine.template: 'append' there, 'turns' now"),
        ({"draft_choice": "none"}, "settings.draft_choice: 'own' there, 'none' now"),
    ],
)
def test_other_settings_are_refused_with_what_differs(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    measured(StandInEngine(), out=tmp_path)
    before = _content(tmp_path)
    with pytest.raises(ConfigError) as refused:
        measured(StandInEngine(), out=tmp_path, **changed)
    assert message in str(refused.value)
    assert "Give --out another folder, or --fresh" in str(refused.value)
    assert _content(tmp_path) == before
    measured(StandInEngine(), out=tmp_path, fresh=True, **changed)
    assert _content(tmp_path)["settings.json"] != before["settings.json"]


def test_another_engine_is_refused_before_it_samples(tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        measured(_dying(30), out=tmp_path)
    engine = StandInEngine(batch_size=12)
    with pytest.raises(ConfigError, match=r"engine\.problems_per_batch: 2 there, 3 now"):
        measured(engine, out=tmp_path)
    assert engine.prompts == []


def test_settings_that_change_nothing_are_not_compared(tmp_path: Path) -> None:
    """How many drafts a run trains with does not matter where no oracle chooses among them."""
    measured(StandInEngine(), out=tmp_path)
    measured(StandInEngine(), out=tmp_path, refine={"num_drafts": 7, "selector": "median", "trace_texts": True})


def test_a_template_file_that_changed_is_another_setting(tmp_path: Path) -> None:
    template = tmp_path / "t.txt"
    template.write_text("{question} {draft} again")
    measured(StandInEngine(), out=tmp_path / "out", refine={"template": str(template)})
    template.write_text("{question} {draft} once more")
    with pytest.raises(ConfigError, match=r"refine\.template_digest"):
        measured(StandInEngine(), out=tmp_path / "out", refine={"template": str(template)})


def test_answers_without_their_settings_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    measured(StandInEngine(), out=tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match="has answers of unknown settings"):
        measured(StandInEngine(), out=tmp_path)


def test_two_evaluations_do_not_write_into_one_folder(tmp_path: Path) -> None:
    def script(prompt: str, rng: random.Random) -> str:
        with pytest.raises(ConfigError, match="another evaluation is writing to"):
            measured(StandInEngine(), out=tmp_path)
        return digits(prompt, rng)

    measured(StandInEngine(script=script), out=tmp_path, draft_choice="none", problems=questions(1))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        measured(StandInEngine(), out=tmp_path / "file" / "out")


def test_without_a_folder_nothing_is_written_and_the_figures_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    in_memory = measured(StandInEngine())
    assert list((tmp_path / "out").iterdir()) == []
    assert in_memory.measures == measured(StandInEngine(), out=tmp_path / "out").measures


def test_the_result_has_every_figure_with_its_error_and_count(tmp_path: Path) -> None:
    evaluation = measured(StandInEngine(), out=tmp_path, draft_choice="both")
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result == json.loads(json.dumps(evaluation.to_json()))
    assert list(result["measures"]) == ["single_shot", "with_draft", "with_oracle_draft"]
    assert "oracle" in result["measures"]["with_oracle_draft"]["what"]
    for measure in result["measures"].values():
        assert {"avg@4", "pass@1", "pass@2", "pass@4", "reward", "tokens", "finished"} <= set(measure["figures"])
        for figure in measure["figures"].values():
            assert set(figure) == {"value", "standard_error", "num_problems", "interval"}
        assert measure["counts"]["completions"] == 20
    assert {"model", "data", "reward", "settings", "refine", "versions", "engine"} <= set(result)


def test_progress_counts_completions_and_what_was_there(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    note = lambda progress: seen.append((progress.done, progress.total, progress.before))  # noqa: E731
    with pytest.raises(_Killed):
        measured(_dying(20), out=tmp_path, on_progress=note)
    assert seen == [(0, 40, 0), (8, 40, 0), (16, 40, 0)]
    seen.clear()
    measured(StandInEngine(), out=tmp_path, on_progress=note)
    assert seen[0] == (16, 40, 16)
    assert seen[-1] == (40, 40, 16)


def test_what_was_refused_before_it_sampled_binds_nobody(tmp_path: Path) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise KeyError("gold")

    with pytest.raises(NoRewardError):
        measured(StandInEngine(), broken, out=tmp_path, samples=3)
    measured(StandInEngine(), out=tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["samples"] == 4
