"""What all tests of the core share: no installed third-party plugin, no setting from outside, the same examples always."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Stand-ins that test files import. (Only this folder: see `pythonpath` and `addopts` in pyproject.toml.)
sys.path.insert(0, str(Path(__file__).parent / "support"))

# derandomize: a red run is red again; it also keeps hypothesis from writing a database.
settings.register_profile("core", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("core")


@pytest.fixture(scope="session", autouse=True)
def no_outside_settings() -> Iterator[None]:
    """Settings and plugins of the machine that runs the tests do not reach them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("REFINE_WRAPPER_")]:
            if name != "REFINE_WRAPPER_TEST_INSTALLED":
                patch.delenv(name)
        patch.setenv("REFINE_WRAPPER_PLUGINS", "")
        yield
