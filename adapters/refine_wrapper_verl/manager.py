"""The manager that a veRL run names: one for the V1 (TransferQueue) trainers and for the legacy V0 trainer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from omegaconf import DictConfig, OmegaConf

from refine_wrapper.hosts.seam import require_seam
from refine_wrapper_verl.plugin import ADAPTER

require_seam(ADAPTER)  # before what follows is imported: a missing name would be a bare ImportError

from verl.experimental.agent_loop import AgentLoopManager  # noqa: E402
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass  # noqa: E402
from verl.utils.ray_utils import auto_await  # noqa: E402
from verl.utils.tensordict_utils import assign_non_tensor_stack  # noqa: E402

from refine_wrapper.errors import ConfigError, SeamError  # noqa: E402
from refine_wrapper.hosts.start import announce, check_start  # noqa: E402
from refine_wrapper.plugins.manager import Plugins  # noqa: E402
from refine_wrapper.settings.config import RefineConfig  # noqa: E402
from refine_wrapper_verl.asked import note_asked  # noqa: E402
from refine_wrapper_verl.chunks import GroupIds, whole_group_slices  # noqa: E402
from refine_wrapper_verl.lengths import check_lengths  # noqa: E402
from refine_wrapper_verl.logs import RefineLog  # noqa: E402
from refine_wrapper_verl.objectives import OWN_DYNAMIC_SAMPLING  # noqa: E402
from refine_wrapper_verl.settings import (  # noqa: E402
    facts,
    has_objective,
    is_prepared,
    read_settings,
    refuse_unsupported,
    run_name,
    store_settings,
)
from refine_wrapper_verl.tokens import template_tokens  # noqa: E402
from refine_wrapper_verl.worker import GROUP_COLUMN, RefineAgentLoopWorker, RefineAgentLoopWorkerTQ  # noqa: E402


class RefineAgentLoopManager:
    """What ``actor_rollout_ref.rollout.agent.agent_loop_manager_class`` names; makes the one that the trainer needs."""

    @classmethod
    @auto_await
    async def create(cls, config: DictConfig, *args: Any, **kwargs: Any) -> Any:
        """Called by the trainer in place of the host's ``create``, with the same arguments.

        Refinement switched off gives the host's own manager: the plain run.

        Raises:
            ConfigError, BudgetError: For what no driver checked, because the configuration was composed elsewhere.
        """
        settings = read_settings(config)
        if not has_objective(config, settings):
            raise ConfigError(
                f"refine: objective={settings.objective} must be set before the trainer starts. State it on the "
                "command line (refine.objective=NAME), or write the keys of `refine-wrapper objectives --host verl`."
            )
        # Not trainer.use_v1, which is true in every composed configuration: recipes on RayPPOTrainer do not read it.
        uses_queue = bool(OmegaConf.select(config, "transfer_queue.enable"))
        if not settings.active:
            return await (AgentLoopManagerTQ if uses_queue else AgentLoopManager).create(config, *args, **kwargs)
        config = checked(config, settings)
        note_asked(run_name(config))
        kind = RefineManagerTQ if uses_queue else RefineManagerV0
        return await kind.create(config, *args, **kwargs)


def checked(config: DictConfig, settings: RefineConfig) -> DictConfig:
    """The configuration for the workers, checked with the template's exact length, which takes the tokenizer.

    Raises:
        ConfigError, BudgetError: With what to change.
    """
    refuse_unsupported(config)
    if not is_prepared(config):
        if settings.match_budget:
            raise ConfigError(
                "refine: match_budget must shrink actor_rollout_ref.rollout.n before the trainer starts. Use "
                "+refine=matched_4 or `refine-wrapper run`, or set rollout.n yourself and leave match_budget out."
            )
        settings.check_pipelined("veRL")
        settings.refuse_dynamic_sampling(*OWN_DYNAMIC_SAMPLING)
        plugins = Plugins(settings.plugin_modules)
        check_start(facts(config), settings, plugins)
        rollout = config.actor_rollout_ref.rollout
        store_settings(config, settings, int(rollout.n), int(rollout.prompt_length))
        announce(facts(config), settings, plugins)
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    check_lengths(config, settings, template_tokens(config, settings, model), model.hf_config)
    return config


class _RefineManager:
    """What both managers share: group ids, and metrics for the trainer's logger."""

    agent_loop_workers_class: Any
    agent_loop_workers: Sequence[Any]

    def _refine_start(self, config: DictConfig) -> None:
        self._refine_settings = read_settings(config)
        self._refine_ids = GroupIds()
        self._refine_log = RefineLog(self._refine_settings, lambda: self.agent_loop_workers)
        self._refine_log.install()

    def _refine_applies(self, validate: bool) -> bool:
        return not validate or self._refine_settings.evaluation == "refine"


