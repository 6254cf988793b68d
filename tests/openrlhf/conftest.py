"""What all tests of the OpenRLHF adapter share."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest
from refine_testing.openrlhf_runs import CPU_HOST, Workshop, compile_operators

# The fast tests import OpenRLHF in this process, and OpenRLHF imports flash_attn.
sys.path.insert(0, str(CPU_HOST))


def pytest_collection_finish(session: pytest.Session) -> None:
    # Not in a fixture, whose time is that of a test.
    if any("workshop" in item.fixturenames and not item.get_closest_marker("launcher") for item in session.items):  # type: ignore[attr-defined]
        compile_operators()


@pytest.fixture(scope="session")
def workshop() -> Generator[Workshop]:
    made = Workshop()
    yield made
    made.close()
