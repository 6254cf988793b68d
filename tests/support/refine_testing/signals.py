"""Signals of processes that tests start."""

from __future__ import annotations

import signal


def take_interrupts() -> None:
    """For ``preexec_fn``: a shell that runs tests in its background has them ignore Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
