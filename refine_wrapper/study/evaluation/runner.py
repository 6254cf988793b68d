"""evaluate(): problems, engine, reward and folder put together; goes on where an earlier call was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine_wrapper.core.planner import make_rules
from refine_wrapper.core.prompts.builder import find_template
from refine_wrapper.errors import ConfigError
from refine_wrapper.files import write_json
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.study.evaluation.engines.choose import (
    check_model,
    engine_name,
    load_engine,
    model_identity,
    versions,
)
from refine_wrapper.study.evaluation.engines.interface import Engine
from refine_wrapper.study.evaluation.journal import RESULT_FILE, Journal
from refine_wrapper.study.evaluation.problems import Problem, ProblemSet, read_problems
from refine_wrapper.study.evaluation.protocol import Protocol, Record, measured_config
from refine_wrapper.study.evaluation.scoring import Scorer, find_reward
from refine_wrapper.study.evaluation.settings import EvaluationSettings
from refine_wrapper.study.evaluation.summary import Evaluation, summarize
from refine_wrapper.version import __version__

# Of the settings of refinement, those that a measurement depends on.
_REFINE = ("template", "draft_tokens", "shorten", "strip_thinking", "on_no_draft")
_REFINE_ORACLE = ("num_drafts", "selector", "selector_options", "seed", "max_reward")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is, in completions; ``before`` of those that are done were done by earlier calls."""

    done: int
    total: int
    before: int


