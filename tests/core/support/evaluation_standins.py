"""A STAND-IN for an engine of the evaluation: answers by a script. The real engines run in tests/evaluation and trl_vllm."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core_standins import StandInTokenizer, built_in, chatml

from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.study.evaluation import Evaluation, EvaluationSettings, Problem, ProblemSet, evaluate, problem_set
from refine_wrapper.study.evaluation.engines.interface import Sampling

Script = Callable[[str, random.Random], str]
END = "<|im_end|>"


def digits(prompt: str, rng: random.Random) -> str:
    """One random digit, whatever was asked."""
    return str(rng.randrange(10))


@dataclass
class StandInEngine:
    """Samples from a script that sees the prompt as text; notes every call."""

    script: Script = digits
    tokenizer: Any = field(default_factory=chatml)
    max_model_tokens: int | None = None
    batch_size: int = 8
    prompts: list[list[str]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset(chatml().encode(END))

    def describe(self) -> dict[str, str]:
        return {"name": "stand-in", "device": "none", "dtype": "none"}

    def sample(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        texts = [self.tokenizer.decode(ids) for ids in prompt_ids]
        self.prompts.append(texts)
        self.seeds.append(seed)
        answers = [self.script(text, random.Random(f"{seed}/{row}")) for row, text in enumerate(texts)]
        ids = [[*StandInTokenizer().encode(answer), *self.end_ids] for answer in answers]
        return [row[: sampling.max_new_tokens] for row in ids]

    def close(self) -> None:
        raise AssertionError("a model in memory is its owner's")

    @property
    def asked(self) -> list[str]:
        """Every prompt, in order."""
        return [prompt for call in self.prompts for prompt in call]


def questions(count: int = 5) -> ProblemSet:
    """Questions whose right answer is their number."""
    return problem_set("questions", [Problem(str(n), f"Question {n}", {"answer": str(n)}) for n in range(count)])


def exact(completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """1.0 for the right digit."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def measured(
    engine: StandInEngine,
    reward: Callable[..., Any] = exact,
    *,
    out: Path | None = None,
    problems: ProblemSet | None = None,
    refine: dict[str, Any] | None = None,
    plugins: Any = None,
    fresh: bool = False,
    on_progress: Callable[[Any], None] = lambda progress: None,
    **settings: Any,
) -> Evaluation:
    """`evaluate` with a stand-in engine; settings of refinement are ``refine``, others are the evaluation's."""
    return evaluate(
        EvaluationSettings(**{"samples": 4, "max_new_tokens": 8, **settings}),
        engine,
        out=out,
        refine=RefineConfig(**(refine or {})),
        plugins=plugins or built_in(),
        problems=problems or questions(),
        reward=reward,
        fresh=fresh,
        on_progress=on_progress,
    )


def records_of(out: Path) -> list[dict[str, Any]]:
    """The lines of answers.jsonl."""
    return [json.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()]


def answers_of(out: Path, measure: str) -> list[dict[str, Any]]:
    """Every answer of a measure, in order."""
    return [answer for record in records_of(out) for answer in record[measure]]
