"""Called by the launch hook of ``refine-wrapper run`` right after ``verl.utils.config`` was executed.

``validate_config`` is what main_ppo calls in the driver, with the whole configuration, before any actor starts.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from refine_wrapper.errors import SeamError


def switch_validation(module: ModuleType) -> None:
    """Prepare the configuration before the host validates it."""
    validate: Any = getattr(module, "validate_config", None)
    if validate is None:
        raise SeamError(
            "refine: verl.utils.config has no validate_config. Run `refine-wrapper doctor`; supported is veRL 0.9."
        )

    @functools.wraps(validate)
    def validate_config(config: Any, *args: Any, **kwargs: Any) -> Any:
        from refine_wrapper_verl.settings import prepare

        prepare(config)
        return validate(config, *args, **kwargs)

    module.validate_config = validate_config  # pyright: ignore[reportAttributeAccessIssue]
