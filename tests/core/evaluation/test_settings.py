"""Settings of an evaluation: names, values, what excludes each other, and what they add up to."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from refine_wrapper.errors import ConfigError
from refine_wrapper.study.evaluation import EvaluationSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample": 4}, "unknown setting 'sample'. Did you mean 'samples'?"),
        ({"samples": 0}, "samples = 0: input should be greater than or equal to 1."),
        ({"draft_choice": "best"}, "draft_choice = 'best': input should be 'own', 'oracle', 'both' or 'none'."),
        ({"temperature": 0, "samples": 2}, "temperature = 0 gives the same completion 2 times: set samples to 1"),
        ({"system": "Be brief.", "chat": "never"}, "a system message needs the chat template"),
        ({"temperature": float("nan")}, "temperature = nan"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EvaluationSettings(**values)
    assert message in str(refused.value)


def test_a_section_of_a_yaml_file_is_enough() -> None:
    section = yaml.safe_load("{data: test.jsonl, samples: 8, chat: always, draft_choice: none, engine: vllm}")
    settings = EvaluationSettings(**section)
    assert (settings.samples, settings.chat, settings.measures) == (8, "always", ("single_shot",))
    assert EvaluationSettings(**yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json")))) == settings
    assert settings.replace(samples=2).samples == 2
    with pytest.raises(ConfigError):
        settings.replace(samples=0)


@pytest.mark.parametrize(
    ("choice", "samples", "num_drafts", "on_question", "completions"),
    [
        ("none", 4, 4, 4, 4),
        ("own", 4, 9, 4, 8),  # the own drafts are the single-shot samples; N plays no part
        ("oracle", 4, 4, 4, 8),
        ("oracle", 2, 4, 4, 6),  # four drafts, of which two are the single-shot samples, and two refinements
        ("both", 2, 4, 4, 8),
        ("both", 8, 4, 8, 24),
    ],
)
def test_completions_per_problem(
    choice: Any, samples: int, num_drafts: int, on_question: int, completions: int
) -> None:
    settings = EvaluationSettings(draft_choice=choice, samples=samples)
    assert settings.on_question(num_drafts) == on_question
    assert settings.completions(num_drafts) == completions


def test_every_setting_says_what_it_does() -> None:
    assert all(field.description for field in EvaluationSettings.model_fields.values())
