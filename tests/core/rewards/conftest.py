"""A stand-in for math-verify, which is not in this environment; the real worker finds it through sys.path."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

_STAND_IN = textwrap.dedent(
    r"""
    import os, re, sys, time

    from latex2sympy2_extended import NormalizationConfig

    LatexExtractionConfig = ExprExtractionConfig = NormalizationConfig

    def parse(text, extraction_config, parsing_timeout):
        print("noise on stdout")
        if "torch" in sys.modules: os._exit(9)
        if "hang" in text:
            while True: 10 ** 10000
        if "sleep" in text: time.sleep(600)
        while "wait" in text and not os.path.exists(os.path.join(os.path.dirname(__file__), "go")): time.sleep(0.05)
        if "die" in text: os._exit(3)
        if "raise" in text: raise MemoryError
        return [int(number) for number in re.findall(r"-?\d+", text)[:1]]

    def verify(gold, answer, timeout_seconds):
        return gold == answer
    """
)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with a `math_verify` that reads integers, and hangs or dies when told to."""
    (tmp_path / "math_verify").mkdir()
    (tmp_path / "math_verify" / "__init__.py").write_text(_STAND_IN)
    (tmp_path / "math_verify" / "grader.py").write_text("sympy_numeric_eq = sympy_symbolic_eq = None")
    (tmp_path / "latex2sympy2_extended.py").write_text(
        "class NormalizationConfig:\n    def __init__(self, **settings): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path
