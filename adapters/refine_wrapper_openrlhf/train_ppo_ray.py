"""OpenRLHF's PPO/GRPO command line with refinement: ``python -m refine_wrapper_openrlhf.train_ppo_ray FLAGS``.

Takes all flags of ``openrlhf.cli.train_ppo_ray`` and those of refine-wrapper (``--refine.num_drafts 4``): ``--help``.
"""

from __future__ import annotations

import runpy
import sys

from refine_wrapper.errors import RefineError
from refine_wrapper_openrlhf.switch import switch_command_line

_COMMAND = "openrlhf.cli.train_ppo_ray"


def main() -> None:
    switch_command_line()
    try:
        runpy.run_module(_COMMAND, run_name="__main__", alter_sys=True)
    except RefineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
