"""Planner: the one decision path of all hosts. What is sampled next, on which prompt, what it comes to in the end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from refine_wrapper.core.failures import describe
from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules, Tally
from refine_wrapper.core.modes.wrappers import FittingQuestions, Share
from refine_wrapper.core.prompts.builder import PromptBuilder
from refine_wrapper.core.selection.interface import Selector
from refine_wrapper.core.types import (
    Cause,
    End,
    Group,
    Outcome,
    PlannedRound,
    Progress,
    PromptRoom,
    Question,
    Round,
    Sample,
    Slot,
    TrainUnder,
    Use,
)
from refine_wrapper.errors import PluginError, PromptError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.plugins.options import build
from refine_wrapper.settings.config import RefineConfig

_SHORTEST_LAST: Final = 2**20
"""More tokens than any sample has."""

_RECENT_STEPS: Final = 8
"""Steps whose results modes that learn from them are told."""


class Planner:
    """Decides for one run. Keeps no group: a :class:`GroupSoFar` is a value that goes in and comes out.

    Args:
        config: The resolved settings.
        room: How the host tokenises prompts and how long one may get.
        plugins: The loaded plugins; by default the installed ones and those the configuration names.

    Raises:
        ConfigError, PluginError, TemplateError: At construction, so that a run fails before anything is sampled.
    """

    def __init__(self, config: RefineConfig, room: PromptRoom, plugins: Plugins | None = None) -> None:
        self.config = config
        self.plugins = Plugins(config.plugin_modules) if plugins is None else plugins
        self.room = room
        self.prompts = PromptBuilder(config, self.plugins, room)
        self.rules = make_rules(config, self.plugins)
        self.mode = make_mode(config, self.plugins)
        share = config.refine_share if config.active else 0.0
        self._asked = FittingQuestions(Share(self.mode, share), self._fits)
        self._recent: deque[tuple[int, dict[str, Tally]]] = deque(maxlen=_RECENT_STEPS)

    def open(
        self,
        question: Question,
        num_slots: int,
        progress: Progress | None = None,
        *,
        remembered: Sequence[Sample] = (),
    ) -> GroupSoFar:
        """A group before its first round."""
        return GroupSoFar(
            question,
            num_slots,
            self.rules,
            progress or Progress(question.id.step),
            remembered=tuple(remembered),
            lately=self._lately(question.id.step),
        )

    def next(self, group: GroupSoFar) -> tuple[GroupSoFar, PlannedRound | None]:
        """Ask the mode for the next round and build its prompt; None: the group has ended.

        The planned round's ``priority`` is 0 for rounds that something waits for. Final rounds come after them, those
        of groups with long samples first: answers to one prompt resemble each other in length, and a long one that
        starts last keeps a nearly empty engine busy.

        Raises:
            NoDraftError: If nothing can be shown and ``on_no_draft`` is ``error``.
            PluginError: If the mode's answer is none; naming plugin, mode, and what is allowed.
        """
        while group.end is None:
            if group.rounds and group.rounds[-1].ask.final:
                return replace(group, end=_end_of(group)), None
            answer: Any = self._asked.next(group)
            self._check(group, answer)
            if isinstance(answer, End):
                return replace(group, end=answer), None
            planned = self._plan(group, answer)
            if isinstance(planned, Cause):
                assert answer.show is not None, "q itself is never refused"
                group = replace(group, refused={**group.refused, answer.show: planned})
                continue
            return replace(group, rounds=(*group.rounds, planned)), planned
        return group, None

    def scored(self, sample: Sample, reward: Any) -> Sample:
        """A sample with what the host's reward path returned for it. Never raises: one bad reward must not end a run.

        Args:
            sample: As sampled; one that failed already stays as it is.
            reward: Anything a reward function returns for one sample: a float, a 0-d array, ``[x]``, None.
        """
        return with_reward(sample, reward, self.plugins)

    def add(self, group: GroupSoFar, samples: Sequence[Sample], *, seconds: float = 0.0) -> GroupSoFar:
        """The group with the samples of the round that was planned last, in order."""
        planned = group.rounds[-1]
        held = self._held(planned, samples)
        joined = tuple(self._join(planned, place, sample, held[place]) for place, sample in enumerate(samples))
        slots = group.slots
        if planned.ask.use is Use.FILL:
            slots = (*slots, *(sample.index for sample in joined))
        rounds = (*group.rounds[:-1], replace(planned, seconds=seconds))
        question = self._measured(group.question, samples) if planned.ask.show is None else group.question
        return replace(group, question=question, samples=(*group.samples, *joined), rounds=rounds, slots=slots)

    def slot_of(self, planned: PlannedRound, sample: Sample, index: int) -> Slot:
        """What a sample of a round that fills slots comes to in its slot, as far as it alone decides that."""
        under = self._trains_under(planned.ask.train_under)
        right = sample.reward is not None and sample.reward >= self.rules.max_reward
        on_question = planned.ask.show is not None and (
            under is TrainUnder.QUESTION or (under is TrainUnder.QUESTION_IF_RIGHT and right)
        )
        return Slot(index, on_question, planned.ask.trained)

    def close(self, group: GroupSoFar, *, step: int | None = None) -> Group:
        """The finished group. One that was torn down has what it got so far."""
        end = group.end or _end_of(group)
        slots: list[Slot] = []
        for index in group.slots:
            taker = end.takes.get(index)
            if taker is None:
                sample = group.samples[index]
                slots.append(self.slot_of(group.rounds[sample.round], sample, index))
            else:
                taken_on_question = (
                    group.samples[taker].shown is not None
                    and self._trains_under(end.train_under) is not TrainUnder.SAMPLED
                )
                slots.append(Slot(taker, taken_on_question))
        asked = [planned for planned in group.rounds if planned.ask.show is not None]
        shown = [sample for sample in group.samples if sample.shown is not None]
        cause = end.cause
        if asked and shown:
            cause = Cause.NOT_HELD if all(sample.held is False for sample in shown) else None
        tied = 1
        if asked and asked[-1].ask.show is not None:
            chosen = group.samples[asked[-1].ask.show].reward
            others = [s for s in group.samples if s.usable and s.round < asked[-1].number]
            tied = sum(sample.reward == chosen for sample in others)
        return Group(
            question=group.question,
            mode=self.config.mode,
            num_slots=group.num_slots,
            samples=tuple(replace(sample, prompt_ids=None) for sample in group.samples),
            rounds=group.rounds,
            slots_S=tuple(slots),
            cause=cause,
            reason=end.reason,
            selector=self.rules.selector_name,
            num_tied=tied,
            step=group.progress.step if step is None else step,
        )

    def note(self, groups_P: Iterable[Group]) -> None:
        """Remember what came out of the choices of modes that learn from it; groups of later steps are told."""
        for group in groups_P:
            arms = [planned for planned in group.rounds if planned.ask.arm]
            if not arms or group.id.purpose != "train":
                continue
            if not self._recent or self._recent[-1][0] != group.id.step:
                self._recent.append((group.id.step, {}))
            tallies = self._recent[-1][1]
            for planned in arms:
                known = tallies.get(planned.ask.arm, Tally())
                solved = any(
                    sample.round == planned.number
                    and sample.reward is not None
                    and sample.reward >= self.rules.max_reward
                    for sample in group.samples
                )
                tallies[planned.ask.arm] = Tally(known.tried + 1, known.solved + solved)

    def _measured(self, question: Question, samples: Sequence[Sample]) -> Question:
        """The question with what the host really added to it (tool schemas, images), where a sample on q tells."""
        fed = next((len(sample.prompt_ids) for sample in samples if sample.prompt_ids is not None), 0)
        extra = fed - self.prompts.question_tokens(question.prompt) if fed else 0
        return replace(question, extra_tokens=extra) if extra > question.extra_tokens else question

    def _fits(self, question: Question) -> bool:
        return self.prompts.question_fits(question.prompt, extra_tokens=question.extra_tokens)

    def _trains_under(self, asked: TrainUnder) -> TrainUnder:
        return asked if self.config.train_under is None else TrainUnder(self.config.train_under)

    def _lately(self, step: int) -> Mapping[str, Tally]:
        """Results of steps before this one alone: within a step groups end in any order."""
        total: dict[str, Tally] = {}
        for of_step, tallies in self._recent:
            if of_step < step:
                for arm, tally in tallies.items():
                    known = total.get(arm, Tally())
                    total[arm] = Tally(known.tried + tally.tried, known.solved + tally.solved)
        return total

    def _plan(self, group: GroupSoFar, ask: Round) -> PlannedRound | Cause:
        number, first = len(group.rounds), len(group.samples)
        priority = 0
        if ask.final and number:
            lengths = [sample.num_tokens for sample in group.samples if sample.num_tokens]
            priority = max(1, _SHORTEST_LAST - (sum(lengths) // len(lengths) if lengths else 0))
        elif ask.final:
            priority = 1
        if ask.show is None:
            return PlannedRound(number, first, ask, group.question.prompt, priority=priority)
        shown = group.samples[ask.show]
        try:
            built = self.prompts.build(
                group.question.prompt,
                shown.visible,
                token_ids=shown.token_ids,
                extra_tokens=group.question.extra_tokens,
            )
        except PromptError:
            return Cause.UNSUPPORTED_PROMPT
        if built is None:
            return Cause.NO_ROOM
        return PlannedRound(number, first, ask, built.prompt, built.draft_text, built.shortened, priority)

    def _held(self, planned: PlannedRound, samples: Sequence[Sample]) -> list[bool | None]:
        """Whether the tokens of each sample's prompt hold what the round shows; each prompt is looked at once."""
        if planned.ask.show is None:
            return [None] * len(samples)
        known: dict[tuple[int, ...], bool] = {}
        for sample in samples:
            if sample.prompt_ids is not None and sample.prompt_ids not in known:
                known[sample.prompt_ids] = holds(self.room, sample.prompt_ids, planned.shown_text)
        return [sample.held if sample.prompt_ids is None else known[sample.prompt_ids] for sample in samples]

    def _join(self, planned: PlannedRound, place: int, sample: Sample, held: bool | None) -> Sample:
        visible = self.prompts.visible(
            planned.prompt, sample.text, token_ids=sample.token_ids, finished=sample.finished
        )
        outcome = sample.outcome
        if outcome is Outcome.OK and not visible.strip():
            outcome = Outcome.EMPTY
        return replace(
            sample,
            index=planned.first_index + place,
            round=planned.number,
            shown=planned.ask.show,
            held=held,
            visible=visible,
            outcome=outcome,
            prompt_ids=None,
        )

    def _check(self, group: GroupSoFar, answer: Any) -> None:
        wrong = _what_is_wrong(group, answer)
        if wrong:
            name = self.config.mode
            raise PluginError(
                f"refine: mode {name!r} of plugin {self.plugins.owner('mode', name)!r} answered for group "
                f"{group.question.id}: {wrong}"
            )


