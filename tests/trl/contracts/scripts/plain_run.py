"""A plain TRL run in a process that cannot import refine-wrapper. Prints losses and a digest of the final weights."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Absent(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0].startswith("refine_wrapper"):
            raise ModuleNotFoundError(f"{fullname} is not to be imported here", name=fullname)


def digest(model: Any) -> str:
    """A digest of all weights, bit for bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def main(folder: str, objective: str) -> None:
    """Train as the test does, with the host's own classes, and print what came out."""
    sys.meta_path.insert(0, _Absent())
    import torch
    import trl
    from datasets import Dataset
    from refine_testing.rewards import RecordingReward
    from refine_testing.tiny import tiny_llama, tiny_tokenizer

    torch.set_num_threads(1)
    settings, prompts = json.loads(sys.stdin.read())
    name = objective.upper()
    trainer = getattr(trl, f"{name}Trainer")(
        model=tiny_llama(),
        reward_funcs=RecordingReward(),
        args=getattr(trl, f"{name}Config")(**{**settings, "output_dir": folder}),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"RESULT {json.dumps({'losses': losses, 'weights': digest(trainer.model)})}")


if __name__ == "__main__":
    main(*sys.argv[1:])
