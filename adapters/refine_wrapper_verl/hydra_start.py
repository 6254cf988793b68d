"""The Hydra callback that prepares the configuration in the driver, within seconds.

Otherwise a wrong number would only be found once all models are loaded. It looks at the composed configuration, not at
the words of the command. It is made in every Hydra application of the environment, so it imports little at first.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

_MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
_LAUNCHED = "REFINE_WRAPPER_LAUNCH"
"""As in refine_wrapper.settings.sources."""


class PrepareConfig(Callback):
    """In ``hydra.callbacks`` by the group ``refine``, and by our plugin of Hydra for other ways to state our keys."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """What is changed here is what the job gets: Hydra copies the configuration afterwards.

        Raises:
            SystemExit: For what cannot work. Hydra turns any ``Exception`` of a callback into a warning and goes on.
        """
        if not _is_ours(config):
            return
        with _ending_the_command():
            from refine_wrapper_verl.settings import prepare

            prepare(config)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """A trainer that never asked for our manager trained plain, although the driver said that it refines.

        Raises:
            SystemExit: Saying so.
        """
        run = OmegaConf.select(config, "refine._run") if _is_ours(config) else None
        if not run or job_return.status.name != "COMPLETED":
            return
        from refine_wrapper_verl.asked import nobody_asked

        if nobody_asked(str(run)):
            sys.exit(
                "refine: nothing was refined. This trainer made an agent loop manager of its own and never asked for "
                f"the one that {_MANAGER_KEY} names. What was trained is a plain run. Use verl.trainer.main_ppo, or "
                "have the recipe load the named class as veRL's trainers do."
            )

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """In a sweep, for each job: Hydra has copied its configuration by now, so the job must state what it needs.

        Raises:
            SystemExit: With what to add to the command, where a single run would have changed something by itself.
        """
        if not OmegaConf.select(config, "hydra.mode", default=None) or config.hydra.mode.name != "MULTIRUN":
            return
        if not _is_ours(config):
            return
        with _ending_the_command():
            missing = _what_a_single_run_gets(config)
        if missing:
            sys.exit(
                "refine: in a sweep (--multirun) each job must state what a single run gets by itself. Add to the "
                f"command: {' '.join(missing)}"
            )


@contextlib.contextmanager
def _ending_the_command() -> Any:
    from refine_wrapper.errors import RefineError

    try:
        yield
    except RefineError as error:
        sys.exit(str(error))
    except Exception:
        traceback.print_exc()
        sys.exit("refine: the configuration could not be prepared; the reason stands above.")


def _what_a_single_run_gets(config: DictConfig) -> list[str]:
    """Overrides that make a job's configuration what :func:`prepare` would make of it."""
    from refine_wrapper_verl.settings import prepare

    job: Any = OmegaConf.create({name: config._get_node(name) for name in config if name != "hydra"})  # pyright: ignore[reportPrivateUsage]
    before = _leaves(job)
    with contextlib.redirect_stderr(io.StringIO()):  # the job's own manager says it
        settings = prepare(job)
    if not settings.active and settings.objective is None:
        return []
    changed = [f"++{key}={value}" for key, value in _leaves(job).items() if before.get(key) != value]
    return ["refine.match_budget=false", *changed] if settings.match_budget and settings.active else changed


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a configuration by its key, as it is written; our own keys are left out."""
    found: dict[str, Any] = {}
    for name in node:
        key = f"{prefix}{name}"
        if key == "refine":
            continue
        value = node._get_node(name)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            found.update(_leaves(value, f"{key}."))
        else:
            found[key] = str(value)
    return found


def _is_ours(config: DictConfig) -> bool:
    if "actor_rollout_ref" not in config:
        return False
    if "refine" in config or "refine_wrapper_verl" in str(OmegaConf.select(config, _MANAGER_KEY)):
        return True
    # `refine-wrapper run` prepares what main_ppo validates; fully_async_policy validates nothing.
    return _LAUNCHED in os.environ and config.get("async_training") is not None