def with_reward(sample: Sample, reward: Any, plugins: Plugins) -> Sample:
    """:meth:`Planner.scored` where there is no planner."""
    if sample.outcome is not Outcome.OK:
        return sample
    if reward is None:
        return replace(sample, outcome=Outcome.NO_REWARD)
    try:
        answer: Any = plugins.hook.normalize_reward(reward=reward)
        number = None if answer is None else float(answer)
    except Exception as error:  # a plugin's or a reward's own trouble, whatever it is, costs this sample only
        return replace(sample, outcome=Outcome.REWARD_EXCEPTION, detail=describe(error))
    if number is None:
        return replace(sample, outcome=Outcome.WRONG_LENGTH, detail=f"not one number: {reward!r:.200}")
    if not math.isfinite(number):
        return replace(sample, outcome=Outcome.NON_FINITE, detail=str(number))
    return replace(sample, reward=number)


def make_rules(config: RefineConfig, plugins: Plugins) -> Rules:
    """What is the same for all groups of a run.

    Raises:
        PluginError, ConfigError: For a selector that is not there, or options that it does not take.
    """
    selector: Selector = build(plugins, "selector", config.selector, config.selector_options)
    defaults = {"num_drafts": config.num_drafts}
    return Rules(
        selector,
        config.selector,
        config.seed,
        config.max_reward,
        config.on_no_draft,
        lambda name, options: build(plugins, "mode", name, options, defaults),
    )


