"""Two-stage refinement inside OpenRLHF's PPO/GRPO trainer (``openrlhf.cli.train_ppo_ray``).

By flags alone: ``python -m refine_wrapper_openrlhf.train_ppo_ray <OpenRLHF's flags> --refine.num_drafts 4``, or
``refine-wrapper run --refine.num_drafts 4 -- python -m openrlhf.cli.train_ppo_ray <OpenRLHF's flags>``. With a command
that must stay as it is, ``--train.agent_func_path my_agent.py``, where my_agent.py has
``AgentExecutor = make_agent_executor(num_drafts=4, reward="reward.py")``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refine_wrapper_openrlhf.agent import make_agent_executor
    from refine_wrapper_openrlhf.rewards import make_reward_func

__all__ = ["make_agent_executor", "make_reward_func"]


def __getattr__(name: str) -> object:
    # Loaded on first use: the plugin manager imports this package in processes that must not import OpenRLHF.
    if name == "make_agent_executor":
        return import_module("refine_wrapper_openrlhf.agent").make_agent_executor
    if name == "make_reward_func":
        return import_module("refine_wrapper_openrlhf.rewards").make_reward_func
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
