"""Where the tests of TRL train: on the CPU, as everywhere in CI, or on a GPU where one is asked for."""

from __future__ import annotations

import os

ON_GPU = os.environ.get("REFINE_TESTING_GPU") == "1"
"""``REFINE_TESTING_GPU=1``: trainers use the accelerator that they find."""

DEVICE = "cuda" if ON_GPU else "cpu"
