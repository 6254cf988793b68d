"""What is sampled for each problem: single-shot, with an own draft, with the draft that the reward chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refine_wrapper.core.modes.interface import GroupSoFar
from refine_wrapper.core.planner import Planner
from refine_wrapper.core.types import GroupId, Outcome, PlannedRound, PromptRoom, Question, Sample
from refine_wrapper.errors import BudgetError, ConfigError, PromptError
from refine_wrapper.hosts.budget import check_room, prompt_room
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.study.evaluation.engines.interface import Completion, Engine, PromptCodec, Sampling, derived_seed
from refine_wrapper.study.evaluation.problems import Problem
from refine_wrapper.study.evaluation.scoring import Scorer
from refine_wrapper.study.evaluation.settings import SINGLE_SHOT, WITH_DRAFT, WITH_ORACLE_DRAFT, EvaluationSettings

Record = dict[str, Any]
"""One problem with everything sampled for it, as a line of answers.jsonl."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One completion to sample: its problem, and q or q' as token ids."""

    problem: Problem
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Refined:
    """A group whose draft is known: what its answers are sampled on."""

    group: GroupSoFar
    planned: PlannedRound


class Protocol:
    """Samples and scores batches of problems with one engine.

    Args:
        engine: What generates.
        scorer: The reward.
        settings: What is measured.
        refine: How q' is built, and which draft the oracle takes.
        plugins: The loaded plugins.
        on_sampled: Called with the number of completions of each finished call of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        settings: EvaluationSettings,
        refine: RefineConfig,
        plugins: Plugins,
        on_sampled: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._engine, self._scorer, self._settings, self._plugins = engine, scorer, settings, plugins
        self._on_sampled = on_sampled
        self._codec = PromptCodec(engine.tokenizer, settings.chat_template_kwargs)
        self._sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens)
        self._batch_size = settings.batch_size or engine.batch_size
        self._num_drafts = refine.num_drafts
        room = PromptRoom(
            tokenizer=engine.tokenizer,
            count_tokens=lambda prompt: len(self._codec.encode(prompt)),
            max_prompt_tokens=prompt_room(engine.max_model_tokens, settings.max_new_tokens),
            chat_kwargs=settings.chat_template_kwargs,
        )
        self._room = room
        everyone = measured_config(refine)
        # One draft and one reward for all of them: nothing of the label can reach the choice.
        own = everyone.replace(num_drafts=1, selector="best", selector_options={})
        self._own = Planner(own, room, plugins) if settings.with_own_draft else None
        self._oracle = Planner(everyone, room, plugins) if settings.with_oracle_draft else None

    @property
    def problems_per_batch(self) -> int:
        """Problems that are sampled, scored and written together."""
        return max(1, self._batch_size // self._settings.on_question(self._num_drafts))

    def fitting(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems whose question leaves room for a full answer.

        Raises:
            BudgetError: If one does not and ``too_long`` is ``error``, or no q' can fit; with the numbers to set.
        """
        limit = self._room.max_prompt_tokens
        lengths = [(problem, len(self._codec.encode(problem.prompt))) for problem in problems]
        fitting = [problem for problem, length in lengths if limit is None or length <= limit]
        longest = max(length for _, length in lengths)
        answer, total = self._settings.max_new_tokens, self._engine.max_model_tokens
        if len(fitting) < len(problems) and (self._settings.too_long == "error" or not fitting):
            raise BudgetError(
                f"refine: {len(problems) - len(fitting)} of {len(problems)} questions leave no room for max_new_tokens="
                f"{answer} in the model's {total} tokens; the longest has {longest}. "
                + (
                    f"Lower --max-new-tokens to at most {total - longest}"
                    if total and total > longest
                    else "Take shorter"
                )
                + (", or leave them out with --too-long skip." if fitting else ".")
            )
        planner = self._own or self._oracle
        if planner is not None:
            try:
                overhead = planner.prompts.overhead_tokens(fitting[0].prompt)
            except PromptError as error:
                raise ConfigError(f"{error} Measure without a draft: --draft none.") from None
            check_room(
                limit,
                overhead_tokens=overhead,
                draft_tokens=planner.config.draft_tokens,
                answer_tokens=answer,
                model_setting="max_model_tokens",
                answer_setting="max_new_tokens",
            )
        return fitting

    def measure(self, batch: int, problems: Sequence[Problem]) -> list[Record]:
        """Everything sampled for a batch of problems, scored. Depends on the arguments and the settings only."""
        samples, on_question = self._settings.samples, self._settings.on_question(self._num_drafts)
        encoded = {problem.id: self._codec.encode(problem.prompt) for problem in problems}
        asked = [_Asked(problem, encoded[problem.id]) for problem in problems for _ in range(on_question)]
        answers = _grouped(self._answer(asked, batch, SINGLE_SHOT), on_question)
        records: list[Record] = []
        for problem, answers_N in zip(problems, answers, strict=True):
            record = {"batch": batch, "id": problem.id, "prompt": problem.prompt}
            if "answer" in problem.columns:
                record["answer"] = problem.columns["answer"]
            record[SINGLE_SHOT] = [_written(answer) for answer in answers_N[:samples]]
            if answers_N[samples:]:
                record["more_drafts"] = [_written(answer) for answer in answers_N[samples:]]
            records.append(record)
        # A group of its own for each draft: one answer beside an own draft, k beside the one that the oracle takes.
        if self._own is not None:
            refined_P = [
                self._draft(self._own, GroupId("eval", batch, place * samples + index), problem, [_unscored(draft)], 1)
                for place, (problem, answers_N) in enumerate(zip(problems, answers, strict=True))
                for index, draft in enumerate(answers_N[:samples])
            ]
            self._refine(self._own, records, problems, refined_P, batch, WITH_DRAFT)
        if self._oracle is not None:
            refined_P = [
                self._draft(
                    self._oracle, GroupId("eval", batch, place), problem, answers_N[: self._num_drafts], samples
                )
                for place, (problem, answers_N) in enumerate(zip(problems, answers, strict=True))
            ]
            self._refine(self._oracle, records, problems, refined_P, batch, WITH_ORACLE_DRAFT)
        return records

    def _draft(
        self, planner: Planner, group_id: GroupId, problem: Problem, drafts_N: Sequence[Sample], num_answers: int
    ) -> _Refined:
        """A group up to its answers."""
        group, planned = planner.next(planner.open(Question(group_id, problem.prompt), num_answers))
        if planned is not None and not planned.ask.final:
            group, planned = planner.next(planner.add(group, drafts_N))
        assert planned is not None, "the paper's mode fills all slots in its last round"
        return _Refined(group, planned)

    def _refine(
        self,
        planner: Planner,
        records: list[Record],
        problems: Sequence[Problem],
        refined_P: Sequence[_Refined],
        batch: int,
        measure: str,
    ) -> None:
        """Sample the answers of all groups, k of them a problem, and put them into the records."""
        samples = self._settings.samples
        prompts = [refined.planned.prompt for refined in refined_P for _ in range(refined.group.num_slots)]
        asked = [_Asked(problems[row // samples], self._codec.encode(prompt)) for row, prompt in enumerate(prompts)]
        answers = iter(self._answer(asked, batch, measure))
        row = 0
        for refined in refined_P:
            shown = refined.planned.ask.show
            of_group = [next(answers) for _ in range(refined.group.num_slots)]
            joined = planner.add(refined.group, of_group).samples[-len(of_group) :]
            for answer, sample in zip(of_group, joined, strict=True):
                written = _written(answer)
                # The own draft of a sample is the single-shot sample beside it; the oracle's is one for all samples.
                written["draft"] = row % samples if measure == WITH_DRAFT else shown
                if shown is None:  # answered on q itself
                    assert refined.planned.ask.cause is not None
                    written["plain"] = refined.planned.ask.cause.value
                else:
                    written["copied"] = self._same_answer(sample.visible, refined.planned.shown_text)
                    written["draft_shortened"] = refined.planned.shortened
                records[row // samples].setdefault(measure, []).append(written)
                row += 1

    def _answer(self, asked: Sequence[_Asked], batch: int, measure: str) -> list[Sample]:
        completions: list[Completion] = []
        for start in range(0, len(asked), self._batch_size):
            part = asked[start : start + self._batch_size]
            seed = derived_seed(self._settings.seed, batch, measure, start)
            for ids in self._engine.sample([one.ids for one in part], self._sampling, seed):
                ended = bool(ids) and ids[-1] in self._engine.end_ids
                text = self._codec.decode(ids[:-1] if ended else ids)
                completions.append(Completion(text, len(ids), ended))
            self._on_sampled(len(part))
        return self._scorer.score([one.problem for one in asked], completions)

    def _same_answer(self, text: str, draft: str) -> bool:
        extract = self._plugins.hook.extract_answer
        return bool(extract(text=text) == extract(text=draft))


def measured_config(refine: RefineConfig) -> RefineConfig:
    """Settings under which every problem gets its q': what training leaves plain or untrained is still asked."""
    return refine.replace(
        enabled=True,
        mode="paper",
        mode_options={},
        refine_share=1.0,
        trace_dir=None,
        on_no_draft="error" if refine.on_no_draft == "error" else "plain",
    )


def _grouped(answers: Sequence[Sample], size: int) -> list[list[Sample]]:
    return [list(answers[start : start + size]) for start in range(0, len(answers), size)]


def _unscored(answer: Sample) -> Sample:
    return replace(answer, reward=0.0, outcome=Outcome.OK, detail="")


def _written(answer: Sample) -> Record:
    record: Record = {
        "text": answer.text,
        "reward": answer.reward,
        "tokens": answer.num_tokens,
        "finished": answer.finished,
    }
    if not answer.usable:
        record["failure"] = answer.outcome.value + (f": {answer.detail}" if answer.detail else "")
    return record
