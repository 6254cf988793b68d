"""A stand-in for math-verify, which is not in this environment; the real worker finds it through sys.path."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

_STAND_IN = textwrap.dedent(
    r"""
    import os, re, sys, time

    class LatexExtractionConfig:
        def __init__(self, **settings): pass

    class ExprExtractionConfig(LatexExtractionConfig): pass

    def parse(text, extraction_config, parsing_timeout):
        print("noise on stdout")
        if "torch" in sys.modules: os._exit(9)
        if "hang" in text:
            while True: 10 ** 10000
        if "sleep" in text: time.sleep(600)
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
    (tmp_path / "math_verify.py").write_text(_STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path
