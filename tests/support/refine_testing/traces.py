"""A trace as tests of the mode `paper` read it: drafts, the one that was shown, and what fills the slots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine_wrapper.core.trace import read_trace


def read_groups(path: Path) -> list[dict[str, Any]]:
    """The groups of a trace, each with ``action``, ``drafts``, ``refinements``, ``selected``, ``draft_text``, ``prompt``."""
    return [_by_stages(group) for group in read_trace(path)]


def rows_of(groups: Sequence[dict[str, Any]]) -> list[tuple[Any, str, float]]:
    """(prompt that it is trained under, text, reward) of each row that a trace with texts says is trained, in order."""
    rows: list[tuple[Any, str, float]] = []
    for group in groups:
        for number, on_question, _ in [] if group.get("replaced") else group["slots"]:
            sample = group["samples"][number]
            under_q = on_question or sample["shown"] is None
            prompt = group["question"] if under_q else group["rounds"][sample["round"]]["prompt"]
            rows.append((prompt, sample["text"], sample["reward"]))
    return rows


def _by_stages(group: dict[str, Any]) -> dict[str, Any]:
    rounds, samples = group["rounds"], group["samples"]
    shown = [one for one in rounds if one["show"] is not None]
    rows = [samples[index] for index, _, _ in group["slots"]]
    trained = any(trained for _, _, trained in group["slots"])
    return {
        **group,
        "action": "refine" if group["refined"] else "plain" if trained else "skip",
        "drafts": [] if rounds[0]["final"] else [sample for sample in samples if sample["round"] == 0],
        "refinements": rows,
        "selected": shown[-1]["show"] if shown else None,
        "draft_text": shown[-1].get("shown_text", "") if shown else "",
        "draft_shortened": any(one["shortened"] for one in rounds),
        "prompt": shown[-1].get("prompt") if shown else group.get("question"),
        "policy_version": rows[-1]["policy_version"],
    }
