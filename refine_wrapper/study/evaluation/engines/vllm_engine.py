"""vLLM, in this process: nothing is left behind when the evaluation is killed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from refine_wrapper.study.evaluation.engines.interface import Sampling, derived_seed, end_ids
from refine_wrapper.study.evaluation.settings import EvaluationSettings

# Before vLLM is imported. Its engine would else be a process of its own, which outlives a killed parent; several GPUs
# (tensor_parallel_size) still are processes.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import transformers
import vllm


class VllmEngine:
    """Samples with ``vllm.LLM``. Each completion has a seed of its own, so it does not depend on its neighbours' order.

    Args:
        llm: The loaded engine.
        model: Name or folder of the model.
    """

    def __init__(self, llm: Any, model: str) -> None:
        self._llm: Any = llm
        self.tokenizer = llm.get_tokenizer()
        self.batch_size = 1024
        self._config = llm.llm_engine.model_config
        self.max_model_tokens = int(self._config.max_model_len)
        try:
            generation_config = transformers.GenerationConfig.from_pretrained(model)
        except OSError:  # the model has none
            generation_config = None
        self.end_ids = end_ids(self.tokenizer, generation_config)

    def describe(self) -> dict[str, str]:
        """Name, device and dtype, for the report."""
        device = self._llm.llm_engine.vllm_config.device_config.device_type
        return {"name": "vllm", "device": str(device), "dtype": str(self._config.dtype)}

    def sample(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        """One completion per prompt."""
        parameters = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                seed=derived_seed(seed, row),
                stop_token_ids=sorted(self.end_ids),
            )
            for row in range(len(prompt_ids))
        ]
        prompts = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        """Free the model."""
        self._llm = None


def load(model: str, settings: EvaluationSettings) -> VllmEngine:
    """A model from a folder or the hub."""
    options: dict[str, Any] = {"seed": settings.seed, **settings.engine_options}
    if settings.max_model_tokens is not None:
        options["max_model_len"] = settings.max_model_tokens
    return VllmEngine(vllm.LLM(model=os.path.expanduser(model), **options), model)
