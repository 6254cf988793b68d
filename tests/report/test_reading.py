"""What the page is made of: curves by hand, samples that cover a run, and bad input that is named."""

from __future__ import annotations

import html.parser
import json
import os
import stat
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from refine_testing.report_runs import make_run, make_trace

from refine_wrapper.cli import cli
from refine_wrapper.core.metrics import is_cause, summarize
from refine_wrapper.core.trace import TraceWriter, group_of_record, read_trace
from refine_wrapper.core.types import GroupId
from refine_wrapper.rewards.answers import extract_answer
from refine_wrapper.study.ablation.spent import refined_spent
from refine_wrapper.study.report import write_report
from refine_wrapper.study.report.curves import Curves
from refine_wrapper.study.report.groups import clip, sample_groups
from refine_wrapper.study.report.page import ReportLibraryError, embedded_json
from refine_wrapper.study.report.run import COLUMNS, ReportError, setting_name
from refine_wrapper.study.report.run_folder import read_run
from refine_wrapper.study.report.tables import comparisons, settings_drawn, settings_tables

PLAIN: dict[str, Any] = {
    "host": "trl", "objective": "grpo", "task": "t", "refined": False, "mode": None, "num_drafts": 0,
    "group_size": 8, "selector": None, "template": None, "share": None, "options": None,
}  # fmt: skip


def _table(values: dict[int, list[float | None]], metric: str = "reward") -> pd.DataFrame:
    """A results table of one setting: seed -> value at each step."""
    rows = [
        {
            **PLAIN,
            "cell": f"c{seed}",
            "seed": seed,
            "metric": metric,
            "step": step,
            "completions": 8.0 * step,
            "tokens": (100.0 + seed) * step,
            "seconds": float("nan"),
            "value": value,
        }
        for seed, of_seed in values.items()
        for step, value in enumerate(of_seed, 1)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_mean_and_interval_by_hand() -> None:
    [curve] = Curves(_table({0: [0.1, 0.4], 1: [0.3, 0.4], 2: [0.5, 0.7]}), setting_name).of("reward", points=10)
    mean, seeds = curve.lines["raw"]
    assert mean.y == pytest.approx([0.3, 0.5])
    assert mean.low is not None
    # Student's t at 2 degrees of freedom is 4.3027; the standard deviations are 0.2 and 0.1732.
    assert mean.low == pytest.approx([0.3 - 4.3027 * 0.2 / 3**0.5, 0.5 - 4.3027 * 0.17321 / 3**0.5], abs=1e-4)
    assert mean.x == {"step": [1, 2], "completions": [8, 16], "tokens": [101, 202], "seconds": None}
    assert [line.y for line in seeds] == [[0.1, 0.4], [0.3, 0.4], [0.5, 0.7]]
    assert seeds[2].x["tokens"] == [102, 204]
    assert set(curve.lines) == {"raw"}  # too short for a running mean


def test_a_mean_ends_where_the_first_seed_does() -> None:
    [curve] = Curves(_table({0: [0.1, 0.2, 0.3], 1: [0.3]}), setting_name).of("reward", points=10)
    mean, seeds = curve.lines["raw"]
    assert mean.x["step"] == [1]
    assert [line.x["step"] for line in seeds] == [[1, 2, 3], [1]]


def test_a_running_mean_goes_on_over_gaps_but_not_past_the_end() -> None:
    values: list[float | None] = [float(step) for step in range(100)]
    gappy = [None if step % 7 == 3 else value for step, value in enumerate(values)]
    table = _table({0: values, 1: [*gappy[:61], *[None] * 39]}).dropna(subset="value")
    [curve] = Curves(table, setting_name).of("reward", points=1000)
    assert curve.window == 4
    mean, (first, second) = curve.lines["smooth"]
    assert first.y[50] == pytest.approx((47 + 48 + 49 + 50) / 4)
    assert len(second.y) == 61
    assert len(mean.y) == 61
    [long] = Curves(table, setting_name).of("reward", points=10)
    assert long.lines["raw"][1][0].x["step"] == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100]


def test_the_last_measurement_at_a_step_counts() -> None:
    table = pd.concat([_table({0: [0.1, 0.2]}), _table({0: [None, 0.9]}).dropna(subset="value")])
    [curve] = Curves(table, setting_name).of("reward", points=10)
    assert curve.lines["raw"][0].y == [0.1, 0.9]


