"""A user's own sampler of veRL (``trainer.v1.sampler.custom_sampler``): the built-in one, that writes down what it sees.

It reads the real TransferQueue in the trainer's process, at the moment when a batch is taken from it.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

_FIELDS = [
    "uid",
    "raw_prompt",
    "reward_model",
    "extra_info",
    "session_id",
    "prompts",
    "responses",
    "response_mask",
    "rm_scores",
]


class WritingSampler(ReplayBuffer):
    """Writes all that lies in the queue to the file named by REFINE_TESTING_QUEUE, a line per step.

    And hands out rows in the order of the data set: otherwise it is the order of veRL's random uids, and the sums over a
    batch would differ in their last bits from run to run.
    """

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id == "val":
            return batch, metrics
        everything: dict[str, Any] = transfer_queue.kv_list()[partition_id]
        keys = [key for key, tag in everything.items() if not tag.get("is_prompt", False)]
        data = transfer_queue.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=_FIELDS)
        columns = {name: _column(data[name]) for name in _FIELDS}
        rows = [{name: columns[name][row] for name in _FIELDS} for row in range(len(keys))]
        line = {"step": global_steps, "keys": sorted(everything), "rows": dict(zip(keys, rows, strict=True))}
        with open(os.environ["REFINE_TESTING_QUEUE"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        place = {key: (row["extra_info"]["index"], row["session_id"]) for key, row in line["rows"].items()}
        batch.reorder(sorted(range(len(batch)), key=lambda row: place[batch.keys[row]]))
        return batch, metrics


def _column(column: Any) -> list[Any]:
    """As JSON: nested tensors, and what veRL wraps in tensordict's non-tensor types."""
    return [_plain(value) for value in (column.unbind() if isinstance(column, torch.Tensor) else list(column))]


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
