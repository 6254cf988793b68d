"""Problem files: what is read from which, and what is said of one that cannot be."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from refine_wrapper.errors import ConfigError
from refine_wrapper.study.evaluation import EvaluationSettings, Problem, problem_set, read_problems

ROWS = [{"prompt": f"{n} + {n}?", "answer": str(2 * n), "level": "easy"} for n in range(3)]


def _read(path: Path, **settings: Any) -> Any:
    return read_problems(EvaluationSettings(data=str(path), **settings))


def _write(folder: Path, rows: list[Any], name: str = "problems.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_json_and_csv_hold_the_same(tmp_path: Path) -> None:
    lines = _write(tmp_path, ROWS)
    (tmp_path / "p.json").write_text(json.dumps(ROWS))
    header = "prompt,answer,level\n"
    (tmp_path / "p.csv").write_text(header + "".join(f"{r['prompt']},{r['answer']},{r['level']}\n" for r in ROWS))
    expected = tuple(
        Problem(str(n), row["prompt"], {"answer": row["answer"], "level": "easy"}) for n, row in enumerate(ROWS)
    )
    for path in (lines, tmp_path / "p.json", tmp_path / "p.csv"):
        assert _read(path).problems == expected
        assert _read(path, limit=2).problems == expected[:2]
    assert len({_read(path).digest for path in (lines, tmp_path / "p.json", tmp_path / "p.csv")}) == 1
    assert _read(lines, limit=2).digest != _read(lines).digest


def test_line_separators_in_a_text_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b", "answer": 1}\n\n{"prompt": "c", "answer": 2}\n', encoding="utf-8")
    assert [problem.prompt for problem in _read(path).problems] == ["a\u2028b", "c"]


def test_fields_are_found_by_their_usual_names_or_named(tmp_path: Path) -> None:
    verl = [{"prompt": [{"role": "user", "content": "2?"}], "reward_model": {"ground_truth": "2"}, "data_source": "x"}]
    (problem,) = _read(_write(tmp_path, verl)).problems
    assert problem.columns["answer"] == "2"
    assert problem.columns["reward_model"] == {"ground_truth": "2"}
    mine = _write(tmp_path, [{"text": "2?", "info": {"gold": 2}, "answer": "of another meaning"}], "mine.jsonl")
    (problem,) = _read(mine, prompt_field="text", answer_field="info.gold").problems
    assert (problem.prompt, problem.columns["answer"]) == ("2?", 2)
    none = _write(tmp_path, [{"question": "2?"}], "none.jsonl")
    assert "answer" not in _read(none).problems[0].columns


def test_messages_chat_and_a_system_message(tmp_path: Path) -> None:
    path = _write(tmp_path, ROWS[:1])
    user = {"role": "user", "content": "0 + 0?"}
    assert _read(path).problems[0].prompt == "0 + 0?"
    assert _read(path, chat="always").problems[0].prompt == [user]
    system = {"role": "system", "content": "Be brief."}
    assert _read(path, system="Be brief.").problems[0].prompt == [system, user]
    assert _read(path).digest != _read(path, chat="always").digest


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("{}", {}, "no field 'prompt' or 'question'"),
        (
            '{"prompt": "q", "answers": 1}',
            {"answer_field": "answer"},
            "no answer field 'answer'. Did you mean 'answers'?",
        ),
        ('{"prompt": "q"}\n{"prompt": ', {}, "line 2 is not valid JSON"),
        ("[1]", {}, "line 1 must be an object with fields, not list."),
        ("", {}, "has no problems"),
        ('{"prompt": " "}', {}, "problem 1: the question is empty"),
        ('{"prompt": "q"}\n{"question": "r"}', {}, "problem 2: a question is text, or a list of messages"),
        ('{"prompt": [{"role": "user"}]}', {}, "a question is text, or a list of messages with 'role' and 'content'"),
        (
            '{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
            {},
            "the last message is the assistant's, so the question would hold an answer",
        ),
        ('{"prompt": [{"role": "user", "content": "q"}]}', {"chat": "never"}, "which needs the chat template"),
        (
            '{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}',
            {"system": "t"},
            "has a system message already",
        ),
    ],
)
def test_errors_name_the_place(tmp_path: Path, content: str, settings: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        _read(path, **settings)
    assert message in str(refused.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("2 + 2?")
    (tmp_path / "p.json").write_text("{}")
    (tmp_path / "bad.csv").write_text("prompt,answer\nq\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    for name, message in (
        ("missing.jsonl", "there is no problem file"),
        ("p.txt", "a problem file ends in .jsonl, .json, .csv, .parquet, not '.txt'"),
        ("p.json", "must hold a list of problems, not dict"),
        ("bad.csv", "row 1 has not as many fields as the first line"),
        ("latin.jsonl", "is not UTF-8"),
    ):
        with pytest.raises(ConfigError) as refused:
            _read(tmp_path / name)
        assert message in str(refused.value)
    with pytest.raises(ConfigError, match="two problems of mine have the same id"):
        problem_set("mine", [Problem("0", "q"), Problem("0", "r")])


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment of the core neither is there; where one is, it is hidden."""
    for module in ("pyarrow", "pyarrow.parquet", "reasoning_gym"):
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="reading Parquet needs pyarrow: pip install pyarrow"):
        _read(tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match="reasoning-gym is not installed: pip install"):
        read_problems(EvaluationSettings(data="reasoning-gym:simple_equations"))
