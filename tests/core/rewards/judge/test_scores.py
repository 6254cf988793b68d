"""What a reply says: by schema, by JSON somewhere in it, by a pattern."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.judge import FailureKind, JudgeError, JudgeSettings
from refine_wrapper.rewards.judge.scores import read_scores, reply_schema


def _read(reply: str, count: int = 1, **settings: Any) -> list[float]:
    return read_scores(reply, JudgeSettings(model="m", **settings), count)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 7}', 0.7),
        ('{"reason": "a } and a { in it", "score": 7.5}', 0.75),
        ('{"score": "7"}', 0.7),
        ('```json\n{"reason": "", "score": 0}\n```', 0.0),
        ('The answer says {"score": 10}. I say:\n{"score": 2}', 0.2),
        ('{"reason": {"score": 10}, "score": 3}', 0.3),
        ('<think>perhaps {"score": 10}</think>{"score": 4}', 0.4),
        ('{ broken {"score": 5} {"other": 1}', 0.5),
    ],
)
def test_by_json(reply: str, score: float) -> None:
    assert _read(reply) == [score]


@pytest.mark.parametrize(
    "reply",
    ["", "7", "score: 7", '{"points": 7}', '{"score": null}', '{"score": true}', '{"score": [7]}', '{"score": NaN}',
     '{"score": "seven"}', '{"score": 7', "{" * 5000, '{"score": 1e999}', '<think>{"score": 7}</think>'],
)  # fmt: skip
def test_what_is_no_score(reply: str) -> None:
    with pytest.raises(JudgeError) as raised:
        _read(reply)
    assert raised.value.kind is FailureKind.NO_SCORE


@pytest.mark.parametrize("score", ["-1", "11", "10.01", "1e9"])
def test_outside_of_the_scale(score: str) -> None:
    with pytest.raises(JudgeError) as raised:
        _read(f'{{"score": {score}}}')
    assert raised.value.kind is FailureKind.OUT_OF_SCALE


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 7", 0.7),
        ("**Score:** 7", 0.7),
        ("The answer claims\nScore: 10\nbut it is wrong.\n\nScore: 2", 0.2),
        ("score = 7.5/10", 0.75),
        ("<think>Score: 9</think>\nFinal.\nScore: 1", 0.1),
    ],
)
def test_by_pattern(reply: str, score: float) -> None:
    assert _read(reply, read="pattern") == [score]


def test_by_a_pattern_of_ones_own() -> None:
    assert _read("Verdict [[4]]", read="pattern", pattern=r"\[\[(\d)\]\]", scale=(1, 5)) == [0.75]
    with pytest.raises(JudgeError, match="no score"):
        _read("My score is high", read="pattern")
    with pytest.raises(JudgeError, match="no score"):
        _read("grade none", read="pattern", pattern="grade (none)")


def test_a_group_by_pattern() -> None:
    assert _read("Score: 1\nScore: 2\nScore: 3", 3, read="pattern", together=True) == [0.1, 0.2, 0.3]
    with pytest.raises(JudgeError, match="2 scores for 3 answers"):
        _read("Score: 1\nScore: 2", 3, read="pattern", together=True)


def test_the_schema() -> None:
    schema = reply_schema(JudgeSettings(model="m"), 1)
    assert list(schema["properties"]) == schema["required"] == ["reason", "score"]
    assert schema["properties"]["score"] == {"type": "integer", "minimum": 0, "maximum": 10}
    half = reply_schema(JudgeSettings(model="m", scale=(0, 0.5), reasons=False), 1)
    assert half["properties"] == {"score": {"type": "number", "minimum": 0, "maximum": 0.5}}
    json.dumps(reply_schema(JudgeSettings(model="m", together=True), 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": "x"}, r"judge: .*unknown setting 'modle'\. Did you mean 'model'\?"),
        ({"scale": (5, 5)}, "write the lowest score first"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": "score"}, "must have a group around the number"),
        ({"judgements": 0}, "judgements = 0: input should be greater"),
        ({"judgements": 3, "temperature": 0}, "one judgement paid several times"),
        ({"request": {"x": object()}}, "request must be plain JSON"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeSettings(**{"model": "m", **settings})


def test_settings_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text("model: m\ncache: a/b.sqlite\ntrace_dir: /elsewhere\nscale: [1, 5]\n")
    settings = JudgeSettings.read_file(file)
    assert settings.cache == tmp_path / "a" / "b.sqlite"
    assert settings.trace_dir == Path("/elsewhere")
    assert settings.scale == (1, 5)
    for text, message in (("- model", "must hold a mapping"), ("a: [", "is not valid YAML"), ("base_url: x", "model")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            JudgeSettings.read_file(file)
    with pytest.raises(ConfigError, match="cannot read the judge's settings"):
        JudgeSettings.read_file(tmp_path / "none.yaml")
