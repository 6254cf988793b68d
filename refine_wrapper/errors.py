"""Every error this package raises on purpose. One root, each also a standard-library error, all pickleable."""

from __future__ import annotations


class RefineError(Exception):
    """Root of the package's errors: ``except RefineError`` catches what refine-wrapper raised and nothing else."""


class ConfigError(RefineError, ValueError):
    """A setting is unknown, of the wrong type or out of range. The message names it and says what to write."""


class PluginError(RefineError, TypeError):
    """A plugin cannot be used: wrong hook signature, unknown hook, duplicate or unknown name."""


class TemplateError(RefineError, ValueError):
    """A refinement template lacks a variable, names an unknown one, or cannot be read."""


class PromptError(RefineError, ValueError):
    """A prompt has a shape into which no draft can be put (for example no user turn at all)."""


class BudgetError(RefineError, ValueError):
    """The host's lengths cannot hold q', or N and G do not fit the batch. The message has the numbers to set."""


class NoDraftError(RefineError, RuntimeError):
    """A group has no usable draft and ``on_no_draft`` is ``error``."""


class NoRewardError(RefineError, RuntimeError):
    """The reward failed on every refinement there was, so there is nothing to train on."""


class SeamError(RefineError, RuntimeError):
    """The host is not what the adapter was written against, or refinement was switched on and never ran."""
