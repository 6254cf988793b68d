"""Benches: veRL's own worker classes on a fake engine, made as tests ask for them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import refine_testing.verl_reward
from refine_testing.tiny import save_tiny
from refine_testing.verl_worker import Bench, answers, compose_config, make_bench


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def bench(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[Callable[..., Bench]]:
    """A bench with 4 drafts and 3 refinements, and any further override."""
    monkeypatch.setenv("REFINE_TESTING_CALLS", str(tmp_path / "calls.jsonl"))
    made: list[Bench] = []
    own: Any = refine_testing.verl_reward.__file__

    def make(*overrides: str, answer: Any = answers, reward: str = own, kind: str = "RefineAgentLoopWorkerTQ") -> Bench:
        config = compose_config(model, "+refine.num_drafts=4", *overrides, reward=reward)
        made.append(make_bench(config, monkeypatch, answer, kind=kind))
        return made[-1]

    yield make
    for old in made:
        old.loop.run_until_complete(old.loop.shutdown_default_executor())
        old.loop.close()
