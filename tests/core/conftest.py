"""What all tests of the core share: stand-ins, and the same examples always."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

# Stand-ins that test files import. (Only this folder: see `pythonpath` and `addopts` in pyproject.toml.)
sys.path.insert(0, str(Path(__file__).parent / "support"))

# derandomize: a red run is red again; it also keeps hypothesis from writing a database.
settings.register_profile("core", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("core")
