"""What is tested is the built wheel, not the source tree."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import entry_points
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# The sessions of nox set it. A developer's editable install is the source tree, rightly.
pytestmark = pytest.mark.skipif(
    "REFINE_WRAPPER_TEST_INSTALLED" not in os.environ, reason="not run by nox on the built wheel"
)


@pytest.mark.parametrize(
    "package", ["refine_wrapper", "refine_wrapper_trl", "refine_wrapper_verl", "refine_wrapper_demo"]
)
def test_the_package_comes_from_the_wheel(package: str) -> None:
    # Not imported: an adapter's host is absent from the environment of the core.
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    init = Path(spec.origin).resolve()
    assert init.parent.parent.name == "site-packages"
    assert not init.is_relative_to(REPOSITORY)
    assert (init.parent / "py.typed").exists()


def test_the_adapters_and_the_demo_are_found_as_plugins() -> None:
    found = {(point.name, point.value) for point in entry_points(group="refine_wrapper")}
    assert ("trl", "refine_wrapper_trl.plugin") in found
    assert ("verl", "refine_wrapper_verl.plugin") in found
    assert ("demo", "refine_wrapper_demo.plugin") in found
