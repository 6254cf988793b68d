"""``refine-wrapper ablate``: a grid of training runs, with and without refinement, and what they show."""

from __future__ import annotations

import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from refine_wrapper.cli.settings import plugin_option
from refine_wrapper.errors import ConfigError
from refine_wrapper.files import write_whole
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.study.ablation.bars import CellBars, mean_seconds, shown_time
from refine_wrapper.study.ablation.cell import FAILED, FINISHED, Cell, cells_of
from refine_wrapper.study.ablation.comparison import caution
from refine_wrapper.study.ablation.plan import Plan, fill, read_plan
from refine_wrapper.study.ablation.schedule import Cells, Run, run_cells

_INTERRUPTED: Final = 130
_LINES: Final = 12
"""Of a failed cell's log that are shown."""
_EXTRA: Final = {"pandas": "", "pyarrow": "", "scipy": "", "tensorboard": "", "plotly": "", "jinja2": ""}
_METRIC: Final = ("eval/single_shot", "reward")
"""What is compared unless another metric is asked for: the held-out measure, else the training reward."""


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Run folder. The same command goes on where it was stopped.  [default: runs/NAME-OF-PLAN]",
)
@click.option("--jobs", type=click.IntRange(1), help="Cells that run at once.  [default: 1, or one per --devices]")
@click.option(
    "--devices",
    multiple=True,
    metavar="LIST",
    help="Accelerators of one cell at a time (CUDA_VISIBLE_DEVICES); repeat it for cells side by side: --devices 0,1 "
    "--devices 2,3",
)
@click.option("--ray", "ray_address", metavar="ADDRESS", help="Run cells as jobs of this Ray cluster (its job server).")
@click.option("--only", metavar="PATTERN", help="Run only cells whose name matches, as in '*-dapo-*seed0'.")
@click.option("--metric", help="What is compared at the end.  [default: eval/single_shot, else reward]")
@click.option(
    "--dry-run", is_flag=True, help="Show the cells, their state, their commands and the cost; start nothing."
)
@plugin_option
def ablate(
    plan_file: Path,
    out: Path | None,
    jobs: int | None,
    devices: tuple[str, ...],
    ray_address: str | None,
    only: str | None,
    metric: str | None,
    dry_run: bool,
    plugin_modules: tuple[str, ...],
) -> None:
    """Train a grid of cells, each plain and refined, and say what the comparison shows.

    PLAN is a YAML file; docs/ablation.md explains it. The smallest one:

    \b
        hosts:
          trl:
            command: python train.py
        objectives: [grpo, dapo]
        refine:
          num_drafts: 4
        seeds: 3

    Each cell is the host's own command in a process of its own, under `refine-wrapper run`. A finished cell is never
    run twice, also after kill -9; a failed one does not stop the others, and is tried again by the next call.
    Results: OUT/results.parquet (one row per value), OUT/summary.md, OUT/report.html.
    """
    if devices and (ray_address or (jobs or 0) > len(devices)):
        raise ConfigError(
            f"refine: --devices was given {len(devices)} times, for as many cells at once on this machine: leave out "
            "--ray, and --jobs or make it no larger."
        )
    at_once = jobs or len(devices) or 1
    plan = read_plan(plan_file)
    if plugin_modules:
        plan = Plan(**{**plan.model_dump(), "plugins": [*plan.plugins, *plugin_modules]})
    plugins = Plugins(plan.plugins)
    plan.check(plugins)
    folder = (out or Path("runs") / plan_file.stem).absolute()
    run = Run(folder, cells_of(plan, folder, plugins))
    wanted = run.selected(only)
    run.check()
    console = Console(markup=False, highlight=False, emoji=False)
    _describe(console, plan, run, wanted, at_once)
    if dry_run:
        _commands(console, run, wanted)
        return
    _need_packages()
    run.claim()
    write_whole(folder / "plan.yaml", plan_file.read_text(encoding="utf-8"))
    _prepare(console, plan, folder)
    interrupted = False
    try:
        _train(console, run, wanted, _where(ray_address, devices), at_once)
    except KeyboardInterrupt:
        interrupted = True
    _conclude(console, run, metric)
    failed = [cell for cell in run.in_state(FAILED) if cell in wanted]
    for cell in failed:
        _show_failure(console, run, cell)
    if interrupted:
        console.print("Interrupted. The same command goes on; finished cells are kept.")
        raise SystemExit(_INTERRUPTED)
    if failed:
        raise SystemExit(1)


def _where(ray_address: str | None, devices: Sequence[str]) -> Cells:
    if ray_address:
        from refine_wrapper.study.ablation.ray_jobs import RayJobs

        return RayJobs(ray_address)
    from refine_wrapper.study.ablation.local import LocalCells

    return LocalCells(devices)


def _need_packages() -> None:
    """Found missing here, and not after the last cell."""
    missing: list[str] = []
    for name in _EXTRA:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"refine: `ablate` needs {', '.join(missing)}. Install it with: pip install 'refine-wrapper[ablation]'"
        )