def test_an_ablation_is_compared_and_its_failed_cell_left_out(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", steps=8))
    assert {cell.state for cell in run.cells} == {"finished", "failed"}
    assert not run.table["cell"].str.contains("gspo").any()
    found = comparisons(run, "eval/single_shot")
    assert [(c.task, c.objective, c.seeds) for c in found] == [
        (task, objective, (0, 1, 2)) for task in ("palindrome", "sort") for objective in ("grpo", "dapo")
    ]
    drawn = {one["name"]: one for one in settings_drawn(run)}
    assert (
        drawn["grpo · plain 8"]["colour"] == drawn["grpo · 4 + 4, best"]["colour"] != drawn["dapo · plain 8"]["colour"]
    )
    assert [name for name, one in drawn.items() if one["plain"]] == ["grpo · plain 8", "dapo · plain 8"]
    measured, costs = settings_tables(run, "eval/single_shot")
    assert len(measured.rows) == len(costs.rows) == 8
    assert measured.columns[0] == "Held-out accuracy, single-shot"


def test_one_seed_says_how_sure_its_problems_make_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seeds=1, steps=3, tasks=("sort",), objectives=("grpo",), failed=False)
    read = read_run(run)
    assert "± 0.015" in settings_tables(read, "eval/single_shot")[0].rows[0][3][0]
    page = write_report(run).read_text(encoding="utf-8")
    assert "one seed: nothing can be said" in page
    assert "Held-out accuracy, single-shot, 4 + 4, best against plain 8 at 1 seed: one seed" in page


def test_the_start_model_and_several_hosts_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=3, tasks=("sort",), objectives=("grpo",), failed=False)
    table = pd.read_parquet(folder / "results.parquet")
    start = (
        table[table.metric == "eval/single_shot"]
        .head(1)
        .assign(cell="start--sort", host="", objective="(start)", group_size=0, step=0)
    )
    other = table.assign(host="verl", cell="verl-" + table["cell"])
    pd.concat([start, table, other]).to_parquet(folder / "results.parquet")
    drawn = {one["name"]: one for one in settings_drawn(read_run(folder))}
    assert list(drawn) == [
        "before training", "trl · grpo · plain 8", "trl · grpo · 4 + 4, best", "verl · grpo · plain 8",
        "verl · grpo · 4 + 4, best",
    ]  # fmt: skip
    assert drawn["before training"]["colour"] == 7
    assert "before training" in write_report(folder).read_text(encoding="utf-8")


def test_a_trace_is_summarized_as_its_run_was(tmp_path: Path) -> None:
    run = read_run(make_trace(tmp_path / "trace", steps=5, prompts=4))
    groups = [group_of_record(record) for record in read_trace(tmp_path / "trace") if record["step"] == 3]
    expected = summarize(groups, max_reward=1.0, extract_answer=extract_answer)
    step = run.table[run.table["step"] == 3].set_index("metric")
    for metric in ("refine/uplift", "refine/copy_rate", "refine/gradient_active_share", "refine/draft_reward_best"):
        assert step.loc[metric, "value"] == pytest.approx(expected[metric])
    assert step["completions"].unique().tolist() == [3 * 4 * 8]
    assert run.table["step"].is_monotonic_increasing


