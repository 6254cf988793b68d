"""Writes the generated parts of README and docs from the code, or checks that they are up to date.

    python tools/docs.py            # write
    python tools/docs.py --check    # fail, naming the files that are out of date

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# The sources here, whatever wheel is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "adapters")]

from refine_wrapper.core.metrics import MEANINGS  # noqa: E402
from refine_wrapper.core.types import Cause, Outcome  # noqa: E402
from refine_wrapper.hosts.adapter import ObjectiveSettings  # noqa: E402
from refine_wrapper.plugins import hookspecs  # noqa: E402
from refine_wrapper.plugins.manager import Plugins  # noqa: E402
from refine_wrapper.plugins.options import describe_options  # noqa: E402
from refine_wrapper.rewards.judge.settings import JudgeSettings  # noqa: E402
from refine_wrapper.settings.config import RefineConfig  # noqa: E402
from refine_wrapper.study.ablation.plan import HostPlan, Plan  # noqa: E402

FILES = (
    "README.md",
    "docs/configuration.md",
    "docs/metrics.md",
    "docs/modes.md",
    "docs/plugins.md",
    "docs/method.md",
    "docs/objectives.md",
    "docs/ablation.md",
    "docs/rewards.md",
)
_TAG = re.compile(r"(<\w+>)")
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def flags() -> str:
    """Every setting, as a table."""
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for name, field in RefineConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "unset" if default is None or default in ({}, ()) else yaml.safe_dump(default).split("\n")[0]
        description = _TAG.sub(r"`\1`", field.description or "").replace("|", "\\|")
        rows.append(f"| `--refine.{name}` | `{shown}` | {description} |")
    return "\n".join(rows)


def metrics() -> str:
    """Every metric, as a table; counts by cause have tables of their own (:func:`outcomes`)."""
    rows = ["| metric | meaning |", "|---|---|"]
    rows += [f"| `{name}` | {meaning} |" for name, meaning in MEANINGS.items() if name.count("/") == 1]
    return "\n".join(rows)


def plan() -> str:
    """Every key of an ablation's plan, as a table."""
    rows = ["| key | what it says |", "|---|---|"]
    for name, field in Plan.model_fields.items():
        if name != "folder":
            rows.append(f"| `{name}` | {field.description} |")
    rows += [f"| `hosts.HOST.{name}` | {field.description} |" for name, field in HostPlan.model_fields.items()]
    return "\n".join(rows)


def judge() -> str:
    """Every setting of the judge, as a table."""
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    for name, field in JudgeSettings.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        shown = "-" if default in (None, (), {}) else f"`{default}`".replace("|", "\\|")
        rows.append(f"| `{name}` | {'required' if field.is_required() else shown} | {field.description} |")
    return "\n".join(rows)


def outcomes() -> str:
    """How a sample can fail and why a group is not refined, as two tables."""
    rows = ["| `refine/draft_failures/...` | counts drafts that ended so |", "|---|---|"]
    rows += [
        f"| `{outcome.value}` | {_doc_of(Outcome, outcome.name)} |" for outcome in Outcome if outcome is not Outcome.OK
    ]
    rows += ["", "| `refine/fallbacks/...` | counts groups that were not refined because |", "|---|---|"]
    rows += [f"| `{cause.value}` | {_doc_of(Cause, cause.name)} |" for cause in Cause]
    return "\n".join(rows)


def hooks() -> str:
    """Every hook with its signature and contract."""
    parts: list[str] = []
    for name, function in sorted(
        inspect.getmembers(hookspecs, inspect.isfunction), key=lambda pair: inspect.getsourcelines(pair[1])[1]
    ):
        options = getattr(function, f"{hookspecs.PROJECT}_spec")
        kind = (
            "observer" if name == "group_finished" else "first answer counts" if options["firstresult"] else "collected"
        )
        signature = str(inspect.signature(function)).replace("'", "")
        parts.append(f"### `{name}`\n\n*{kind}* · `{name}{signature}`\n\n{_markdown(inspect.getdoc(function))}")
    return "\n\n".join(parts)


def templates() -> str:
    """The built-in templates, word by word."""
    parts: list[str] = []
    for name, template in Plugins(entry_points=False).all("template").items():
        turns = [turn.fill(question="{question}", draft="{draft}") for turn in template.turns]
        roles = ("user", "assistant", "user")
        shown = "\n".join(f"[{role}]\n{turn}" for role, turn in zip(roles, turns, strict=False))
        parts.append(f"`{name}`\n\n```text\n{shown}\n```")
    return "\n\n".join(parts)


def selectors() -> str:
    """The built-in selectors, their rules and options."""
    return _registered("selector", "rule")


def modes() -> str:
    """The built-in modes, what they do and their options."""
    return _registered("mode", "what it does")


def _registered(kind: str, what: str) -> str:
    """Docstring and options of everything built in of one kind, as a table."""
    rows = [f"| {kind} | {what} | options |", "|---|---|---|"]
    for name, made in Plugins(entry_points=False).all(kind).items():
        said = " ".join(_markdown(inspect.getdoc(made)).split())
        options = describe_options(made)
        rows.append(f"| `{name}` | {said} | {f'`{options}`' if options else '-'} |")
    return "\n".join(rows)


def objectives() -> str:
    """Every objective, as one table for each host."""
    parts: list[str] = []
    for folder in sorted((ROOT / "adapters").glob("refine_wrapper_*")):
        plugin = importlib.import_module(f"{folder.name}.plugin")
        if not hasattr(plugin, "register_objectives"):
            continue
        registered: dict[str, dict[str, ObjectiveSettings]] = plugin.register_objectives()
        for host in dict.fromkeys(host for on_hosts in registered.values() for host in on_hosts):
            rows = [f"### {host}", "", "| objective | becomes | missing there |", "|---|---|---|"]
            for name, on_hosts in registered.items():
                found = on_hosts[host]
                settings = " ".join(f"`{key}={value}`" for key, value in (found.settings or {}).items())
                becomes = "-" if found.settings is None else f"{found.trainer} {settings}".strip() or "as it is"
                if found.dynamic_sampling:
                    becomes += f"; dynamic sampling by this package, at most {found.dynamic_sampling} rounds a batch"
                rows.append(f"| `{name}` | {becomes} | {found.missing or '-'} |")
            parts.append("\n".join(rows))
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "flags": flags,
    "metrics": metrics,
    "plan": plan,
    "judge": judge,
    "outcomes": outcomes,
    "hooks": hooks,
    "templates": templates,
    "selectors": selectors,
    "modes": modes,
    "objectives": objectives,
}


def render(text: str) -> str:
    """A document with its generated parts filled in anew."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    only_check: bool = parser.parse_args().check
    stale = [name for name in FILES if (path := ROOT / name).read_text("utf-8") != render(path.read_text("utf-8"))]
    if only_check:
        for name in stale:
            print(f"{name} is out of date: run `python tools/docs.py`.", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).write_text(render((ROOT / name).read_text("utf-8")), "utf-8")
        print(f"wrote {name}")
    return 0


def _markdown(docstring: str | None) -> str:
    return (docstring or "").replace("``", "`")


def _doc_of(enumeration: type, member: str) -> str:
    """The string literal below a member: enum members have no docstring at run time, so it is read from the source."""
    match = re.search(
        rf"^    {member} = .*?\n    \"\"\"(.*?)\"\"\"", inspect.getsource(enumeration), re.MULTILINE | re.DOTALL
    )
    return " ".join(match[1].split()) if match else ""


if __name__ == "__main__":
    sys.exit(main())
