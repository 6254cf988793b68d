"""``refine-wrapper report``: one HTML page of a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The file to write. [default: RUN/report.html]"
)
@click.option("--metric", help="What settings are compared by. [default: eval/single_shot, else the training reward]")
@click.option(
    "--max-groups",
    type=click.IntRange(0),
    default=400,
    show_default=True,
    help="Most groups that can be looked at on the page; sampled evenly over the steps.",
)
@click.option(
    "--max-reward", type=float, help="The highest reward there is, if the run did not note it. [default: 1.0]"
)
@click.option("--open", "opens", is_flag=True, help="Show the page in your browser.")
def report(
    run: Path, out: Path | None, metric: str | None, max_groups: int, max_reward: float | None, opens: bool
) -> None:
    """Write one HTML page of RUN that works offline in any browser: tables, curves, groups to look at.

    RUN is a folder with a results table, as `refine-wrapper ablate` leaves it, or one that holds the groups.jsonl
    of `--refine.trace_dir`.
    """
    from refine_wrapper.study.report import write_report

    page = write_report(run, out, metric=metric, max_groups=max_groups, max_reward=max_reward)
    click.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    if opens and click.launch(str(page)):
        click.echo("No browser could be started here; open the file in one.", err=True)
