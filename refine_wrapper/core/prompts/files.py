"""Templates from files: ``.txt`` is the user's turn, ``.yaml`` spells the turns and the plain-text form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from refine_wrapper.core.prompts.turns import TurnTemplate
from refine_wrapper.errors import TemplateError

_KEYS = {"turns", "text"}


def read_template(path: Path) -> TurnTemplate:
    """Read a template file.

    A text file is one user turn, and serves plain-text prompts as it is; one newline at its end is dropped, because
    editors add it. A YAML file has ``turns`` (one or three contents) and, for plain-text prompts, ``text``; where
    ``text`` is missing, the turns joined by blank lines.

    Raises:
        TemplateError: Naming the file and what is missing or unknown.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TemplateError(f"refine: cannot read the template file {str(path)!r}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise TemplateError(f"refine: the template file {str(path)!r} is not UTF-8 text: {error}.") from None
    if path.suffix not in (".yaml", ".yml"):
        content = source.removesuffix("\n")
        return TurnTemplate.build(str(path), [content], content)
    try:
        loaded: Any = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise TemplateError(f"refine: the template file {str(path)!r} is not valid YAML: {error}") from None
    if not isinstance(loaded, dict) or not isinstance(cast("dict[str, Any]", loaded).get("turns"), list):
        raise TemplateError(f"refine: the template file {str(path)!r} must have a list 'turns' of one or three texts.")
    settings = cast("dict[str, Any]", loaded)
    unknown = sorted(map(str, set(settings) - _KEYS))
    if unknown:
        raise TemplateError(
            f"refine: the template file {str(path)!r} has the unknown key {unknown[0]!r}. Valid: turns, text."
        )
    turns = [str(turn) for turn in settings["turns"]]
    return TurnTemplate.build(str(path), turns, str(settings.get("text", "\n\n".join(turns))))