class RefineManagerTQ(_RefineManager, AgentLoopManagerTQ):
    """For the V1 trainers."""

    def __init__(self, config: DictConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        # After the host's __init__, which sets its own.
        self.agent_loop_workers_class = ray.remote(RefineAgentLoopWorkerTQ)
        self._refine_start(config)

    def generate_sequences(self, prompts: Any) -> None:
        validate = bool(prompts["validate"]) if "validate" in prompts else False
        if self._refine_applies(validate):
            prompts = prompts.copy()  # shallow: the trainer's own batch stays as it is
            ids = self._refine_ids.next(list(prompts["uid"]), prompts["global_steps"], validate)
            assign_non_tensor_stack(prompts, GROUP_COLUMN, ids)
        super().generate_sequences(prompts)


class RefineManagerV0(_RefineManager, AgentLoopManager):
    """For the legacy V0 trainer, which cuts a batch into equal chunks of rows: here no cut goes through a group."""

    def __init__(self, config: DictConfig, *args: Any, **kwargs: Any) -> None:
        self.agent_loop_workers_class = ray.remote(RefineAgentLoopWorker)
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        self._refine_start(config)

    @auto_await
    async def generate_sequences(self, prompts: Any) -> Any:
        validate = bool(prompts.meta_info.get("validate", False))
        if not self._refine_applies(validate):
            return await super().generate_sequences(prompts)
        columns = prompts.non_tensor_batch
        own_uids = "uid" not in columns
        if own_uids:
            columns["uid"] = _uids_by_group_size(len(prompts), int(self._refine_n(validate)))
        uids = [str(uid) for uid in columns["uid"]]
        step = prompts.meta_info.get("global_steps", -1)
        column = columns["uid"].astype(object)
        column[:] = self._refine_ids.next(uids, step, validate)
        columns[GROUP_COLUMN] = column
        slices = whole_group_slices(uids, len(self.agent_loop_workers))
        # The host asks the batch to cut itself, once, after it added a column of its own.
        prompts.chunk = lambda chunks: [prompts.slice(rows.start, rows.stop) for rows in slices]
        # With fewer groups than workers some have nothing to do; this view of the manager does not know them.
        view = copy.copy(self)
        view.agent_loop_workers = self.agent_loop_workers[: len(slices)]
        try:
            return await AgentLoopManager.generate_sequences(view, prompts)
        finally:
            del prompts.chunk
            for name in (GROUP_COLUMN, *(["uid"] if own_uids else [])):
                columns.pop(name, None)

    def _refine_n(self, validate: bool) -> int:
        rollout: Any = self.rollout_config  # pyright: ignore[reportAttributeAccessIssue]
        return rollout.val_kwargs.n if validate else rollout.n


def _uids_by_group_size(num_rows: int, group_size: int) -> Any:
    """Ids for a batch whose trainer names its groups only after they were sampled: rows of a group are adjacent.

    Raises:
        SeamError: If the rows are no whole groups.
    """
    if num_rows % group_size:
        raise SeamError(
            f"refine: this trainer hands out {num_rows} rows without a uid, which are no groups of "
            f"actor_rollout_ref.rollout.n={group_size}, so it cannot be told which rows answer one prompt. Have it set "
            "uid before generation, or set refine.enabled=false."
        )
    return np.array([f"group-{row // group_size}" for row in range(num_rows)], dtype=object)