def test_what_a_resumed_run_sampled_again_counts_once(tmp_path: Path) -> None:
    """The run died in step 3 and went on from step 2: groups of step 2 and 3 are there twice, the later ones count."""
    trace = make_trace(tmp_path / "trace", steps=3, prompts=4, seed=1)
    whole = make_trace(tmp_path / "whole", steps=5, prompts=4, seed=2)
    again = (whole / "groups.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[4:]
    with (trace / "groups.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(again)
    table, expected = read_run(trace).table, read_run(whole).table
    for step in range(2, 6):
        of_step, wanted = (t[t["step"] == step].set_index("metric")["value"] for t in (table, expected))
        assert of_step["refine/groups"] == 4
        assert of_step["refine/uplift"] == pytest.approx(wanted["refine/uplift"], nan_ok=True)
    assert sample_groups(read_run(trace), 100).total == 20
    assert sum(one.completions for one in refined_spent(trace).values()) == 5 * 4 * 8


def test_replaced_groups_count_as_the_run_counted_them(tmp_path: Path) -> None:
    """Dynamic sampling: what was sampled counts all, every other figure only the groups that were trained."""
    source = make_trace(tmp_path / "source", steps=1, prompts=8, plain_share=0.0)
    groups = [group_of_record(record) for record in read_trace(source)]
    groups = [replace(group, replaced=number >= 2) for number, group in enumerate(groups)]
    writer = TraceWriter(tmp_path / "trace")
    for group in groups:
        writer.write(group)
    values = read_run(tmp_path / "trace").table.set_index("metric")["value"]
    logged = summarize(groups, max_reward=1.0, extract_answer=extract_answer)
    logged = {name: value for name, value in logged.items() if "copy_rate" not in name and not is_cause(name)}
    assert values.to_dict() == pytest.approx(logged)
    assert (values["refine/groups"], values["refine/completions"]) == (2, 8 * 8)


def test_groups_of_evaluations_are_in_no_figure_of_training(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "trace", steps=2, prompts=4)
    alone = read_run(trace).table
    writer = TraceWriter(trace, texts=True)
    for record in read_trace(trace)[:3]:
        group = group_of_record(record)
        writer.write(replace(group, question=replace(group.question, id=GroupId("eval", 1, group.id.place))))
    assert read_run(trace).table["value"].tolist() == pytest.approx(alone["value"].tolist(), nan_ok=True)


def test_zero_of_all_problems_is_no_certainty(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", seeds=1, steps=3, tasks=("sort",), objectives=("grpo",), failed=False)
    table = pd.read_parquet(folder / "results.parquet")
    held_out = table[table["metric"] == "eval/single_shot"]
    others = table[~table["metric"].str.startswith("eval/")]
    ends = {"": 0.0, "/se": 0.0, "/low": 0.0, "/high": 0.161}
    rows = [held_out.assign(metric=f"eval/single_shot{end}", value=value) for end, value in ends.items()]
    pd.concat([others, *rows]).to_parquet(folder / "results.parquet")
    measured = settings_tables(read_run(folder), "eval/single_shot")[0]
    assert [values[0] for _, _, _, values in measured.rows] == ["0.000 [0.000, 0.161]"] * 2
    assert measured.columns == ("Held-out accuracy, single-shot",)


def test_results_from_before_modes_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=3, tasks=("sort",), objectives=("grpo",), failed=False)
    table = pd.read_parquet(folder / "results.parquet")
    table.drop(columns=["mode", "options"]).to_parquet(folder / "results.parquet")
    assert [one["name"] for one in settings_drawn(read_run(folder))] == ["grpo · plain 8", "grpo · 4 + 4, best"]


def test_a_trace_names_its_mode(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "trace", steps=3, mode="joint", num_drafts=2)
    assert {one["name"] for one in settings_drawn(read_run(trace))} == {"joint 4, 2 drafts, best"}


def test_the_highest_reward_can_be_told(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "trace", steps=3)
    name = "refine/gradient_active_share_draft_max"
    assert name in set(read_run(trace).table["metric"])
    assert name not in set(read_run(trace, max_reward=2.0).table["metric"])


def test_groups_are_sampled_evenly_and_counted(tmp_path: Path) -> None:
    run = read_run(make_trace(tmp_path / "trace", steps=50, prompts=10))
    groups = sample_groups(run, 50)
    assert (len(groups.groups), groups.total) == (50, 500)
    steps = [group["step"] for group in groups.groups]
    assert steps[0] == 1
    assert steps[-1] == 50
    assert len(set(steps)) >= 48
    assert len(sample_groups(run, 10_000).groups) == 500
    assert sample_groups(run, 0).groups == ()
    page = write_report(tmp_path / "trace", max_groups=50).read_text(encoding="utf-8")
    assert "50 of 500 traced groups, evenly over the steps" in page


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = "a" * 3000 + "b" * 3000 + "c" * 3000
    short = clip(text)
    assert len(short) < 4100
    assert short.startswith("aaa")
    assert short.endswith("ccc")
    assert "5,000 characters left out" in short
    assert clip("short") == "short"


def test_a_large_trace_is_never_in_memory(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "trace", steps=1, prompts=1)
    record = json.loads((trace / "groups.jsonl").read_text(encoding="utf-8").splitlines()[0])
    for entry in record["samples"]:
        entry["text"] = "word " * 1000
    with (trace / "groups.jsonl").open("w", encoding="utf-8") as file:
        for step in range(800):
            numbered = {"group_id": f"train-{step}-0", "id": ["train", step, 0, 0], "step": step}
            file.write(json.dumps({**record, **numbered}) + "\n")
    size = (trace / "groups.jsonl").stat().st_size
    read_run(make_trace(tmp_path / "small", steps=2))  # so that imports are not counted
    tracemalloc.start()
    sample_groups(read_run(trace), 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 30e6
    assert peak < size / 4


def test_half_written_lines_are_left_out_and_said(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "trace", steps=3, prompts=2)
    file = trace / "groups.jsonl"
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"group_id": "x", "step": 4, "dra\n17\n{"group_id": "y", "st')
    page = write_report(trace).read_text(encoding="utf-8")
    assert "Incomplete lines left out: 3" in page
    assert "6 of 6 traced groups" in page
    file.write_text('{"group_id": "x", "ste', encoding="utf-8")
    with pytest.raises(ReportError, match=r"1 incomplete line.*no complete one.*Give the trace of a run"):
        write_report(trace)


def test_bad_input_is_named(tmp_path: Path) -> None:
    def refused(path: Path, match: str, **options: Any) -> None:
        with pytest.raises(ReportError, match=match):
            write_report(path, **options)

    refused(tmp_path / "nowhere", "there is no folder")
    refused(tmp_path, r"neither results.parquet .* nor groups.jsonl .*--refine.trace_dir")
    (tmp_path / "cells").mkdir()
    refused(tmp_path, "has cells but no results.parquet yet")
    (tmp_path / "results.parquet").write_bytes(b"PAR1 half")
    refused(tmp_path, r"cannot be read .*half written.*refine-wrapper ablate")
    pd.DataFrame({"cell": ["a"]}).to_parquet(tmp_path / "results.parquet")
    refused(tmp_path, "lacks the columns host, objective")
    pd.DataFrame(columns=list(COLUMNS)).to_parquet(tmp_path / "results.parquet")
    refused(tmp_path, "no cell has measured anything yet")
    run = make_run(tmp_path / "run", steps=2, seeds=1, tasks=("sort",))
    refused(run, r"no metric 'eval/singel_shot'.*eval/single_shot", metric="eval/singel_shot")
    refused(run / "plan.yaml", "is a file. Give the folder")
    for name in ("one", "two"):
        make_trace(tmp_path / "several" / name, steps=1)
    refused(tmp_path / "several", r"holds 2 traces.*\n.*one\n.*two")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "groups.jsonl").touch()
    refused(tmp_path / "empty", "holds nothing: no group was finished")
    (tmp_path / "empty" / "groups.jsonl").write_text('{"group_id": "g", "step": 1}\n', encoding="utf-8")
    refused(tmp_path / "empty", "not a trace that refine-wrapper wrote")
    old = '{"version": 1, "group_id": "g", "step": 1, "drafts": [], "refinements": []}\n'
    (tmp_path / "empty" / "groups.jsonl").write_text(old, encoding="utf-8")
    refused(tmp_path / "empty", r"from before there were modes \(trace version 1\)\. Train again")
    (tmp_path / "empty" / "groups.jsonl").write_text('{"version": 3, "group_id": "g"}\n', encoding="utf-8")
    refused(tmp_path / "empty", r"by a newer refine-wrapper \(trace version 3; this one reads 2\)")
    refused(run, r"cannot be written.*--out", output=tmp_path / "run" / "plan.yaml" / "page.html")


def test_the_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = make_trace(tmp_path / "trace", steps=2)
    page = write_report(trace)
    assert page == trace / "report.html"
    before = page.read_bytes()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(page.stat().st_mode) == 0o666 & ~mask

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ReportError, match="No space left on device"):
        write_report(trace)
    assert page.read_bytes() == before
    assert sorted(file.name for file in trace.iterdir()) == ["groups.jsonl", "report.html"]


def test_the_command(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "trace", steps=2)
    out = tmp_path / "pages" / "mine.html"
    ran = CliRunner().invoke(cli, ["report", str(trace), "--out", str(out), "--max-groups", "3"])
    assert ran.exit_code == 0, ran.output
    assert str(out) in ran.output
    assert "3 of 16 traced groups" in out.read_text(encoding="utf-8")
    ran = CliRunner().invoke(cli, ["report", str(tmp_path / "nowhere")])
    assert ran.exit_code == 2
    assert "there is no folder" in ran.output
    assert "Traceback" not in ran.output


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    with pytest.raises(ReportLibraryError, match=r"needs plotly.*pip install 'refine-wrapper\[ablation\]'"):
        write_report(tmp_path)


class _OneScript(html.parser.HTMLParser):
    """Notes what HTML makes of a page: its elements, and the text in the script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text() | st.sampled_from(["</script>", "<!--<script>", "\u2028\u2029", "\ud800", "]]>", "&lt;"]))
def test_embedded_data_cannot_leave_its_element(text: str) -> None:
    embedded = embedded_json({"text": text, "number": float("nan")})
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert embedded.isascii()
    parser = _OneScript()
    parser.feed(f'<script type="application/json">{embedded}</script>')
    assert parser.tags == ["script"]
    assert json.loads(parser.text) == {"text": text, "number": None}
