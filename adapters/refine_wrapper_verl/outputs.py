"""What an agent loop returned (``AgentLoopOutput``, one or several), as the core sees it and as an answer to q."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refine_wrapper.core.types import Outcome, Sample


def listed(output: Any) -> list[Any]:
    """The outputs of a loop: V1's loops may return several."""
    return list(output) if isinstance(output, list) else [output]  # pyright: ignore[reportUnknownArgumentType]


def sample_of(outputs: Sequence[Any], tokenizer: Any, max_tokens: int) -> Sample:
    """The core's view of a loop's outputs: of several the last, which is the one veRL scores.

    Its text is what the policy wrote itself; what tools said is not the policy's.

    Args:
        outputs: What the loop returned.
        tokenizer: The worker's.
        max_tokens: The longest response.
    """
    if not outputs:
        return Sample(outcome=Outcome.EMPTY, detail="the agent loop returned no output")
    last = outputs[-1]
    special = set(tokenizer.all_special_ids)
    own = [token for token, kept in zip(last.response_ids, last.response_mask, strict=True) if kept]
    ended = bool(last.response_ids) and last.response_ids[-1] == tokenizer.eos_token_id
    return Sample(
        text=tokenizer.decode(own, skip_special_tokens=True),
        token_ids=tuple(token for token in own if token not in special),
        num_tokens=sum(sum(output.response_mask) for output in outputs),
        finished=ended or len(last.response_ids) < max_tokens,
        policy_version=_version(last.extra_fields),
        prompt_ids=tuple(outputs[0].prompt_ids),
    )


def prompts_on_question(outputs: Sequence[Any], question_ids: Sequence[int]) -> list[list[int]]:
    """The prompt ids of a loop's outputs with q in the place of q'.

    The first output was sampled on q' itself. Later ones may go on from it: what follows q' in their prompts stays. A
    loop that makes later prompts otherwise gets q alone there, because they may hold what q' showed.
    """
    refined = list(outputs[0].prompt_ids)
    return [
        [*question_ids, *output.prompt_ids[len(refined) :]]
        if list(output.prompt_ids[: len(refined)]) == refined
        else list(question_ids)
        for output in outputs
    ]


def put_prompts(outputs: Sequence[Any], prompts: Sequence[list[int]]) -> None:
    """Give each output its prompt ids."""
    for output, prompt_ids in zip(outputs, prompts, strict=True):
        output.prompt_ids = list(prompt_ids)


def _version(extra_fields: Any) -> int | str | None:
    """The weights that wrote it; ``2-3`` if they changed while it was written (partial rollout)."""
    first, last = extra_fields.get("min_global_steps"), extra_fields.get("max_global_steps")
    if first is None or last is None:
        return None
    return int(last) if first == last else f"{first}-{last}"
