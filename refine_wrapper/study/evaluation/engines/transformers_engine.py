"""Hugging Face transformers: any causal language model, on a GPU or a CPU, also one that is in memory already."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from refine_wrapper.study.evaluation.engines.choose import ADAPTER_FILE, EngineError, is_adapter
from refine_wrapper.study.evaluation.engines.interface import Sampling, end_ids
from refine_wrapper.study.evaluation.settings import EvaluationSettings


class TransformersEngine:
    """Samples with ``model.generate``.

    The model is left as it was: its mode, its generation config, and the state of torch's random generators, so that a
    training run that is measured goes on as if it was not.

    Args:
        model: A causal language model, on its device.
        tokenizer: Its tokenizer.
        max_model_tokens: Longest prompt and completion together; by default what the model's config says.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_model_tokens: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.batch_size = 64
        self._model: Any = model
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        length = max_model_tokens or getattr(config, "max_position_embeddings", None)
        self.max_model_tokens = int(length) if isinstance(length, int) and length > 0 else None
        self.end_ids = end_ids(tokenizer, model.generation_config)
        pad = tokenizer.pad_token_id
        self._pad_id = int(pad if pad is not None else min(self.end_ids, default=0))

    def describe(self) -> dict[str, str]:
        """Name, device and dtype, for the report."""
        return {"name": "transformers", "device": _device_name(self._model.device), "dtype": str(self._model.dtype)}

    def sample(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        """One completion per prompt. Padded on the left to the longest prompt of the call."""
        width = max(map(len, prompt_ids))
        ids = torch.full((len(prompt_ids), width), self._pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompt_ids):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        device = self._model.device
        with _as_it_was(self._model), torch.no_grad():
            torch.manual_seed(seed)
            # All of it: GenerationConfig fills what is missing from the model's own.
            config = transformers.GenerationConfig(
                max_new_tokens=sampling.max_new_tokens,
                do_sample=sampling.temperature > 0,
                **({"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature > 0 else {}),
                **({"top_k": sampling.top_k} if sampling.temperature > 0 else {}),
                eos_token_id=sorted(self.end_ids) or None,
                pad_token_id=self._pad_id,
            )
            self._model.generation_config = config
            try:
                generated = self._model.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
                )
            except torch.cuda.OutOfMemoryError as error:
                raise EngineError(
                    f"refine: {len(prompt_ids)} completions together do not fit into memory: lower --batch-size (and "
                    "start anew, for other batches are other answers)."
                ) from error
        return [self._own(row) for row in generated[:, width:].tolist()]

    def close(self) -> None:
        """Free the model."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _own(self, row: list[int]) -> list[int]:
        """A row up to and with its end token; what follows is padding."""
        end = next((position for position, token in enumerate(row) if token in self.end_ids), len(row) - 1)
        return row[: end + 1]


def load(model: str, settings: EvaluationSettings) -> TransformersEngine:
    """A model from a folder or the hub, with its PEFT adapter if the folder is one."""
    options = {"dtype": "auto", **settings.engine_options}
    name = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(_base_of(name), **options)
    if is_adapter(name):
        try:
            import peft
        except ModuleNotFoundError:
            raise EngineError(f"refine: {model} is a PEFT adapter, which needs peft: pip install peft") from None
        loaded = peft.PeftModel.from_pretrained(loaded, name)
    if torch.cuda.is_available() and "device_map" not in options:
        loaded = loaded.to("cuda")
    return TransformersEngine(loaded.eval(), _tokenizer(name, options), max_model_tokens=settings.max_model_tokens)


def _tokenizer(name: str, options: dict[str, Any]) -> Any:
    """The adapter's own tokenizer if it has one (training may have added tokens), else the base model's."""
    shared = {key: options[key] for key in ("revision", "trust_remote_code", "token") if key in options}
    own = any((Path(name) / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    return transformers.AutoTokenizer.from_pretrained(name if own else _base_of(name), **shared)


def _base_of(name: str) -> str:
    if not is_adapter(name):
        return name
    base = json.loads((Path(name) / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise EngineError(f"refine: {name}/{ADAPTER_FILE} does not name its base model (base_model_name_or_path).")
    return str(base)


@contextlib.contextmanager
def _as_it_was(model: Any) -> Generator[None]:
    """Evaluation mode inside; mode, generation config and random state as before outside."""
    training, generation_config = model.training, model.generation_config
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            model.train(training)
            model.generation_config = generation_config


def _device_name(device: Any) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
