from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refine_wrapper.hosts.launch import report
from refine_wrapper.settings.sources import LAUNCH_VARIABLE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "_noted", set())
    monkeypatch.setenv(LAUNCH_VARIABLE, json.dumps({"patches": {}, "reports": str(tmp_path)}))
    return tmp_path


def test_the_first_refinement_is_reported_once_for_each_host(folder: Path) -> None:
    report.note_refined("trl", drafts=4, folder=Path("x"))
    report.note_refined("trl", drafts=5)
    report.note_refined("openrlhf")
    assert report.read_reports(str(folder)) == [
        report.Report("openrlhf", os.getpid(), {}),
        report.Report("trl", os.getpid(), {"drafts": 4, "folder": "x"}),
    ]
    assert len(list(folder.iterdir())) == 2


def test_a_forked_process_reports_itself(folder: Path) -> None:
    report.note_refined("trl")
    child = os.fork()
    if child == 0:
        report.note_refined("trl")
        os._exit(0)
    os.waitpid(child, 0)
    assert {found.process for found in report.read_reports(str(folder))} == {os.getpid(), child}


def test_marks_are_apart_from_reports_and_written_once(folder: Path) -> None:
    for _ in range(2):
        report.mark("hook")
        report.mark("patched-host.trainer")
    (folder / "half.refined.json.1-ab.tmp").touch()  # being written
    assert report.read_marks(str(folder)) == ["hook", "patched-host.trainer"]
    assert report.read_reports(str(folder)) == []


def test_without_run_nothing_is_written(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCH_VARIABLE)
    monkeypatch.chdir(tmp_path)
    report.note_refined("trl")
    report.mark("hook")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_outlives_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = folder / "gone"
    monkeypatch.setenv(LAUNCH_VARIABLE, json.dumps({"patches": {}, "reports": str(gone)}))
    report.note_refined("trl")
    assert not gone.exists()


def test_the_variable_is_the_one_of_the_core() -> None:
    # Written twice, because the core's module takes pydantic along.
    assert report._LAUNCH_VARIABLE == LAUNCH_VARIABLE
