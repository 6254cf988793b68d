"""Numbers by hand, lines on disk, arithmetic whose advice works."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from core_standins import finished, refiner_with, scored
from hypothesis import assume, given
from hypothesis import strategies as st

from refine_wrapper.core.metrics import METRICS, CopyWatch, summarize
from refine_wrapper.core.resampling import Resampling
from refine_wrapper.core.trace import TraceWriter, outcome_of_record, parse_line, read_trace
from refine_wrapper.errors import BudgetError, ConfigError
from refine_wrapper.hosts.budget import (
    CompletionBudget,
    check_room,
    matched_batch_size,
    matched_group_size,
    prompt_room,
)


def test_metrics_by_hand() -> None:
    refiner = refiner_with()
    right = refiner.plan("a", "q", scored(0.0, 1.0))
    wrong = refiner.plan("b", "q", scored(0.5, 0.0))
    plain = refiner.plan("c", "q", scored(None, None))
    outcomes = [
        finished(right, [1.0, 1.0], text="draft 1"),
        finished(wrong, [0.0, 1.0], text="other"),
        finished(plain, [0.0, 0.5]),
    ]
    metrics = summarize(outcomes, max_reward=1.0, extract_answer=str.strip)
    expected = {
        "refine/groups": 3,
        "refine/refined_share": 2 / 3,
        "refine/draft_reward_mean": (0 + 1 + 0.5 + 0) / 4,
        "refine/draft_reward_best": (1.0 + 0.5) / 2,
        "refine/draft_reward_selected": (1.0 + 0.5) / 2,
        "refine/refinement_reward": (1 + 1 + 0 + 1) / 4,
        "refine/uplift": ((1.0 - 0.5) + (0.5 - 0.25)) / 2,
        "refine/gradient_active_share": 2 / 3,
        "refine/gradient_active_share_draft_max": 0.0,
        "refine/gradient_active_share_draft_below_max": 1.0,
        "refine/copy_rate": 0.5,
        "refine/draft_tokens": 3 * (1 + 2),
        "refine/refinement_tokens": 6 * 10,
        "refine/completions": 6 + 6,
        "refine/draft_failures": 2,
        "refine/draft_failures/no_reward": 2,
        "refine/fallbacks": 1,
        "refine/fallbacks/no_usable_draft": 1,
        "refine/fallbacks/no_room": 0,
        "refine/drafts_shortened_share": 0.0,
        "refine/drafts_unfinished_share": 0.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    resampling = Resampling([], [], limit=0, seed=0, num_prompts=None, group_size=2).metrics(completions=0)
    assert set(metrics) == set(METRICS) - set(resampling)


def test_a_cause_is_reported_from_its_first_occurrence_on() -> None:
    refiner = refiner_with(num_drafts=1)
    fine = finished(refiner.plan("a", "q", scored(1.0)), [1.0])
    failed = finished(refiner.plan("b", "q", scored(None)), [1.0])
    assert not [name for name in refiner.finish([fine]) if "failures/" in name or "fallbacks/" in name]
    assert refiner.finish([failed])["refine/fallbacks/no_usable_draft"] == 1
    assert refiner.finish([fine])["refine/fallbacks/no_usable_draft"] == 0


def test_the_warning_about_copies_comes_once() -> None:
    plan = refiner_with().plan("a", "q", scored(1.0))
    copied = [finished(plan, [1.0, 1.0], text="draft 0")] * 16
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


def test_processes_append_whole_lines(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = [sys.argv[2]]\n"
        "from pathlib import Path\nfrom core_standins import *\nfrom refine_wrapper.core.trace import TraceWriter\n"
        "plan = refiner_with().plan(sys.argv[3], 'q' * 3000, scored(1.0, 0.0))\n"
        "writer = TraceWriter(Path(sys.argv[1]), texts=True)\n"
        "for _ in range(50): writer.write(finished(plan, [1.0, 0.0]))\n"
    )
    support = str(Path(__file__).parent / "support")
    command = [sys.executable, "-c", script, str(tmp_path), support]
    processes = [subprocess.Popen([*command, f"p{n}"]) for n in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    lines = (tmp_path / "groups.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["group_id"] for line in lines) == sorted(
        f"p{n}" for n in range(4) for _ in range(50)
    )


def test_a_line_cut_by_a_kill_is_skipped_and_texts_are_opt_in(tmp_path: Path) -> None:
    plan = refiner_with().plan("g", "secret", scored(1.0))
    TraceWriter(tmp_path).write(finished(plan, [1.0]))
    with (tmp_path / "groups.jsonl").open("a") as file:
        file.write('{"group_id": "h", "dra')
    groups = read_trace(tmp_path)
    assert [group["group_id"] for group in groups] == ["g"]
    assert "secret" not in (tmp_path / "groups.jsonl").read_text()
    assert groups[0]["drafts"][0]["outcome"] == "ok"


def test_a_trace_gives_the_same_metrics_as_the_run(tmp_path: Path) -> None:
    refiner = refiner_with()
    outcomes = [
        finished(refiner.plan("a", "q", scored(0.0, 1.0)), [1.0, 1.0], text="draft 1"),
        finished(refiner.plan("b", [{"role": "user", "content": "q"}], scored(0.5, 0.0)), [0.0, 1.0], text="\u2028"),
        finished(refiner.plan("c", "q", scored(None, None)), [0.0, 0.5]),
    ]
    writer = TraceWriter(tmp_path, texts=True)
    for outcome in outcomes:
        writer.write(outcome)
    read = [outcome_of_record(record) for record in read_trace(tmp_path)]
    assert [outcome.plan.drafts_N for outcome in read] == [outcome.plan.drafts_N for outcome in outcomes]
    assert [outcome.refinements_G for outcome in read] == [outcome.refinements_G for outcome in outcomes]
    as_run, as_read = (summarize(list_P, max_reward=1.0, extract_answer=str.strip) for list_P in (outcomes, read))
    assert as_read == pytest.approx(as_run, abs=1e-4)  # seconds are rounded on disk


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
