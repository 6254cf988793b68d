"""A chat message, as all hosts and data sets have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""``role`` and ``content``, the content a string or a list of typed parts."""
