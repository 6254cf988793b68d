"""``refine-wrapper eval``: held-out accuracy of a model, whichever host trained it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from refine_wrapper.cli.settings import SettingsCommand, given_flags, plugin_option, resolve_settings
from refine_wrapper.errors import ConfigError
from refine_wrapper.study.evaluation import EvaluationSettings, Job
from refine_wrapper.study.evaluation import Progress as Done
from refine_wrapper.study.evaluation.journal import ANSWERS_FILE, RESULT_FILE, Journal, read_identity
from refine_wrapper.study.evaluation.screen import LEGEND, notes, table

_INTERRUPTED: Final = 130
_FIELDS: Final = EvaluationSettings.model_fields


def _option(*names: str, **attributes: Any) -> Any:
    """An option for a field of EvaluationSettings, with the field's default and description."""
    field = _FIELDS[names[-1].lstrip("-").replace("-", "_")]
    if "type" not in attributes and isinstance(field.default, (int, float, str)):
        attributes["type"] = type(field.default)
    shown = field.default is not None
    return click.option(*names, default=field.default, show_default=shown, help=field.description, **attributes)


@click.command(cls=SettingsCommand, interspersed=True)
@click.argument("model")
@click.argument("data")
@_option("--prompt-field", metavar="NAME")
@_option("--answer-field", metavar="NAME")
@_option("--reward", metavar="REWARD")
@_option("--correct-at", type=float)
@_option("--draft", "draft_choice", type=click.Choice(["own", "oracle", "both", "none"]))
@_option("--samples")
@_option("--temperature")
@_option("--top-p")
@_option("--top-k")
@_option("--max-new-tokens")
@_option("--seed")
@_option("--limit", type=int)
@_option("--system", metavar="TEXT")
@click.option("--chat/--no-chat", default=None, help=f"{_FIELDS['chat'].description}  [default: auto]")
@click.option("--chat-arg", "chat_args", multiple=True, metavar="NAME=VALUE", help="A variable of the chat template.")
@_option("--engine", type=click.Choice(["auto", "transformers", "vllm"]))
@click.option(
    "--engine-option",
    "engine_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Handed to vllm.LLM or from_pretrained as it is: tensor_parallel_size=2, revision=main, dtype=bfloat16.",
)
@_option("--batch-size", type=int)
@_option("--max-model-tokens", type=int)
@_option("--too-long", type=click.Choice(["error", "skip"]))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder for answers.jsonl and evaluation.json. The same command goes on where it was stopped.  [default: "
    "runs/eval/MODEL-DATA]",
)
@click.option("--fresh", is_flag=True, help="Throw away what is in --out, and start anew.")
@click.option("--dry-run", is_flag=True, help="Show what would be sampled and written; load no model.")
@plugin_option
@click.pass_context
def evaluate(
    context: click.Context,
    model: str,
    data: str,
    chat: bool | None,
    chat_args: tuple[str, ...],
    engine_options: tuple[str, ...],
    out: Path | None,
    fresh: bool,
    dry_run: bool,
    plugin_modules: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure a model on held-out problems, single-shot and with a draft of its own.

    \b
    MODEL is a folder, a PEFT adapter's folder or a hub id. DATA is a file with
    prompt and answer, or a task of reasoning-gym:
        refine-wrapper eval out/checkpoint-500 test.jsonl --samples 8
        refine-wrapper eval out 'reasoning-gym:simple_equations?seed=7&size=200' \\
            --max-new-tokens 256 --refine.template turns

    Reports avg@k and pass@j with standard errors over problems. --draft oracle also measures with the draft that the
    training reward selects among --refine.num_drafts; that looks at the held-out label, and is named an oracle.
    """
    settings = EvaluationSettings(
        data=data,
        chat="auto" if chat is None else "always" if chat else "never",
        chat_template_kwargs=_pairs(chat_args, "--chat-arg"),
        engine_options=_pairs(engine_options, "--engine-option"),
        **options,
    )
    refine = resolve_settings(given_flags(context), plugin_modules).config
    job = Job(settings, model, refine=refine)
    out = out or Path("runs") / "eval" / f"{_slug(model)}-{_slug(data)}"
    console = Console(markup=False, highlight=False, emoji=False)
    _describe(console, job, out)
    if dry_run:
        _show_state(console, out, fresh)
        return
    journal = Journal(out, job.identity, fresh=fresh)
    try:
        evaluation = _run(console, job, journal)
    except KeyboardInterrupt:
        again = shlex.join(["refine-wrapper", "eval", *(a for a in sys.argv[2:] if a != "--fresh")])
        console.print(f"\nInterrupted; finished batches are in {out / ANSWERS_FILE}. To go on:\n{again}")
        context.exit(_INTERRUPTED)
    finally:
        journal.close()
    console.print(table(evaluation))
    console.print(LEGEND)
    for note in notes(evaluation):
        console.print(note)
    console.print(f"Figures: {out / RESULT_FILE}\nAnswers: {out / ANSWERS_FILE}")


def _run(console: Console, job: Job, journal: Journal) -> Any:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    _quiet()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("loading", total=None)
        started = False

        def note(done: Done) -> None:
            nonlocal started
            if not started:  # anew: the time left is taken from what this call samples
                started = True
                progress.reset(bar, total=done.total, completed=done.before, description="completions")
            progress.update(bar, completed=done.done)

        return job.run(journal, note)


def _describe(console: Console, job: Job, out: Path) -> None:
    settings, count = job.settings, len(job.problems.problems)
    reward = job.identity["reward"]
    console.print(
        f"{count} problems of {job.problems.source}; {', '.join(settings.measures)}, {settings.samples} samples each; "
        f"reward {reward['name']}, right from {job.correct_at:g}; engine {job.engine_name}.\n{job.completions} "
        f"completions, at most {job.completions * settings.max_new_tokens:,} generated tokens. All of it goes to {out}."
    )


def _show_state(console: Console, out: Path, fresh: bool) -> None:
    there = out / ANSWERS_FILE
    if fresh or read_identity(out) is None or not there.is_file():
        console.print(f"Would write {ANSWERS_FILE}, settings.json and {RESULT_FILE}. Nothing was loaded or written.")
        return
    answered = there.read_bytes().count(b"\n")
    console.print(
        f"{out} has answers to {answered} problems; with the same settings they are kept. Nothing was loaded."
    )


def _pairs(given: Sequence[str], flag: str) -> Mapping[str, Any]:
    pairs: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"refine: {flag} {pair!r}: write NAME=VALUE.")
        pairs[name] = yaml.safe_load(value)
    return pairs


def _slug(name: str) -> str:
    """A name as part of a folder's: the end of a path, without what shells and file systems dislike."""
    tail = name.rstrip("/").removeprefix("reasoning-gym:").partition("?")[0]
    parts = [part for part in tail.split("/") if part not in (".", "..", "~")]
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in "-".join(parts[-2:]))


def _quiet() -> None:
    """The bar and the table are the output; bars of the libraries would break it."""
    import logging
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("transformers").setLevel(logging.ERROR)
