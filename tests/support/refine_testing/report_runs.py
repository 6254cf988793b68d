"""Makes run folders as `refine-wrapper ablate` leaves them, without training: numbers from a seeded generator.

A STAND-IN for a run, for tests of the report alone. Groups are planned by the real Planner in any mode, and traced by the real
TraceWriter; what a model would say and a reward would pay is drawn.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from refine_wrapper.core.planner import Planner
from refine_wrapper.core.trace import TraceWriter
from refine_wrapper.core.types import Group, GroupId, Outcome, PromptRoom, Question, Sample
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror=\"window.hacked = 2\"><svg onload='window.hacked = 3'>",
    "</script><script>window.hacked = 4</script>",
    "<!--<script> \u2028 \u2029 {{ 7 * 7 }} </pre></body> & &lt;b&gt;",
)
"""Drafts that would run, close an element or expand, were they taken for anything but text."""

COLUMNS = (
    "cell", "host", "objective", "task", "refined", "mode", "num_drafts", "group_size", "selector", "template", "share", "options",
    "seed", "metric", "step", "completions", "tokens", "seconds", "value",
)  # fmt: skip


def make_run(
    folder: Path,
    *,
    objectives: Sequence[str] = ("grpo", "dapo"),
    tasks: Sequence[str] = ("palindrome", "sort"),
    seeds: int = 3,
    steps: int = 60,
    prompts: int = 8,
    hostile: bool = True,
    failed: bool = True,
) -> Path:
    """A folder as `refine-wrapper ablate` leaves it: plain 8 against 4 + 4 for each objective and task."""
    rows: list[dict[str, Any]] = []
    (folder / "cells").mkdir(parents=True)
    (folder / "plan.yaml").write_text("hosts: [trl]\nbudget: completions\n", encoding="utf-8")
    for task in tasks:
        for objective in objectives:
            for refined in (False, True):
                for seed in range(seeds):
                    cell = _Cell(task, objective, refined, seed)
                    rows += cell.rows(steps, prompts)
                    cell.leave(folder / "cells" / cell.name, steps, prompts, hostile=hostile)
    if failed:
        broken = _Cell(tasks[0], "gspo", True, 0)
        broken.leave(folder / "cells" / broken.name, 0, prompts, hostile=False, why="exit code 1 in the command")
        (folder / "cells" / broken.name / "log.txt").write_text(
            "".join(f"line {n}\n" for n in range(100)) + "RuntimeError: <b>out of memory</b>\n", encoding="utf-8"
        )
    pd.DataFrame(rows, columns=list(COLUMNS)).to_parquet(folder / "results.parquet")
    return folder


def make_trace(
    folder: Path,
    steps: int = 40,
    prompts: int = 8,
    *,
    texts: bool = True,
    hostile: bool = False,
    seed: int = 0,
    plain_share: float = 0.15,
    skill: float = 0.3,
    gain: float = 0.15,
    **settings: Any,
) -> Path:
    """A trace as `--refine.trace_dir` leaves it, of groups with 4 slots; by default with texts.

    In a share of groups no draft has a reward: some of them stay plain, others are not trained. ``skill`` is the chance
    of a right first sample at the start, which grows by 0.5, and ``gain`` what later rounds have more.
    """
    writer = TraceWriter(folder, texts=texts)
    draw = random.Random(seed)
    room = PromptRoom(_Characters(), lambda prompt: len(str(prompt)))
    kept: tuple[Literal["plain", "skip"], ...] = ("plain", "skip")
    planners = [
        Planner(RefineConfig(on_no_draft=policy, **settings), room, Plugins(entry_points=False)) for policy in kept
    ]
    for step in range(1, steps + 1):
        for place in range(prompts):
            is_hostile = hostile and place == 0
            works = is_hostile or draw.random() >= plain_share
            question_id = GroupId("train", step, place)
            chances = (skill + 0.5 * step / steps, skill + 0.5 * step / steps + gain)
            writer.write(_group(draw.choice(planners), draw, question_id, chances, works=works, hostile=is_hostile))
    return folder


class _Characters:
    """A STAND-IN for a tokenizer: a token is a character, and there is no chat template."""

    def __init__(self) -> None:
        self.chat_template: Any = None
        self.all_special_tokens: list[str] = []
        self.all_special_ids: list[int] = []
        self.unk_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, token_ids))

    def get_added_vocab(self) -> Mapping[str, int]:
        return {}

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        raise ValueError("no chat template")


class _Cell:
    def __init__(self, task: str, objective: str, refined: bool, seed: int) -> None:
        self.refined, self.seed = refined, seed
        self.name = f"{task}-{objective}-{'refined' if refined else 'plain'}-{seed}"
        self.settings: dict[str, Any] = {
            "cell": self.name,
            "host": "trl",
            "objective": objective,
            "refined": refined,
            "mode": "paper" if refined else None,
            "num_drafts": 4 if refined else 0,
            "group_size": 4 if refined else 8,
            "selector": "best" if refined else None,
            "template": "append" if refined else None,
            "share": 1.0 if refined else None,
            "options": None,
            "task": task,
            "seed": seed,
        }

    def rows(self, steps: int, prompts: int) -> list[dict[str, Any]]:
        """The cell's part of the results table."""
        draw = random.Random(self.name)
        rows: list[dict[str, Any]] = []
        tokens = seconds = 0.0
        shift = (0.06 if self.refined else 0.0) * (1 if self.settings["objective"] == "grpo" else 0.2)
        for step in range(1, steps + 1):
            done = step / steps
            tokens += prompts * 8 * draw.uniform(9, 12)
            seconds += draw.uniform(0.22, 0.3) * (1.15 if self.refined else 1.0)
            learned = 0.3 + (0.45 + (0.1 if self.refined else 0)) * (1 - math.exp(-3 * done))
            values = {
                "reward": learned + draw.gauss(0, 0.05),
                "entropy": 0.75 * math.exp(-(1.4 if self.refined else 2.0) * done) + 0.08 + draw.gauss(0, 0.015),
                "loss": draw.gauss(0, 0.02),
                "completion_length": 10 + draw.gauss(0, 0.4),
                "host/grad_norm": abs(draw.gauss(1, 0.2)),
                "refine/gradient_active_share": min(1.0, max(0.0, 0.8 - 0.4 * done + draw.gauss(0, 0.07))),
            }
            if self.refined:
                values |= {
                    "refine/gradient_active_share_draft_below_max": min(1.0, max(0.0, 0.7 + draw.gauss(0, 0.1))),
                    "refine/copy_rate": min(1.0, max(0.0, 0.35 + 0.5 * done + draw.gauss(0, 0.05))),
                    "refine/uplift": 0.2 * (1 - done) + draw.gauss(0, 0.03),
                    "refine/draft_reward_mean": learned - 0.1,
                    "refine/refinement_reward": learned,
                }
                if draw.random() < 0.7:  # not in every batch is there a draft at the maximum
                    values["refine/gradient_active_share_draft_max"] = max(0.0, 0.3 - 0.2 * done + draw.gauss(0, 0.05))
            if step == steps:
                accuracy = 0.66 - shift + draw.gauss(0, 0.012)
                values |= {
                    "eval/single_shot": accuracy,
                    "eval/single_shot/se": 0.015,
                    "eval/with_draft": accuracy + (0.05 if self.refined else -0.02) + draw.gauss(0, 0.01),
                    "eval/pass@4": min(1.0, accuracy + 0.2),
                }
            rows += [
                {
                    **self.settings,
                    "metric": metric,
                    "step": step,
                    "completions": float(step * prompts * 8),
                    "tokens": tokens,
                    "seconds": seconds,
                    "value": value,
                }
                for metric, value in values.items()
            ]
        return rows

    def leave(self, folder: Path, steps: int, prompts: int, *, hostile: bool, why: str = "") -> None:
        """The cell's folder."""
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(self.settings), encoding="utf-8")
        (folder / "log.txt").write_text("trained\n", encoding="utf-8")
        status = {"state": "failed" if why else "finished", "code": int(bool(why)), "seconds": 12.5, "why": why}
        (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
        if self.refined and steps:
            make_trace(folder / "trace", steps, prompts, hostile=hostile, seed=self.seed)


def _group(
    planner: Planner,
    draw: random.Random,
    group_id: GroupId,
    chances: tuple[float, float],
    *,
    works: bool,
    hostile: bool,
) -> Group:
    word = "".join(draw.choice("abcdefgh") for _ in range(6))
    right = word[::-1]
    question = Question(group_id, [{"role": "user", "content": f"Write {word} backwards."}])

    def sample(chance: float, shown: Sample | None, number: int) -> Sample:
        good = draw.random() < chance
        if shown is not None and draw.random() < 0.4:
            text, reward = shown.text, shown.reward or 0.0
        else:
            text = right if good else "".join(draw.sample(right, len(right)))
            text, reward = f"Reading from the end gives {text}.\n<answer>{text}</answer>", float(text == right)
        text = f"{HOSTILE[number % 4]} {text}" if hostile and shown is None else text
        return Sample(text, num_tokens=draw.randint(8, 14), finished=draw.random() < 0.95, reward=reward)

    group = planner.open(question, 4)
    while True:
        group, planned = planner.next(group)
        if planned is None:
            return planner.close(group, step=group_id.step)
        shown = None if planned.ask.show is None else group.samples[planned.ask.show]
        chance = chances[min(planned.number, 1)]
        samples = [sample(chance, shown, number) for number in range(planned.ask.size)]
        if not works and not planned.number:
            samples = [replace(one, reward=None, outcome=Outcome.NO_REWARD) for one in samples]
        group = planner.add(group, samples, seconds=0.1)