def _describe(console: Console, plan: Plan, run: Run, wanted: Sequence[Cell], jobs: int) -> None:
    """The plan and its cost."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("host", "objective", "task", "setting", "seeds", "finished"):
        table.add_column(heading)
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in wanted:
        setting = cell.name.rpartition("--seed")[0].rpartition(f"{cell.task}--")[2] or "measured only"
        groups.setdefault((cell.host, cell.objective, cell.task, setting), []).append(cell)
    finished = {cell.name for cell in run.in_state(FINISHED)}
    for key, cells in groups.items():
        done = sum(cell.name in finished for cell in cells)
        table.add_row(*key, ", ".join(str(cell.seed) for cell in cells if cell.command), f"{done} of {len(cells)}")
    console.print(table)
    trained = [cell for cell in wanted if cell.command]
    left = [cell for cell in trained if cell.name not in finished]
    steps = f" x {plan.steps} steps" if plan.steps else ""
    console.print(
        f"{len(trained)} cells{steps}, {plan.completions} completions per prompt each"
        + (", matched by generated tokens" if plan.match == "tokens" else "")
        + f"; {len(left)} to run, {jobs} at once. {_cost(run, left, jobs)}"
    )
    if plan.evaluate is None:
        console.print(caution("reward"))
    console.print(f"Run folder: {run.folder}", soft_wrap=True)


def _cost(run: Run, left: Sequence[Cell], jobs: int) -> str:
    seconds = mean_seconds(run)
    if not left:
        return "Nothing is left to train."
    if seconds is None:
        return "How long a cell takes is known after the first one; `--only NAME` runs one alone."
    return f"About {shown_time(seconds * len(left) / jobs)} left, by the cells that are finished."


def _commands(console: Console, run: Run, wanted: Sequence[Cell]) -> None:
    """Each kind of command once: the first plain and the first refined cell of each host."""
    seen: set[tuple[str, bool]] = set()
    for cell in wanted:
        if cell.command and (cell.host, cell.refined) not in seen:
            seen.add((cell.host, cell.refined))
            steps = cell.steps if not cell.plain_cell else None
            console.print(f"\n{cell.name}:\n{shlex.join(cell.arguments(run.of(cell).path, steps))}", soft_wrap=True)
    console.print("\nNothing was started.")


def _prepare(console: Console, plan: Plan, folder: Path) -> None:
    """Run the plan's own preparation, once for a run folder.

    Raises:
        ConfigError: If it fails.
    """
    done, log = folder / ".prepared", folder / "prepare.log"
    if not plan.prepare or done.exists():
        return
    first = next(iter(plan.hosts.values()))
    command = [fill(argument, {"run": str(folder)}, "prepare") for argument in plan.prepare]
    if command[0] == "python":
        command[0] = first.python
    with console.status(f"Preparing: {shlex.join(command)}"), log.open("wb") as output:
        code = subprocess.run(command, cwd=plan.folder, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise ConfigError(f"refine: `prepare` ended with code {code}; its log is {log}:\n{_tail(log)}")
    write_whole(done, "")


def _train(console: Console, run: Run, wanted: Sequence[Cell], where: Cells, jobs: int) -> None:
    """Run the cells under a bar for all, and one for each that runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        bars = CellBars(progress, run, wanted, jobs)
        run_cells(run, wanted, where, jobs, bars.update)


def _conclude(console: Console, run: Run, metric: str | None) -> None:
    """Table, comparison and page of what there is."""
    from refine_wrapper.study.ablation.comparison import compare, sentence, summary
    from refine_wrapper.study.ablation.screen import comparison_table, markdown
    from refine_wrapper.study.ablation.table import build_table, write_table
    from refine_wrapper.study.report import write_report

    with console.status("Reading what the cells wrote"):
        table = build_table([run.of(cell) for cell in run.cells])
        write_table(table, run.folder)
    names = set(table["metric"].tolist())
    chosen = metric or next((name for name in _METRIC if name in names), None)
    if chosen is None or table.empty:
        console.print("No cell has logged anything yet.")
        return
    comparisons = compare(table, chosen)
    states = Counter(str((run.of(cell).status or {}).get("state", "not finished")) for cell in run.cells)
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    console.print(comparison_table(comparisons, chosen))
    console.print(" ".join(filter(None, (sentence(comparisons, chosen), caution(chosen), f"Cells: {counted}."))))
    write_whole(run.folder / "summary.md", markdown(summary(table, chosen), comparisons, chosen, counted))
    page = write_report(run.folder, metric=chosen)
    for what, path in (
        ("Values", run.folder / "results.parquet"),
        ("Summary", run.folder / "summary.md"),
        ("Report", page),
    ):
        console.print(f"{what}: {path}", soft_wrap=True)


def _show_failure(console: Console, run: Run, cell: Cell) -> None:
    folder = run.of(cell)
    console.print(f"\nfailed: {cell.name}: {(folder.status or {}).get('why')}\nLog: {folder.log}\n{_tail(folder.log)}")


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "  (nothing was written)"
    return "\n".join(f"  {line}" for line in lines[-_LINES:])
