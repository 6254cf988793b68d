"""What all contract tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from refine_testing.tiny import tiny_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _quick() -> Iterator[None]:
    """Tiny models are slower on several threads, and sums come out in the same order on any machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # The host collects garbage at the start of every training, which looks through all that was ever imported.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()
