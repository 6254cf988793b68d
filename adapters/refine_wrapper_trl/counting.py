"""The host's metrics of generation for a batch whose rows come from several calls: of the batch, once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from refine_wrapper_trl.isolate import replaced
from refine_wrapper_trl.phases import Scored
from refine_wrapper_trl.rows import Generated
from refine_wrapper_trl.waves import HostGenerate

Metrics = dict[str, list[float]]


def metrics_so_far(trainer: Any) -> Metrics:
    """A copy of what the host has in store to be logged."""
    return {name: list(values) for name, values in _metrics(trainer).items()}


def count_once(trainer: Any, scored: Scored, before: Metrics, host_generate: HostGenerate) -> Scored:
    """Have the host's metrics of generation speak of the batch as merged, and num_tokens of all that was generated.

    Args:
        trainer: The TRL trainer.
        scored: The batch as merged.
        before: :func:`metrics_so_far` before the batch was generated.
        host_generate: The host's ``_generate``. It logs lengths of what it returns and offers no other way to log them,
            so it is run once more, on what was sampled already.
    """
    metrics, tokens = _metrics(trainer), trainer.state.num_input_tokens_seen
    if scored.merged:
        first = {name: values[len(before.get(name, ())) :] for name, values in metrics.items()}
        metrics.clear()
        metrics.update(before)
        with _serving(trainer, scored.generated):
            again = host_generate(scored.trained_on)
        # By row it is what was sampled. What speaks of the whole batch (TRL 1.0: its number of tokens) is counted anew.
        parts = [
            new if isinstance(new, torch.Tensor) else own
            for own, new in zip(scored.generated.parts, again, strict=True)
        ]
        scored = replace(scored, generated=Generated(tuple(parts)))
        # What the host logs in no other way, calls of tools, is that of the first draw.
        for name, values in [*first.items(), *((name, [value]) for name, value in scored.metrics.items())]:
            if len(metrics.get(name, ())) == len(before.get(name, ())):
                metrics[name].extend(values)
        trainer.state.num_input_tokens_seen = tokens
    metrics["num_tokens"] = [tokens]
    return scored


@contextmanager
def _serving(trainer: Any, generated: Generated) -> Generator[None]:
    """Answer the host's next ``_generate`` with what was sampled: no model, no tool and no rollout_func is called."""
    parts = generated.parts
    if len(parts) == 3:  # RLOO, which has no rollout_func
        with (
            replaced(trainer, "_generate_single_turn", lambda *_, **__: generated.completion_ids),
            replaced(trainer, "_tokenize_prompts", lambda *_: (generated.prompt_ids, None, {})),
        ):
            yield
        return
    masks = {} if parts[2] is None else {"env_mask": parts[2]}
    sampled = {"prompt_ids": parts[0], "completion_ids": parts[1], "logprobs": None, **masks}
    with replaced(trainer, "rollout_func", lambda *_: sampled), replaced(trainer, "tools", None):
        yield


def _metrics(trainer: Any) -> Any:
    return trainer._metrics["train" if trainer.model.training else "eval"]
