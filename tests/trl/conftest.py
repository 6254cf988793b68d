"""What all tests of the TRL adapter share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and third-party plugins of whoever runs the tests must not change them."""
    for name in os.environ:
        if name.startswith("REFINE_WRAPPER_") and name != "REFINE_WRAPPER_TEST_INSTALLED":
            monkeypatch.delenv(name)
    monkeypatch.setenv("REFINE_WRAPPER_PLUGINS", "")
