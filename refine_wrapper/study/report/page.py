"""The page: one file with everything in it, that fetches nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from refine_wrapper.errors import RefineError
from refine_wrapper.files import write_whole
from refine_wrapper.study.report.run import ReportError, Run
from refine_wrapper.study.report.run_folder import read_run
from refine_wrapper.version import __version__

if TYPE_CHECKING:
    from refine_wrapper.study.ablation.comparison import Comparison

FILE_NAME: Final = "report.html"
_ASSETS: Final = Path(__file__).parent / "assets"
_SCRIPTS: Final = ("controls.js", "charts.js", "groups.js")
_LIBRARIES: Final = ("pandas", "pyarrow", "scipy", "plotly", "jinja2")


class ReportLibraryError(RefineError, ImportError):
    """A library that the report is made with is not installed."""


def write_report(
    run_folder: Path,
    output: Path | None = None,
    *,
    metric: str | None = None,
    max_groups: int | None = None,
    max_reward: float | None = None,
) -> Path:
    """Write one HTML page of a run.

    Args:
        run_folder: A folder as ``refine-wrapper ablate`` leaves it, or one with one ``groups.jsonl``.
        output: The file to write; by default ``report.html`` in the run folder.
        metric: The metric that settings are compared by; by default single-shot accuracy, else the training reward.
        max_groups: Most groups that can be looked at on the page.
        max_reward: The highest reward there is, where the run did not note it.

    Returns:
        The file that was written. It is written whole or not at all.

    Raises:
        ReportError: If there is nothing to report, or it cannot be read or written.
        ReportLibraryError: If a library is missing.
    """
    _need_libraries()
    from refine_wrapper.study.report.groups import MAX_GROUPS

    run = read_run(run_folder, max_reward=max_reward)
    html = _render(run, metric, MAX_GROUPS if max_groups is None else max_groups)
    if output is None:
        output = (run_folder if run_folder.is_dir() else run_folder.parent) / FILE_NAME
    _write(output, html)
    return output


def embedded_json(value: Any) -> str:
    """JSON that may stand inside a ``<script>`` element whatever is in it.

    No ``<``, ``>`` or ``&`` is left, so that nothing closes the element or opens a comment, and no character beyond
    ASCII, so that neither U+2028 nor half a surrogate pair matters. NaN, which JSON does not know, becomes null.
    """
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _render(run: Run, asked: str | None, max_groups: int) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    from refine_wrapper.study.ablation.comparison import sentence
    from refine_wrapper.study.report import figures, tables
    from refine_wrapper.study.report.groups import sample_groups

    metric = tables.chosen_metric(run, asked)
    compared = tables.comparisons(run, metric)
    listed = tables.settings_tables(run, metric)
    drawn, others = tables.charts(run)
    held_out = tables.held_out(run)
    groups = sample_groups(run, max_groups)
    data = {
        "settings": tables.settings_drawn(run),
        "charts": [chart.as_json() for chart in [*drawn, *others]],
        "held_out": held_out,
        "cells": groups.cells,
        "groups": groups.groups,
    }
    library = get_plotlyjs()
    # HTML turns carriage returns into line feeds before a hash is taken.
    scripts = [library.replace("\r\n", "\n").replace("\r", "\n"), *map(_asset, _SCRIPTS)]
    style = _asset("page.css")
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=figures.number, title=tables.title_of)
    says = sentence(compared, metric) if metric and run.kind != "trace" else ""
    return environment.get_template("page.html.jinja").render(
        run=run,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        policy=_policy(scripts, [style, ""]),
        # Not to be escaped: our own files, the library's, and what is escaped for this place already.
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        # plotly.js brings the map library maplibre, which adds its style to the page unless one of this id is there.
        unused_styles=re.findall(r'getElementById\("([0-9a-f]{64})"\)', library),
        data=Markup(embedded_json(data)),
        metric=metric,
        says=says.replace(metric, tables.title_of(metric), 1) if metric else "",
        comparisons=list(zip(compared, _places(compared), strict=True)),
        tables=listed,
        failed=[cell for cell in run.cells if cell.state == "failed"],
        unfinished=[cell for cell in run.cells if cell.state not in ("failed", "finished")],
        charts=drawn,
        others=others,
        held_out=held_out,
        groups=groups,
        tasks=list(dict.fromkeys(row[0] for table in listed for row in table.rows)),
        settings=data["settings"],
    )


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The Content-Security-Policy: nothing is loaded, and nothing runs but these very texts.

    The empty style is among them because plotly.js adds an empty style element and fills it through the CSSOM.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {' '.join(map(_hash, styles))}",
            # Saving a chart as a picture goes through an image in memory.
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _places(compared: Sequence[Comparison]) -> list[dict[str, float]]:
    """Where each difference and its interval stand, in percent of a common scale that has zero on it."""
    ends = [0.0]
    for found in compared:
        ends += [value for value in (found.low, found.high, found.difference) if math.isfinite(value)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low + margin) / (high - low + 2 * margin), 2)

    return [
        {
            "zero": place(0.0),
            **{
                name: place(value)
                for name, value in (("low", found.low), ("high", found.high), ("at", found.difference))
                if math.isfinite(value)
            },
        }
        for found in compared
    ]


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no word for, and with the digits that a chart can show."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast("Sequence[Any]", value)]
    return value


def _need_libraries() -> None:
    for name in _LIBRARIES:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ReportLibraryError(
                f"refine: the report needs {name}, which is not installed. Install it with: "
                "pip install 'refine-wrapper[ablation]'"
            ) from error


def _write(path: Path, text: str) -> None:
    """Whole or not at all, so that a page that somebody reloads is never half a page."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise ReportError(
            f"refine: the report cannot be written to {str(path)!r}: {error.strerror}. Give another file with --out."
        ) from None
