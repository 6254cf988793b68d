"""The core is light: no torch, no host, and almost nothing on `import refine_wrapper`."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"torch", "transformers", "trl", "verl", "openrlhf", "vllm", "ray", "accelerate", "datasets", "numpy"}


def _loaded(*modules: str) -> tuple[set[str], float]:
    """Top-level packages and CPU seconds that importing costs in a fresh interpreter."""
    script = (
        "import sys, time, json; before = set(sys.modules); start = time.process_time()\n"
        + "".join(f"import {module}\n" for module in modules)
        + "seconds = time.process_time() - start\n"
        "print(json.dumps([sorted(set(sys.modules) - before), seconds]))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    names, seconds = json.loads(printed.stdout)
    return set(names), seconds


def test_the_package_costs_next_to_nothing() -> None:
    runs = [_loaded("refine_wrapper") for _ in range(3)]
    names = runs[0][0]
    own = {name for name in names if name.partition(".")[0] == "refine_wrapper"}
    assert own == {"refine_wrapper", "refine_wrapper.version"}
    assert len(names) < 40
    assert not names & (HEAVY | {"pydantic", "pluggy"})
    assert min(seconds for _, seconds in runs) < 0.2


def test_no_core_module_loads_torch_or_a_host() -> None:
    names, _ = _loaded(
        "refine_wrapper.core.planner",
        "refine_wrapper.core.recorder",
        "refine_wrapper.core.rollout",
        "refine_wrapper.core.batch",
        "refine_wrapper.cli",
    )
    assert not {name.partition(".")[0] for name in names} & HEAVY
    names, _ = _loaded(*(f"refine_wrapper_{host}.plugin" for host in ("trl", "openrlhf", "verl")))
    assert not {name.partition(".")[0] for name in names} & HEAVY
