"""What all tests share, of the core and of every host."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

KEPT = "REFINE_WRAPPER_TEST_INSTALLED"
"""Set by nox: it says that the built wheel is tested."""


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """Settings and third-party plugins of whoever runs the tests must not change them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("REFINE_WRAPPER_") and name != KEPT]:
            patch.delenv(name)
        patch.setenv("REFINE_WRAPPER_PLUGINS", "")
        yield
