"""Where settings come from, and which source wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.errors import ConfigError
from refine_wrapper.settings.config import RefineConfig, field_names
from refine_wrapper.settings.sources import (
    flags_from_environment,
    parse_value,
    read_environment,
    read_yaml,
    resolve,
    split_flags,
)

PATTERN = r"\\boxed\{"


def test_precedence_of_all_five_sources(tmp_path: Path) -> None:
    # Each setting is stated by one more source than the one before; the strongest that states it wins.
    names = ("num_drafts", "draft_tokens", "seed", "selector", "template")
    file = tmp_path / "refine.yaml"
    file.write_text("draft_tokens: 200\nseed: 200\nselector: file\ntemplate: file")
    environ = {
        "REFINE_WRAPPER_CONFIG": str(file),
        "REFINE_WRAPPER_SEED": "300",
        "REFINE_WRAPPER_SELECTOR": "environment",
        "REFINE_WRAPPER_TEMPLATE": "environment",
    }
    host = {"selector": "host", "template": "host"}
    config = resolve(flags={"template": "flag"}, host=host, environ=environ)
    assert [getattr(config, name) for name in names] == [4, 200, 300, "host", "flag"]


def test_flags_of_the_parent_process_count_as_flags() -> None:
    environ = {"REFINE_WRAPPER_FLAGS": '{"seed": "7"}', "REFINE_WRAPPER_SEED": "1"}
    assert resolve(host={"seed": 2}, environ=environ).seed == 7
    assert resolve(flags={}, host={"seed": 2}, environ=environ).seed == 2


def test_which_file_is_read(tmp_path: Path) -> None:
    for name in ("flag", "argument", "environment"):
        (tmp_path / name).write_text(f"selector: {name}")
    environ = {"REFINE_WRAPPER_CONFIG": str(tmp_path / "environment")}
    argument, flag = tmp_path / "argument", {"config": str(tmp_path / "flag")}
    assert resolve(environ={}).selector == "best"
    assert resolve(environ=environ).selector == "environment"
    assert resolve(environ=environ, file=argument).selector == "argument"
    assert resolve(environ=environ, file=argument, flags=flag).selector == "flag"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINE_WRAPPER_NUM_DRAFTS", "2")
    assert resolve().num_drafts == 2


def test_host_values_are_validated_as_any_other() -> None:
    with pytest.raises(ConfigError, match="num_drafts = 'x'"):
        resolve(host={"num_drafts": "x"}, environ={})


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("refine:\n  # nothing\n", {}),
        ("num_drafts: 2\nselector_options: {pattern: 'x'}", {"num_drafts": 2, "selector_options": {"pattern": "x"}}),
        ("refine:\n  num_drafts: 2", {"num_drafts": 2}),
        ("selector: größte", {"selector": "größte"}),
    ],
)
def test_yaml(content: str, settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "refine.yaml"
    file.write_text(content, encoding="utf-8")
    assert read_yaml(file) == settings
    assert read_yaml(str(file)) == settings


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"num_draft: 2", "unknown setting 'num_draft' in {file!r}. Did you mean 'num_drafts'?"),
        (b"refine:\n  sed: 2", "unknown setting 'sed' in {file!r}. Did you mean 'seed'?"),
        (b"- 1", "{file!r} must hold a mapping such as 'num_drafts: 4', not list."),
        (b"seed", "{file!r} must hold a mapping such as 'num_drafts: 4', not str."),
        (b"a: [", "{file!r} is not valid YAML: "),
        (b"selector: gr\xf6\xdfte", "{file!r} is not valid YAML: "),
    ],
)
def test_bad_yaml_names_the_file(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "refine.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(file)
    assert str(raised.value).startswith("refine: " + problem.format(file=str(file)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as raised:
        resolve(environ={"REFINE_WRAPPER_CONFIG": str(missing)})
    assert str(raised.value) == (
        f"refine: cannot read the configuration file {str(missing)!r}: No such file or directory."
    )


def test_environment() -> None:
    environ = {
        "REFINE_WRAPPER_NUM_DRAFTS": "2",
        "REFINE_WRAPPER_ENABLED": "false",
        "REFINE_WRAPPER_DRAFT_TOKENS": "none",
        "REFINE_WRAPPER_SELECTOR_OPTIONS": json.dumps({"pattern": PATTERN, "n": [1, None]}),
        "REFINE_WRAPPER_PLUGIN_MODULES": "a.b, c",
        "REFINE_WRAPPER_PLUGINS": "not a setting",
        "REFINE_WRAPPER_CONFIG": "not a setting",
        "REFINE_WRAPPER_FLAGS": "not a setting",
        "REFINE_WRAPPER_LAUNCH": "not a setting",
        "REFINE_WRAPPER_CACHE": "not a setting",
        "OTHER": "x",
    }
    config = RefineConfig(**read_environment(environ))
    assert config == RefineConfig(
        num_drafts=2, enabled=False, selector_options={"pattern": PATTERN, "n": [1, None]}, plugin_modules=("a.b", "c")
    )


def test_an_unknown_variable_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as raised:
        read_environment({"REFINE_WRAPPER_NUM_DRAFT": "2"})
    assert str(raised.value) == (
        "refine: the environment variable REFINE_WRAPPER_NUM_DRAFT names no setting. Did you mean 'num_drafts'?"
    )


def test_every_setting_can_be_a_variable() -> None:
    environ = {f"REFINE_WRAPPER_{name.upper()}": "1" for name in field_names() if name not in ("selector_options",)}
    assert set(read_environment(environ)) == set(field_names()) - {"selector_options"}


@pytest.mark.parametrize(
    ("arguments", "settings", "rest"),
    [
        (["--refine.num_drafts", "2", "train.py"], {"num_drafts": "2"}, ["train.py"]),
        (["--refine.num_drafts=2", "--lr", "1"], {"num_drafts": "2"}, ["--lr", "1"]),
        (["a", "--refine.trace_texts", "--b", "c"], {"trace_texts": "true"}, ["a", "--b", "c"]),
        (["--refine.trace_texts"], {"trace_texts": "true"}, []),
        (["--refine.enabled=false"], {"enabled": "false"}, []),
        (["--refine.seed", "-3", "x"], {"seed": "-3"}, ["x"]),
        (["--refine.seed=1", "--refine.seed=2"], {"seed": "2"}, []),
        (["--refine.draft_tokens="], {"draft_tokens": None}, []),
        (["--refine.config", "my.yaml"], {"config": "my.yaml"}, []),
        (["--refine.selector_options", '{"pattern": "a=b"}'], {"selector_options": {"pattern": "a=b"}}, []),
        (["--refine.selector_options={n: 1}"], {"selector_options": {"n": 1}}, []),
        (["--refinement", "x", "refine.seed"], {}, ["--refinement", "x", "refine.seed"]),
        ([], {}, []),
    ],
)
def test_flags(arguments: list[str], settings: dict[str, Any], rest: list[str]) -> None:
    assert split_flags(arguments) == (settings, rest)


@pytest.mark.parametrize(
    ("flag", "hint"),
    [("--refine.num-drafts=2", "num_drafts"), ("--refine.tempalte", "template"), ("--refine.Seed", "seed")],
)
def test_an_unknown_flag_gets_the_nearest_name(flag: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        split_flags([flag, "x"])
    name = flag.removeprefix("--refine.").partition("=")[0]
    assert str(raised.value) == f"refine: unknown setting {name!r} as a flag ({flag}). Did you mean {hint!r}?"


@given(st.lists(st.sampled_from(["train.py", "--lr", "1e-6", "-x", "--refine.seed=1", "--refine.plan=a", "--"])))
def test_what_is_no_flag_of_ours_stays_in_place_and_order(arguments: list[str]) -> None:
    settings, rest = split_flags(arguments)
    assert rest == [argument for argument in arguments if not argument.startswith("--refine.")]
    assert set(settings) == {a[9:].partition("=")[0] for a in arguments if a.startswith("--refine.")}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("draft_tokens", "None", None),
        ("draft_tokens", " null ", None),
        ("draft_tokens", "", None),
        ("plugin_modules", "none", ()),
        ("plugin_modules", "a,, b ", ("a", "b")),
        ("plugin_modules", '["a", "b"]', ["a", "b"]),
        ("selector_options", "", {}),
        ("selector_options", '{"pattern": "\\\\boxed"}', {"pattern": "\\boxed"}),
        ("selector_options", "{pattern: x, n: 2}", {"pattern": "x", "n": 2}),
        ("selector", "8", "8"),
        ("seed", "8", "8"),
    ],
)
def test_values_written_as_text(name: str, text: str, value: Any) -> None:
    assert parse_value(name, text) == value


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans() | st.none(), min_size=1)
)
def test_options_written_as_json_arrive_as_they_are(options: dict[str, Any]) -> None:
    text = json.dumps(options, ensure_ascii=False)
    if text.isprintable():  # YAML has its own mind about control characters
        assert parse_value("selector_options", text) == options


def test_bad_json_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"^refine: selector_options = '\{a' is not valid JSON or YAML: "):
        parse_value("selector_options", "{a")


def test_flags_of_a_parent_process_are_optional() -> None:
    assert flags_from_environment({}) == {}
    assert flags_from_environment({"REFINE_WRAPPER_FLAGS": '{"seed": "1"}'}) == {"seed": "1"}
