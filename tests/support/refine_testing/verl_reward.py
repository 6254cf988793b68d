"""The reward function of the veRL runs: pays by rule, writes down what it was asked, fails where the data says so.

veRL loads it by path in its reward worker. It writes to the file that REFINE_TESTING_CALLS names.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from typing import Any


def checksum(text: str) -> float:
    """A reward in [0, 1) that differs between random texts and is the same everywhere.

    Of the text without white space around it, because a draft in a prompt has none: random texts may begin with it.
    """
    return (sum((i + 1) * ord(c) for i, c in enumerate(text.strip())) % 97) / 97


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Pays :func:`checksum`. ``extra_info.faults`` says what goes wrong on the first calls for a prompt, in their order.

    A round is scored before the next one is sampled, so a prompt with N faults has N bad drafts. ``wrong`` pays less than
    1/3 and ``right`` 0.9: modes that look for right samples have both.
    """
    info = extra_info or {}
    number = _calls_for[info.get("index")]
    _calls_for[info.get("index")] += 1
    record = {"source": data_source, "text": solution_str, "truth": ground_truth, "index": info.get("index")}
    faults = str(info.get("faults") or "").split(",")
    fault = faults[number] if number < len(faults) else faults[-1] if faults[-1] == "equal" else ""
    special = {"equal": 0.25, "nan": math.nan, "wrong": checksum(solution_str) / 3, "right": 0.9}
    score = special.get(fault, checksum(solution_str))
    with open(os.environ["REFINE_TESTING_CALLS"], "a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "info": sorted(info), "score": score}) + "\n")
    if fault == "raise":
        raise RuntimeError("the reward function raised")
    if fault == "hang":
        time.sleep(3600)
    return {"score": score, "acc": score}


# One reward worker, one process: calls are counted where they are made.
_calls_for: Counter[Any] = Counter()
