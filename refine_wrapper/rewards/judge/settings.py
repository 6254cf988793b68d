"""Settings of the judge, from a YAML file or from keywords."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refine_wrapper.errors import ConfigError
from refine_wrapper.settings.config import explain


class JudgeSettings(BaseModel):
    """Which model judges, what it reads, how its reply is read, and what it may cost.

    Raises:
        ConfigError: For an unknown name (with the nearest valid one) or a bad value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, description="Name of the model at the endpoint. The cache knows it by this name.")
    base_url: str | None = Field(
        None, description="Address of an OpenAI-compatible endpoint, as http://host:8000/v1. Unset: the client's own."
    )
    api_key_variable: str = Field(
        "OPENAI_API_KEY", description="Environment variable with the key. An endpoint of your own may need none."
    )
    prompt: Path | None = Field(
        None,
        description="File with the question to the judge: {question}, {completion} ({completions} with together), "
        "{label}, {low}, {high}. Unset: a prompt about correctness.",
    )
    label: bool = Field(False, description="Show the label in the prompt that ships. A file shows it by {label}.")
    label_column: str | None = Field(
        None, description="Column of the label. Unset: the first of answer, solution, ground_truth."
    )
    question_column: str | None = Field(None, description="Column of the question. Unset: the prompt.")
    strip_thinking: bool = Field(True, description="Show completions without what stands before </think>.")
    control_tokens: tuple[str, ...] = Field(
        (), description="Further control tokens of the judge's chat template, beside the usual ones."
    )
    together: bool = Field(
        False, description="Show all completions of a group at once, in another order each time, and have each scored."
    )
    read: Literal["json", "pattern"] = Field("json", description="How the reply is read.")
    structured: bool = Field(
        True, description="With json: ask the endpoint to enforce the schema. Off where it cannot; it is read the same."
    )
    reasons: bool = Field(True, description="With json: let the judge write its reason before the score.")
    pattern: str = Field(
        r"(?im)^\W*score\W*?[:=]\s*\**\s*(-?\d+(?:\.\d+)?)",
        description="With pattern: a regular expression whose first group is a score; the last match counts.",
    )
    scale: tuple[float, float] = Field((0, 10), description="Lowest and highest score; mapped to 0 and 1.")
    judgements: int = Field(1, ge=1, description="Judgements of each completion; their mean is the reward.")
    temperature: float | None = Field(None, ge=0, description="Unset: 0 for one judgement, 1 for several.")
    max_tokens: int | None = Field(1024, ge=1, description="Longest reply. null leaves it to the endpoint.")
    request: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="Further arguments of the client's chat.completions.create, as extra_body. null takes one out.",
    )
    concurrency: int = Field(16, ge=1, description="Judgements at the same time, in each process.")
    retries: int = Field(5, ge=0, description="Retries of a judgement, with back-off; Retry-After is honoured.")
    timeout: float = Field(60.0, gt=0, description="Seconds without a byte after which an attempt is given up.")
    patience: float = Field(300.0, gt=0, description="Seconds that a judgement may take, with all its retries.")
    max_calls: int | None = Field(None, ge=1, description="Most judgements asked of the endpoint in the run.")
    max_total_tokens: int | None = Field(
        None, ge=1, description="Most tokens of prompts and replies in the run. Calls under way are not cut."
    )
    max_seconds: float | None = Field(
        None, gt=0, description="Longest that one process waits for its judge in all, in seconds."
    )
    run: str = Field("run", description="Name of the run, under which its processes share counts and limits.")
    cache: Path | None = Field(
        None, description="SQLite file with all replies and counts, shared by processes. Unset: this process alone."
    )
    trace_dir: Path | None = Field(
        None, description="Folder for judge.jsonl: prompts, replies, scores. Unset: trace_dir, if trace_texts is on."
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).model_fields).replace("refine:", "refine: judge:", 1)) from None
        if not self.scale[0] < self.scale[1]:
            raise ConfigError(f"refine: judge: scale = {list(self.scale)}: write the lowest score first, as [0, 10].")
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ConfigError(f"refine: judge: pattern = {self.pattern!r} is no regular expression: {error}.") from None
        if groups < 1:
            raise ConfigError(
                f"refine: judge: pattern = {self.pattern!r} must have a group around the number, as "
                r"'Score: (\d+)'."
            )
        try:
            json.dumps(self.request)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"refine: judge: request must be plain JSON: {error}.") from None
        if self.judgements > 1 and self.temperature == 0 and not self.together:
            raise ConfigError(
                "refine: judge: several judgements at temperature 0 are one judgement paid several times. Leave "
                "temperature out (it is 1 then), or set judgements: 1."
            )

    @classmethod
    def read_file(cls, path: Path | str) -> JudgeSettings:
        """Settings from a YAML file; paths in it are relative to its folder.

        Raises:
            ConfigError: If the file cannot be read or says something wrong.
        """
        path = Path(path).expanduser().absolute()
        try:
            content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"refine: cannot read the judge's settings {str(path)!r}: {error.strerror}.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"refine: {str(path)!r} is not valid YAML: {error}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"refine: {str(path)!r} must hold a mapping with at least `model: NAME`.")
        values = {str(key): value for key, value in cast("dict[Any, Any]", content).items()}
        for name in ("prompt", "cache", "trace_dir"):
            if isinstance(values.get(name), str):
                values[name] = path.parent / Path(values[name]).expanduser()
        return cls(**values)

    @property
    def sampling_temperature(self) -> float:
        """The temperature that is asked for."""
        return self.temperature if self.temperature is not None else float(self.judgements > 1)
