"""The command: plan, warm start, both arms per seed, report. A finished arm is not trained again."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from refine_wrapper.errors import RefineError

_SECONDS = {"warm start step": 0.07, "plain step": 0.26, "refined step": 0.3}
"""Rough costs on two cores, for the plan that is shown first."""
_EXTRA = ("trl", "torch", "transformers", "datasets", "accelerate", "reasoning_gym", "matplotlib", "pandas", "pyarrow")
"""What the extra `demo` installs, and what comes with it."""
_PLAN = """# What `refine-wrapper demo` trains: plain at 8 completions, refined at 4 + 4.
# Held-out accuracy on the way is of 200 problems with one answer each, at the end of all problems.
"""


class DemoError(RefineError, ImportError):
    """What the demo needs is not installed."""


@click.command()
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1), help="How many seeds, each with both arms."
)
@click.option("--steps", default=150, show_default=True, type=click.IntRange(1), help="RL steps of each arm.")
@click.option(
    "--objective",
    default="grpo",
    show_default=True,
    type=click.Choice(["grpo", "dapo", "dr_grpo", "rloo"]),
    help="The base objective that is wrapped.",
)
@click.option(
    "--out",
    default="runs/demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for models, traces, table and picture. Arms that are finished there are not trained again.",
)
@click.option("--prompts", default=32, show_default=True, type=click.IntRange(1), help="Prompts per step.")
@click.option("--warm-start-steps", default=250, show_default=True, type=click.IntRange(1), help="Supervised steps.")
@click.option("--problems", default=500, show_default=True, type=click.IntRange(2), help="Held-out problems.")
@click.option("--dry-run", is_flag=True, help="Show the plan and what it costs; train nothing.")
def demo(
    seeds: int, steps: int, objective: str, out: Path, prompts: int, warm_start_steps: int, problems: int, dry_run: bool
) -> None:
    """Train a tiny Llama on reasoning-gym palindromes with real TRL: plain at 8 completions, refined at 4 + 4.

    Same seed, problems and prompts per step in both arms. Reports held-out accuracy, cost and diagnostics, whichever
    arm is ahead. Ctrl-C leaves a report of what was done so far; the same command goes on from there.
    """
    console = Console()
    seconds = seeds * (
        warm_start_steps * _SECONDS["warm start step"]
        + steps * (_SECONDS["plain step"] + _SECONDS["refined step"]) * prompts / 32
    )
    console.print(
        f"{seeds} seed(s) x 2 arms x {steps} steps of {prompts} prompts, objective {objective}; plain: 8 completions a "
        f"prompt, refined: 4 drafts + 4 refinements. {problems} held-out problems. About {max(1, round(seconds / 60))} "
        f"minute(s) on two quiet cores. Everything goes to {out}."
    )
    if dry_run:
        return
    settings = {
        "steps": steps,
        "objective": objective,
        "prompts": prompts,
        "warm": warm_start_steps,
        "problems": problems,
    }
    try:
        _train(console, out, seeds, settings)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise DemoError(
            f"refine: the demo needs {error.name}, which is not installed. Install it with: "
            "pip install 'refine-wrapper[demo]'"
        ) from error


def _train(console: Console, out: Path, seeds: int, settings: dict[str, Any]) -> None:
    _claim(out, settings)
    _quiet()
    with console.status("Loading TRL"):
        from refine_wrapper_demo.arms import Plan
        from refine_wrapper_demo.task import Task
    plan = Plan(settings["steps"], settings["prompts"], settings["objective"])
    run = _Run(console, out, Task(num_held_out=settings["problems"]), plan, settings["warm"])
    started = time.perf_counter()
    interrupted = False
    try:
        for seed in range(seeds):
            run.seed(seed)
    except KeyboardInterrupt:
        interrupted = True
        console.print("\nInterrupted. What was done so far:")
    run.report()
    console.print(f"{time.perf_counter() - started:.0f} seconds in all.")
    if interrupted:
        console.print("The same command goes on: finished arms are kept.")
        raise SystemExit(130)


class _Run:
    """One demo run in one folder."""

    def __init__(self, console: Console, out: Path, task: Any, plan: Any, warm_start_steps: int) -> None:
        self._console, self._out, self._task, self._plan, self._warm_steps = console, out, task, plan, warm_start_steps
        self._start: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    def seed(self, seed: int) -> None:
        """Warm start and both arms of one seed."""
        from refine_wrapper_demo.arms import ARMS, RESULT_FILE, run_arm, warm_start_accuracy
        from refine_wrapper_demo.warm_start import warm_start

        folder = self._out / f"seed-{seed}"
        model, start = folder / "warm-start", folder / "warm-start.json"
        if not start.exists():
            self._with_bar(
                f"seed {seed}, warm start",
                self._warm_steps,
                lambda tick: warm_start(model, self._task, seed, self._warm_steps, tick),
            )
            _write(start, asdict(warm_start_accuracy(model, self._task)))
        self._start.append(json.loads(start.read_text(encoding="utf-8")))
        for arm in ARMS:
            cell = self._out / "cells" / f"{arm}-{seed}"
            result = cell / RESULT_FILE
            if not result.exists():
                self._with_bar(
                    f"seed {seed}, {arm}",
                    self._plan.steps,
                    lambda tick, arm=arm, cell=cell: run_arm(arm, model, self._task, cell, self._plan, seed, tick),
                )
            self._results.append(json.loads(result.read_text(encoding="utf-8")))

    def report(self) -> None:
        """Table, sentence and picture of whatever there is."""
        from refine_wrapper_demo.report import LEGEND, markdown, picture, rows, table, verdict
        from refine_wrapper_demo.results import write_results

        title = f"palindromes of {self._task.letters} letters, {self._plan.objective}, {self._plan.steps} steps"
        listed = rows(self._start, self._results)
        self._console.print(table(title, listed))
        said = verdict(self._results)
        self._console.print(said)
        self._console.print("A tiny model on a toy task: this says nothing about yours. Run it on yours.")
        _write(self._out / "report.md", f"# {title}\n\n{markdown(listed)}\n{LEGEND}\n\n{said}\n")
        _write(self._out / "results.json", {"warm_start": self._start, "arms": self._results})
        write_results(self._out, self._plan.objective)
        drawn = picture(self._out, title)
        if drawn is not None:
            self._console.print(f"Curves: {drawn}\nGroups: {self._out}/cells/refined-*/trace/groups.jsonl")

    def _with_bar(self, what: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(what, total=total)
            work(lambda done: progress.update(bar, completed=done))


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds a run with other settings: its arms must not be mixed with these."""
    file = out / "settings.json"
    if file.exists():
        there = json.loads(file.read_text(encoding="utf-8"))
        if there != settings:
            changed = ", ".join(
                f"{name}: {there.get(name)} there, {value} now"
                for name, value in settings.items()
                if there.get(name) != value
            )
            raise click.ClickException(
                f"{out} holds a run with other settings ({changed}). Give --out another folder, or remove it."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    _write(file, settings)
    _write(out / "plan.yaml", _PLAN + "".join(f"{name}: {value}\n" for name, value in settings.items()))


def _write(path: Path, content: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, indent=2)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _quiet() -> None:
    """Bars and table are the output; what the libraries say about a toy model is not. Nothing is fetched."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|trl|accelerate)\..*")
    warnings.filterwarnings("ignore", category=FutureWarning)
