"""What is sampled for each problem: single-shot, with an own draft, with the draft that the reward chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import DraftOutcome, GroupPlan, PromptRoom, Refinement, SampledDraft
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
        self._own = Refiner(own, room, plugins, observe=False) if settings.with_own_draft else None
        self._oracle = Refiner(everyone, room, plugins, observe=False) if settings.with_oracle_draft else None

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
        refiner = self._own or self._oracle
        if refiner is not None:
            try:
                overhead = refiner.prompts.overhead_tokens(fitting[0].prompt)
            except PromptError as error:
                raise ConfigError(f"{error} Measure without a draft: --draft none.") from None
            check_room(
                limit,
                overhead_tokens=overhead,
                draft_tokens=refiner.config.draft_tokens,
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
        if self._own is not None:
            plans = [
                [self._plan(self._own, f"{problem.id}/{index}", problem, [_unscored(draft)])]
                for problem, answers_N in zip(problems, answers, strict=True)
                for index, draft in enumerate(answers_N[:samples])
            ]
            self._refine(records, problems, [plan for (plan,) in plans], batch, WITH_DRAFT)
        if self._oracle is not None:
            plans_P = [
                self._plan(self._oracle, problem.id, problem, [_scored(d) for d in answers_N[: self._num_drafts]])
                for problem, answers_N in zip(problems, answers, strict=True)
            ]
            self._refine(records, problems, [p for p in plans_P for _ in range(samples)], batch, WITH_ORACLE_DRAFT)
        return records

    def _plan(self, refiner: Refiner, group_id: str, problem: Problem, drafts_N: list[SampledDraft]) -> GroupPlan:
        return refiner.plan(group_id, problem.prompt, drafts_N)

    def _refine(
        self, records: list[Record], problems: Sequence[Problem], plans: list[GroupPlan], batch: int, measure: str
    ) -> None:
        """Sample one answer for every plan, k of them a problem, and put them into the records."""
        samples = self._settings.samples
        asked = [_Asked(problems[row // samples], self._codec.encode(plan.prompt)) for row, plan in enumerate(plans)]
        answers = self._answer(asked, batch, measure)
        for row, (plan, answer) in enumerate(zip(plans, answers, strict=True)):
            written = _written(answer)
            # The own draft of a sample is the single-shot sample beside it; the oracle's is one for all samples.
            chosen = plan.selection.draft.index if plan.selection is not None else None
            written["draft"] = row % samples if measure == WITH_DRAFT else chosen
            if plan.cause is not None:
                written["plain"] = plan.cause.value  # answered on q itself
            else:
                written["copied"] = self._same_answer(answer.text, plan.draft_text)
                written["draft_shortened"] = plan.draft_shortened
            records[row // samples].setdefault(measure, []).append(written)

    def _answer(self, asked: Sequence[_Asked], batch: int, measure: str) -> list[Refinement]:
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
        plan="paper",
        refine_share=1.0,
        trace_dir=None,
        on_no_draft="error" if refine.on_no_draft == "error" else "plain",
    )


def _grouped(answers: Sequence[Refinement], size: int) -> list[list[Refinement]]:
    return [list(answers[start : start + size]) for start in range(0, len(answers), size)]


def _unscored(answer: Refinement) -> SampledDraft:
    return SampledDraft(answer.text, 0.0, answer.num_tokens, answer.finished)


def _scored(answer: Refinement) -> SampledDraft:
    failure = DraftOutcome.NO_REWARD if answer.failure else None
    return SampledDraft(answer.text, answer.reward, answer.num_tokens, answer.finished, failure, answer.failure)


def _written(answer: Refinement) -> Record:
    record: Record = {
        "text": answer.text,
        "reward": answer.reward,
        "tokens": answer.num_tokens,
        "finished": answer.finished,
    }
    if answer.failure:
        record["failure"] = answer.failure
    return record
