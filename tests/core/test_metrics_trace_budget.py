"""Numbers by hand, lines on disk, arithmetic whose advice works."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from core_standins import asked, carried_out, chatml, paper_group, planner_with, recorder_with
from hypothesis import assume, given
from hypothesis import strategies as st

from refine_wrapper import hookimpl
from refine_wrapper.core.metrics import METRICS, OTHER_METRICS, CopyWatch, summarize
from refine_wrapper.core.resampling import Resampling
from refine_wrapper.core.trace import TraceWriter, group_of_record, parse_line, read_trace
from refine_wrapper.core.types import Group, Outcome, Sample
from refine_wrapper.errors import BudgetError, ConfigError
from refine_wrapper.hosts.budget import (
    CompletionBudget,
    check_room,
    matched_batch_size,
    matched_group_size,
    prompt_room,
)


def groups_by_hand() -> list[Group]:
    """One group that was shown a right sample, one that was shown a wrong one, one that could not be refined."""
    planner = planner_with(num_drafts=2)
    copies = [Sample("sample 1", reward=1.0, num_tokens=10)] * 2
    others = [Sample("other", reward=reward, num_tokens=10) for reward in (0.0, 1.0)]
    plain = [Sample("\u2028", reward=reward, num_tokens=10) for reward in (0.0, 0.5)]
    conversation = [{"role": "user", "content": "q"}]
    chats = planner_with(num_drafts=2, tokenizer=chatml())
    return [
        paper_group(planner, (0.0, 1.0), copies, 0),
        paper_group(chats, (0.5, 0.0), others, 1, conversation),
        paper_group(planner, (None, None), plain, 2),
    ]


def test_metrics_by_hand() -> None:
    metrics = summarize(groups_by_hand(), max_reward=1.0, extract_answer=str.strip)
    expected = {
        "refine/groups": 3,
        "refine/refined_share": 2 / 3,
        "refine/draft_reward_mean": (0 + 1 + 0.5 + 0) / 4,
        "refine/draft_reward_best": (1.0 + 0.5) / 2,
        "refine/draft_reward_selected": (1.0 + 0.5) / 2,
        "refine/draft_solve_rate": 1 / 6,
        "refine/all_wrong_share": 2 / 3,
        "refine/repair_rate": 1 / 2,
        "refine/repaired_share": 1.0,
        "refine/refinement_reward": (1 + 1 + 0 + 1) / 4,
        "refine/uplift": ((1.0 - 0.5) + (0.5 - 0.25)) / 2,
        "refine/gradient_active_share": 2 / 3,
        "refine/gradient_active_share_draft_max": 0.0,
        "refine/gradient_active_share_draft_below_max": 1.0,
        "refine/copy_rate": 0.5,
        "refine/copy_rate_wrong": 0.0,
        "refine/trained_on_question": 0,
        "refine/draft_tokens": 3 * (1 + 2),
        "refine/refinement_tokens": 6 * 10,
        "refine/completions": 6 + 6,
        "refine/draft_failures": 2,
        "refine/draft_failures/no_reward": 2,
        "refine/refinement_failures": 0,
        "refine/fallbacks": 1,
        "refine/fallbacks/no_usable_draft": 1,
        "refine/fallbacks/no_room": 0,
        "refine/drafts_shortened_share": 0.0,
        "refine/drafts_unfinished_share": 0.0,
        "refine/stage1_seconds": 1.0,
        "refine/stage2_seconds": 1.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert set(metrics) == set(METRICS)
    resampling = Resampling([], [], limit=0, seed=0, num_prompts=None, group_size=2).metrics(completions=0)
    assert set(resampling) | {"refine/observer_failures"} == set(OTHER_METRICS)


def test_metrics_of_rows_that_are_trained_under_the_question() -> None:
    group = carried_out(planner_with(mode="on_failure", num_drafts=2), asked(), 4, (0.0, 0.0), (1.0, None))
    metrics = summarize([group], max_reward=1.0, extract_answer=str.strip)
    assert metrics["refine/trained_on_question"] == 1
    assert metrics["refine/refinement_failures"] == 1
    assert metrics["refine/completions"] == 4


def test_answers_are_compared_without_thinking_on_either_side() -> None:
    refinements = [Sample(f"<think>{n} ways</think>42", reward=1.0) for n in range(2)]
    group = paper_group(planner_with(num_drafts=1), (Sample("<think>hm</think>42", reward=1.0),), refinements)
    assert summarize([group], max_reward=1.0, extract_answer=str.strip)["refine/copy_rate"] == 1.0


def test_a_cause_is_reported_from_its_first_occurrence_on() -> None:
    planner, recorder = planner_with(num_drafts=1), recorder_with()
    fine, failed = paper_group(planner, (1.0,), (1.0,)), paper_group(planner, (None,), (1.0,))
    assert not [name for name in recorder.record([fine]) if "failures/" in name or "fallbacks/" in name]
    assert recorder.record([failed])["refine/fallbacks/no_usable_draft"] == 1
    assert recorder.record([fine])["refine/fallbacks/no_usable_draft"] == 0


def test_the_warning_about_copies_comes_once() -> None:
    copy = Sample("sample 0", reward=1.0)
    copied = [paper_group(planner_with(num_drafts=1), (1.0,), (copy, copy))] * 16
    metrics = summarize(copied, max_reward=1.0, extract_answer=str)
    watch = CopyWatch(window=32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.note(copied, metrics)
        assert not caught
        for _ in range(4):
            watch.note(copied, metrics)
    assert len(caught) == 1
    assert "copy collapse" in str(caught[0].message)


def test_an_observer_that_raises_and_a_full_disk_cost_a_warning_and_a_counter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    class Broken:
        @hookimpl
        def group_finished(self, group: Group) -> None:
            raise KeyError("mine")

    class Fine:
        @hookimpl
        def group_finished(self, group: Group) -> None:
            seen.append(str(group.id))

    recorder = recorder_with(Broken(), Fine(), trace_dir=tmp_path)
    (tmp_path / "groups.jsonl").unlink()
    (tmp_path / "groups.jsonl").mkdir()  # nothing can be appended to it
    groups = [paper_group(planner_with(num_drafts=1), (1.0,), (1.0,), place) for place in range(3)]
    for _ in range(2):
        assert recorder.record(groups)["refine/observer_failures"] == 6
    assert seen == ["train-0-0", "train-0-1", "train-0-2"] * 2
    said = [record.getMessage() for record in caplog.records if "observer_failures" in record.getMessage()]
    assert len(said) == 2
    assert any("the trace could not be written: " in line for line in said)
    assert any("failed in group_finished: KeyError: 'mine'" in line for line in said)


def test_the_first_failure_of_each_kind_is_said_with_its_own_message(caplog: pytest.LogCaptureFixture) -> None:
    recorder, planner = recorder_with(), planner_with(num_drafts=3)
    failed = [Sample(outcome=Outcome.REWARD_EXCEPTION, detail=f"ValueError: {n} (r.py, line 3)") for n in range(2)]
    for place in range(3):
        recorder.record([paper_group(planner, (*failed, None), (1.0,), place)])
    said = [record.getMessage() for record in caplog.records if "ended as" in record.getMessage()]
    assert said == [
        "refine: a sample of group train-0-0 ended as reward_exception: ValueError: 0 (r.py, line 3). Training goes "
        "on; such samples are counted.",
        "refine: a sample of group train-0-0 ended as no_reward. Training goes on; such samples are counted.",
    ]


def test_a_run_that_refines_nothing_is_heard_after_its_first_batches(caplog: pytest.LogCaptureFixture) -> None:
    def warnings_of(*groups: Group) -> list[str]:
        caplog.clear()
        recorder = recorder_with()
        for group in groups:
            recorder.record([group])
        return [r.getMessage() for r in caplog.records if "none of the groups" in r.getMessage()]

    planner = planner_with(num_drafts=1)
    nothing, refined = paper_group(planner, (None,), (1.0,)), paper_group(planner, (0.5,), (1.0,))
    by_choice = carried_out(planner_with(mode="on_failure", num_drafts=1), asked(), 2, (1.0,), (1.0,))
    [said] = warnings_of(*[nothing] * 5)
    assert "none of the groups of the first 3 batches was refined: no_usable_draft (3)" in said
    assert warnings_of(nothing, nothing, refined, nothing) == []
    assert warnings_of(*[by_choice] * 5) == []


def test_only_one_process_observes(tmp_path: Path) -> None:
    recorder = recorder_with(observe=False, trace_dir=tmp_path / "none")
    assert recorder.record(groups_by_hand())["refine/groups"] == 3
    assert not (tmp_path / "none").exists()


def test_processes_append_whole_lines(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = [sys.argv[2]]\n"
        "from pathlib import Path\nfrom core_standins import *\nfrom refine_wrapper.core.trace import TraceWriter\n"
        "place = int(sys.argv[3])\n"
        "group = paper_group(planner_with(num_drafts=2), (1.0, 0.0), (1.0, 0.0), place, 'q' * 3000)\n"
        "writer = TraceWriter(Path(sys.argv[1]), texts=True)\n"
        "for _ in range(50): writer.write(group)\n"
    )
    support = str(Path(__file__).parent / "support")
    command = [sys.executable, "-c", script, str(tmp_path), support]
    processes = [subprocess.Popen([*command, str(n)]) for n in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    lines = (tmp_path / "groups.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["group_id"] for line in lines) == sorted(
        f"train-0-{n}" for n in range(4) for _ in range(50)
    )


def test_a_line_cut_by_a_kill_is_skipped_and_texts_are_opt_in(tmp_path: Path) -> None:
    TraceWriter(tmp_path).write(paper_group(planner_with(num_drafts=1), (1.0,), (1.0,), prompt="secret"))
    with (tmp_path / "groups.jsonl").open("a") as file:
        file.write('{"group_id": "h", "dra')
    groups = read_trace(tmp_path)
    assert [group["group_id"] for group in groups] == ["train-0-0"]
    assert "secret" not in (tmp_path / "groups.jsonl").read_text()
    assert groups[0]["samples"][0]["outcome"] == "ok"


def test_a_trace_gives_the_same_metrics_as_the_run(tmp_path: Path) -> None:
    groups = groups_by_hand()
    groups.append(carried_out(planner_with(mode="rescue", num_drafts=2), asked("q", 3), 3, (0.0,) * 3, (1.0, 0.0)))
    groups.append(replace(groups[0], replaced=True))
    writer = TraceWriter(tmp_path, texts=True)
    for group in groups:
        writer.write(group)
    read = [group_of_record(record) for record in read_trace(tmp_path)]
    assert [group.samples for group in read] == [group.slim().samples for group in groups]
    assert [group.slots_S for group in read] == [group.slots_S for group in groups]
    assert [group.id for group in read] == [group.id for group in groups]
    as_run, as_read = (summarize(list_P, max_reward=1.0, extract_answer=str.strip) for list_P in (groups, read))
    assert as_read == pytest.approx(as_run, abs=1e-4)  # seconds are rounded on disk


def test_a_trace_of_another_version_is_refused(tmp_path: Path) -> None:
    TraceWriter(tmp_path).write(groups_by_hand()[0])
    [record] = read_trace(tmp_path)
    with pytest.raises(ValueError, match=r"version 1 of the trace, and this is for version 2"):
        group_of_record({**record, "version": 1})


def test_what_is_left_of_a_cut_line_is_no_group() -> None:
    assert parse_line(b"5\n") is None
    assert parse_line(b'{"reward": 1}') is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="trace_dir"):
        TraceWriter(tmp_path / "file" / "trace")


@given(rows=st.integers(1, 64), baseline=st.integers(2, 16), drafts=st.integers(1, 15))
def test_matched_budgets_and_their_advice(rows: int, baseline: int, drafts: int) -> None:
    if baseline - drafts < 2:
        with pytest.raises(BudgetError, match=f"aise the group size to at least {drafts + 2}"):
            matched_group_size(baseline, drafts)
        assert matched_group_size(drafts + 2, drafts) == 2
        return
    group = matched_group_size(baseline, drafts)
    assert CompletionBudget(drafts, group, baseline).matched
    try:
        assert matched_batch_size(rows, baseline, drafts, setting="rows") * baseline == rows * group
    except BudgetError as error:
        for word in str(error).rpartition("for example ")[2].rstrip(".").split(" or "):
            matched_batch_size(int(word), baseline, drafts, setting="rows")


@given(model=st.integers(8, 400), answer=st.integers(1, 200), overhead=st.integers(0, 100), draft=st.integers(1, 50))
def test_lengths_are_refused_with_numbers_that_work(model: int, answer: int, overhead: int, draft: int) -> None:
    def check(length: int) -> None:
        check_room(
            prompt_room(length, answer),
            overhead_tokens=overhead,
            draft_tokens=draft,
            answer_tokens=answer,
            model_setting="max_len",
            answer_setting="max_answer",
        )

    try:
        check(model)
    except BudgetError as error:
        needed = int(str(error).partition("aise max_len to at least ")[2].split()[0])
        check(needed)
        with pytest.raises(BudgetError):
            check(needed - 1)
    else:
        assume(model - answer >= 1 + overhead + draft)