def evaluate(
    settings: EvaluationSettings,
    model: str | Path | Engine,
    *,
    out: Path | None = None,
    refine: RefineConfig | None = None,
    plugins: Plugins | None = None,
    problems: ProblemSet | None = None,
    reward: Callable[..., Any] | None = None,
    fresh: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Evaluation:
    """Measure a model on held-out problems.

    Args:
        settings: What is measured, and on what.
        model: A folder, a hub id, or an engine with a model that is in memory.
        out: Folder for answers.jsonl (grows batch by batch) and evaluation.json (at the end); None: nothing is
            written. A call with the same settings goes on where an earlier one was stopped.
        refine: How q' is built, and how the oracle selects among how many drafts; by default ``RefineConfig()``.
        plugins: The loaded plugins; by default the installed ones and those that ``refine`` names.
        problems: Instead of those that ``settings.data`` names.
        reward: A function, instead of the one that ``settings.reward`` names.
        fresh: Throw away what is in ``out``.
        on_progress: Told after every call of the engine.

    Raises:
        RefineError: For settings, data, model or reward that cannot be used, before anything is sampled.
        NoRewardError: If the reward fails on everything.
    """
    job = Job(settings, model, refine=refine, plugins=plugins, problems=problems, reward=reward)
    journal = None if out is None else Journal(out, job.identity, fresh=fresh)
    try:
        return job.run(journal, on_progress)
    finally:
        if journal is not None:
            journal.close()


class Job:
    """One evaluation that is checked but not started; arguments as in :func:`evaluate`.

    Attributes:
        problems: The problems.
        identity: All that decides the answers, for the folder and the report.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        model: str | Path | Engine,
        *,
        refine: RefineConfig | None = None,
        plugins: Plugins | None = None,
        problems: ProblemSet | None = None,
        reward: Callable[..., Any] | None = None,
    ) -> None:
        self.settings = settings
        self.refine = measured_config(RefineConfig() if refine is None else refine)
        if settings.with_oracle_draft and self.refine.num_drafts < 1:
            raise ConfigError(
                "refine: num_drafts = 0 leaves the oracle nothing to choose from; set --refine.num_drafts."
            )
        self._plugins = Plugins(self.refine.plugin_modules) if plugins is None else plugins
        template = find_template(self.refine.template, self._plugins)
        make_rules(self.refine, self._plugins)
        self.problems = read_problems(settings) if problems is None else problems
        if reward is None:
            reward, reward_identity = find_reward(settings.reward, self.problems, self._plugins)
        else:
            reward_identity = {"name": str(getattr(reward, "__name__", type(reward).__name__))}
        self._scorer = Scorer(reward, self._plugins)
        self.correct_at = self.refine.max_reward if settings.correct_at is None else settings.correct_at
        self._model = model
        if isinstance(model, (str, Path)):
            check_model(str(model))
            self.engine_name = engine_name(str(model), settings)
            identity, packages = model_identity(str(model)), versions(self.engine_name)
        else:
            self.engine_name = model.describe()["name"]
            identity, packages = {"name": "in memory"}, {}
        self.identity: dict[str, Any] = {
            "model": identity,
            "data": {
                "source": self.problems.source,
                "problems": len(self.problems.problems),
                "digest": self.problems.digest,
            },
            "reward": {**reward_identity, "correct_at": self.correct_at},
            "settings": settings.model_dump(mode="json", exclude={"data", "reward", "correct_at", "limit"}),
            "refine": self._refine_identity(template),
            "versions": {"refine-wrapper": __version__, **packages},
        }

    @property
    def completions(self) -> int:
        """How many completions are sampled in all."""
        return len(self.problems.problems) * self.settings.completions(self.refine.num_drafts)

    def run(self, journal: Journal | None, on_progress: Callable[[Progress], None]) -> Evaluation:
        """Sample and score what is not in the journal yet, and sum up."""
        records, skipped = self._records(journal, on_progress)
        identity = self.identity if journal is None else journal.identity
        evaluation = summarize(records, self.settings.measures, self.correct_at, identity, skipped=skipped)
        if journal is not None:
            write_json(journal.folder / RESULT_FILE, evaluation.to_json())
        return evaluation

    def _records(self, journal: Journal | None, on_progress: Callable[[Progress], None]) -> tuple[list[Record], int]:
        everything = self.problems.problems
        if journal is not None and journal.finished:
            return journal.records, len(everything) - len(journal.records)
        loaded = isinstance(self._model, (str, Path))
        engine = (
            load_engine(self.engine_name, str(self._model), self.settings)
            if isinstance(self._model, (str, Path))
            else self._model
        )
        try:
            return self._sample(engine, journal, on_progress)
        finally:
            if loaded:
                engine.close()

    def _sample(
        self, engine: Engine, journal: Journal | None, on_progress: Callable[[Progress], None]
    ) -> tuple[list[Record], int]:
        per_problem = self.settings.completions(self.refine.num_drafts)
        done = before = total = 0

        def sampled(count: int) -> None:
            nonlocal done
            done += count
            on_progress(Progress(done, total, before))

        protocol = Protocol(engine, self._scorer, self.settings, self.refine, self._plugins, sampled)
        self.identity["engine"] = {**engine.describe(), "problems_per_batch": protocol.problems_per_batch}
        fitting = protocol.fitting(self.problems.problems)
        skipped = len(self.problems.problems) - len(fitting)
        batches = _batches(fitting, protocol.problems_per_batch)
        finished = 0
        if journal is not None:
            journal.claim(self.identity)
            finished = journal.keep([[problem.id for problem in batch] for batch in batches])
        total = len(fitting) * per_problem
        before = done = sum(map(len, batches[:finished])) * per_problem
        on_progress(Progress(done, total, before))
        records: list[Record] = [] if journal is None else journal.records
        for number, batch in enumerate(batches[finished:], finished):
            answered = protocol.measure(number, batch)
            if journal is None:
                records += answered
            else:
                journal.append(answered)
        return records if journal is None else journal.records, skipped

    def _refine_identity(self, template: Any) -> dict[str, Any]:
        if self.settings.draft_choice == "none":
            return {}
        names = [*_REFINE, *(_REFINE_ORACLE if self.settings.with_oracle_draft else ())]
        dumped = self.refine.model_dump(mode="json")
        # The text of a template file can change under one name.
        shown = [template.render_text("q", "d"), template.render_messages([{"role": "user", "content": "q"}], "d")]
        digest = hashlib.sha256(json.dumps(shown, default=str).encode()).hexdigest()[:16]
        return {**{name: dumped[name] for name in names}, "template_digest": digest}


def _batches(problems: Sequence[Problem], size: int) -> list[Sequence[Problem]]:
    return [problems[start : start + size] for start in range(0, len(problems), size)]