def make_mode(config: RefineConfig, plugins: Plugins) -> Mode:
    """The configured mode with its options.

    Raises:
        PluginError, ConfigError: For a mode that is not there, or options that it does not take.
    """
    return build(plugins, "mode", config.mode, config.mode_options, {"num_drafts": config.num_drafts})


def holds(room: PromptRoom, prompt_ids: Sequence[int], shown_text: str) -> bool:
    """Whether the tokens of a prompt hold a text; white space, which tokenizers may change, is not compared."""
    text = "".join(room.tokenizer.decode(list(prompt_ids), skip_special_tokens=False).split())
    wanted = "".join(shown_text.split())
    if wanted in text:
        return True
    # Some tokenizers change what they encode (case, accents): compare with what becomes of the text there.
    again = room.tokenizer.decode(
        room.tokenizer.encode(shown_text, add_special_tokens=False), skip_special_tokens=False
    )
    return "".join(again.split()) in text


def _end_of(group: GroupSoFar) -> End:
    """The end of a group whose mode has nothing more to say: its last round was final, or it was torn down."""
    last = group.rounds[-1].ask if group.rounds else None
    return End(cause=last.cause, reason=last.reason) if last is not None and last.final else End()


def _what_is_wrong(group: GroupSoFar, answer: Any) -> str:
    """Why a mode's answer cannot be carried out, and what is allowed; empty if it can."""
    if isinstance(answer, End):
        for old, new in answer.takes.items():
            if old not in group.slots or not 0 <= new < len(group.samples) or new in group.slots:
                return f"End(takes={{{old}: {new}}}). Allowed are slots {list(group.slots)} -> samples outside of them."
        if group.slots_left:
            return (
                f"End with {group.slots_left} of {group.num_slots} slots empty. Fill them first, for example with "
                "group.plain(...)."
            )
        return ""
    if not isinstance(answer, Round):
        return f"{answer!r:.200}. Allowed are a Round or an End."
    if answer.size < 1:
        return f"Round(size={answer.size}). Allowed is 1 or more."
    if answer.use is Use.FILL and answer.size > group.slots_left:
        return f"Round(size={answer.size}, Use.FILL) with {group.slots_left} slots left."
    if answer.final and (answer.use is not Use.FILL or answer.size != group.slots_left):
        return f"a final Round that does not fill all {group.slots_left} slots left."
    if answer.show is not None:
        allowed = [sample.index for sample in group.candidates]
        if answer.show not in allowed:
            return f"Round(show={answer.show}). Allowed are {allowed}, the samples that can be shown."
    return ""
