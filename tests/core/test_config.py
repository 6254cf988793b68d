"""RefineConfig: every setting, what it refuses and how it says so."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from refine_wrapper.errors import ConfigError
from refine_wrapper.settings.config import RefineConfig, field_names
from refine_wrapper.settings.sources import read_yaml

DEFAULTS: dict[str, Any] = {
    "enabled": True,
    "mode": "paper",
    "mode_options": {},
    "num_drafts": 4,
    "train_under": None,
    "match_budget": False,
    "objective": None,
    "selector": "best",
    "selector_options": {},
    "template": "append",
    "draft_tokens": None,
    "shorten": "keep_tail",
    "strip_thinking": True,
    "on_no_draft": "plain",
    "refine_share": 1.0,
    "plan": None,
    "evaluation": "single_shot",
    "max_reward": 1.0,
    "draft_timeout": None,
    "draft_ahead": False,
    "dynamic_sampling": None,
    "dynamic_sampling_prompts": "new",
    "seed": 0,
    "trace_dir": None,
    "trace_texts": False,
    "plugin_modules": (),
}

OTHER: dict[str, Any] = {
    "enabled": False,
    "mode": "rounds",
    "mode_options": {"rounds": 3},
    "num_drafts": 7,
    "train_under": "question",
    "match_budget": True,
    "objective": "dapo",
    "selector": "worst_formatted",
    "selector_options": {"pattern": r"\\boxed\{"},
    "template": "turns",
    "draft_tokens": 512,
    "shorten": "drop_middle",
    "strip_thinking": False,
    "on_no_draft": "skip",
    "refine_share": 0.25,
    "plan": None,
    "evaluation": "refine",
    "max_reward": -2.5,
    "draft_timeout": 1.5,
    "draft_ahead": True,
    "dynamic_sampling": 3,
    "dynamic_sampling_prompts": "same",
    "seed": -3,
    "trace_dir": Path("some/folder"),
    "trace_texts": True,
    "plugin_modules": ("a.b", "c"),
}


def test_all_settings_and_their_defaults() -> None:
    assert RefineConfig().model_dump() == DEFAULTS
    assert field_names() == tuple(DEFAULTS)
    assert OTHER.keys() == DEFAULTS.keys()
    assert all(OTHER[name] != DEFAULTS[name] for name in DEFAULTS if name != "plan")


@pytest.mark.parametrize("name", OTHER)
def test_each_setting_takes_a_value(name: str) -> None:
    config = RefineConfig(**{name: OTHER[name]})
    assert config.model_dump() == {**DEFAULTS, name: OTHER[name]}


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_setting_is_described(name: str) -> None:
    description = RefineConfig.model_fields[name].description or ""
    assert description[0].isupper() or description[:2] == "N,"
    assert description.endswith(".")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("num_drafts", -1, "input should be greater than or equal to 0"),
        ("num_drafts", "four", "input should be a valid integer, unable to parse string as an integer"),
        ("num_drafts", 2.5, "input should be a valid integer, got a number with a fractional part"),
        ("draft_tokens", 0, "input should be greater than or equal to 1"),
        ("shorten", "tail", "input should be 'keep_tail', 'keep_head' or 'drop_middle'"),
        ("on_no_draft", "stop", "input should be 'plain', 'skip' or 'error'"),
        ("evaluation", "both", "input should be 'single_shot' or 'refine'"),
        ("refine_share", 1.01, "input should be less than or equal to 1"),
        ("refine_share", -0.1, "input should be greater than or equal to 0"),
        ("draft_timeout", 0, "input should be greater than 0"),
        ("draft_timeout", float("inf"), "input should be a finite number"),
        ("max_reward", float("nan"), "input should be a finite number"),
        ("enabled", "perhaps", "input should be a valid boolean, unable to interpret input"),
        ("selector", None, "input should be a valid string"),
        ("selector_options", [1], "input should be a valid dictionary"),
        ("seed", None, "input should be a valid integer"),
    ],
)
def test_a_bad_value_is_named_with_what_is_wrong(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RefineConfig(**{name: value})
    assert str(raised.value) == f"refine: {name} = {value!r}: {problem}."


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("num_draft", "Did you mean 'num_drafts'?"),
        ("draft_token", "Did you mean 'draft_tokens'?"),
        ("templat", "Did you mean 'template'?"),
        ("xyz", f"Valid names: {', '.join(sorted(DEFAULTS))}."),
    ],
)
def test_an_unknown_setting_gets_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RefineConfig(**{name: 1})
    assert str(raised.value) == f"refine: unknown setting {name!r}. {hint}"


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"num_drafts = -1.* plugin_modules\.1 = 5.* unknown setting 'tempalte'"):
        RefineConfig(num_drafts=-1, plugin_modules=("a", 5), tempalte="turns")


def test_a_config_error_is_also_a_value_error_and_hides_pydantic() -> None:
    with pytest.raises(ValueError, match=r"^refine: ") as raised:
        RefineConfig(num_drafts=-1)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_settings_cannot_be_changed_in_place() -> None:
    config = RefineConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.num_drafts = 2  # type: ignore[misc]
    assert config.num_drafts == 4


def test_replace_is_validated_and_leaves_the_original() -> None:
    config = RefineConfig(seed=3)
    assert config.replace(num_drafts=2) == RefineConfig(seed=3, num_drafts=2)
    assert config.num_drafts == 4
    with pytest.raises(ConfigError, match="num_drafts = -1"):
        config.replace(num_drafts=-1)
    with pytest.raises(ConfigError, match="unknown setting 'num_draft'"):
        config.replace(num_draft=1)


@pytest.mark.parametrize(("settings", "active"), [({}, True), ({"enabled": False}, False), ({"num_drafts": 0}, False)])
def test_active(settings: dict[str, Any], active: bool) -> None:
    assert RefineConfig(**settings).active is active


@pytest.mark.parametrize("settings", [{}, OTHER])
def test_pickling(settings: dict[str, Any]) -> None:
    config = RefineConfig(**settings)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("settings", [{}, OTHER])
def test_to_yaml_is_read_back(settings: dict[str, Any], tmp_path: Path) -> None:
    config = RefineConfig(**settings)
    file = tmp_path / "refine.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert RefineConfig(**read_yaml(file)) == config
    assert tuple(yaml.safe_load(config.to_yaml())) == field_names()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "num_drafts": st.integers(0, 9),
            "selector": st.text(),
            "template": st.text(st.characters(blacklist_categories=["Cs"])),
            "selector_options": st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.lists(st.text())),
            "draft_tokens": st.none() | st.integers(1),
            "refine_share": st.floats(0, 1),
            "max_reward": st.floats(allow_nan=False, allow_infinity=False),
            "draft_timeout": st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
            "draft_ahead": st.booleans(),
            "dynamic_sampling": st.none() | st.integers(0, 9),
            "seed": st.integers(),
            "plugin_modules": st.lists(st.text()),
        },
    )
)
def test_any_settings_survive_yaml(settings: dict[str, Any]) -> None:
    config = RefineConfig(**settings)
    assert RefineConfig(**yaml.safe_load(config.to_yaml())) == config
