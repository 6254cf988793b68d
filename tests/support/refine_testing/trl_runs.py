"""Runs of TRL's own trainers, and what refinement must have done in them, recomputed from outside.

The oracle is independent of the package: it knows the text of the built-in template, the rule "first draft with the highest
reward", and what the reward function was asked; :func:`check_refined` holds the trained batches and the trace against that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from refine_testing.devices import ON_GPU
from refine_testing.rewards import RecordingReward, checksum, text_of
from refine_testing.tiny import tiny_llama, tiny_tokenizer
from refine_testing.traces import read_groups
from refine_wrapper_trl import RefineGRPOConfig, RefineGRPOTrainer, RefineRLOOConfig, RefineRLOOTrainer

IMPROVE = (
    "Check this attempt critically. Then solve the problem again from the start, correct any mistake, and give a "
    "complete, better answer in the form the problem asks for."
)
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 0.05,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": not ON_GPU,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "beta": 0.0,
    "seed": 7,
}


def append(question: str, draft: str) -> str:
    """The built-in template ``append``, written out."""
    return f"{question}\n\nHere is an attempt at this problem. It may be wrong.\n\n{draft}\n\n{IMPROVE}"


def appended(question: Any, draft: str) -> Any:
    """q' by ``append``, for plain text and for conversations (of strings) that end with the user's turn."""
    if isinstance(question, str):
        return append(question, draft) + "\n\n"
    return [*question[:-1], {"role": "user", "content": append(question[-1]["content"], draft)}]


def turned(question: list[dict[str, str]], draft: str) -> list[dict[str, str]]:
    """q' by ``turns``, for conversations."""
    return [*question, {"role": "assistant", "content": draft}, {"role": "user", "content": IMPROVE}]


def plain_data(count: int = 8) -> Dataset:
    """Questions as text, with a label."""
    return Dataset.from_list([{"prompt": f"What is {i} plus {i}?", "answer": f"label {i}"} for i in range(count)])


def chat_data(count: int = 8, system: str | None = None) -> Dataset:
    """Questions as conversations, with a label."""
    head = [{"role": "system", "content": system}] if system else []
    return Dataset.from_list(
        [
            {"prompt": [*head, {"role": "user", "content": f"What is {i} plus {i}?"}], "answer": f"label {i}"}
            for i in range(count)
        ]
    )


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of a TRL config for a short run, without refinement."""
    return {**SETTINGS, "output_dir": str(folder / "out"), **changes}


def refined_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The same with refinement: N = 3, and a trace with texts in ``folder/trace``."""
    refined = {"refine_num_drafts": 3, "refine_trace_dir": str(folder / "trace"), "refine_trace_texts": True}
    return settings(folder, **{**refined, **changes})


def capturing(trainer_class: Any) -> Any:
    """A subclass that keeps what was handed to ``compute_loss``, in ``trained``."""

    class Capturing(trainer_class):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if model.training:
                kept = {
                    name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
                }
                self.__dict__.setdefault("trained", []).append(kept)
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Capturing


_CLASSES: dict[str, Any] = {
    "grpo": (RefineGRPOConfig, capturing(RefineGRPOTrainer)),
    "rloo": (RefineRLOOConfig, capturing(RefineRLOOTrainer)),
}


def make(folder: Path, *, algorithm: str = "grpo", trainer_class: Any = None, args: Any = None, **given: Any) -> Any:
    """A trainer on the tiny model. What is not the trainer's own argument is a setting of its config."""
    config_class, default_class = _CLASSES[algorithm]
    of_trainer = {
        "model": None,
        "reward_funcs": None,
        "train_dataset": None,
        "processing_class": None,
        **dict.fromkeys(("peft_config", "callbacks", "tools", "environment_factory", "rollout_func")),
        **dict.fromkeys(("reward_processing_classes", "eval_dataset")),
    }
    own = {name: given.pop(name) for name in list(given) if name in of_trainer}
    arguments = {
        "model": tiny_llama(),
        "reward_funcs": RecordingReward(),
        "train_dataset": plain_data(),
        "processing_class": tiny_tokenizer(),
        **own,
    }
    return (trainer_class or default_class)(args=args or config_class(**refined_settings(folder, **given)), **arguments)


@dataclass
class Batch:
    """One generation batch, as the reward function saw it: groups in order.

    Attributes:
        questions_P: What the reward function was given as the prompt, the same in both stages.
        drafts_PN: Texts of the drafts.
        refinements_PG: Texts of the refinements.
        columns: The reward function's other columns in Stage 1 and in Stage 2.
    """

    questions_P: list[Any]
    drafts_PN: list[list[str]]
    refinements_PG: list[list[str]]
    columns: tuple[dict[str, Any], dict[str, Any]]


def batches(calls: list[dict[str, Any]], num_drafts: int, num_refinements: int) -> list[Batch]:
    """Pair the calls of a reward function: drafts, then refinements of the same groups in the same order."""
    assert calls, "the reward function was never called"
    assert len(calls) % 2 == 0, f"{len(calls)} calls: Stage 1 and Stage 2 do not alternate"
    found = []
    for first, second in zip(calls[::2], calls[1::2], strict=True):
        questions = second["prompts"][::num_refinements]
        assert second["prompts"] == [q for q in questions for _ in range(num_refinements)]
        assert first["prompts"] == [q for q in questions for _ in range(num_drafts)], (
            "Stage 1 must be asked about q, N times"
        )
        texts = [[text_of(completion) for completion in call["completions"]] for call in (first, second)]
        found.append(
            Batch(
                questions,
                [texts[0][i * num_drafts : (i + 1) * num_drafts] for i in range(len(questions))],
                [texts[1][i * num_refinements : (i + 1) * num_refinements] for i in range(len(questions))],
                (first, second),
            )
        )
    return found


def best(drafts_N: list[str], score: Callable[[str], float | None] = checksum) -> str | None:
    """The first of the drafts with the highest reward; None if all are blank or unscored."""
    usable = [draft.strip() for draft in drafts_N if draft.strip() and score(draft) is not None]
    scores = [score(draft) for draft in drafts_N if draft.strip() and score(draft) is not None]
    return usable[scores.index(max(scores))] if usable else None


def rendered(trainer: Any, prompt: Any, **chat: Any) -> str:
    """A prompt as the policy reads it."""
    if isinstance(prompt, str):
        return prompt
    return trainer.processing_class.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **chat)


def trained_rows(trainer: Any, micro_batches: list[dict[str, Any]] | None = None) -> list[tuple[str, str]]:
    """(prompt, completion) of every row that went into the loss; prompts with control tokens, completions without."""
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    return [
        (
            tokenizer.decode(prompt[prompt_mask.bool()], skip_special_tokens=False),
            tokenizer.decode(completion[mask.bool()], skip_special_tokens=True),
        )
        for inputs in (trainer.trained if micro_batches is None else micro_batches)
        for prompt, prompt_mask, completion, mask in zip(
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            inputs["completion_ids"],
            inputs["completion_mask"],
            strict=True,
        )
    ]


def check_refined(
    trainer: Any,
    reward: RecordingReward,
    *,
    num_batches: int,
    refine: Callable[[Any, str], Any] = appended,
    score: Callable[[str], float | None] = checksum,
    uses: int = 1,
    **chat: Any,
) -> list[Batch]:
    """Hold a finished run against the method; returns its generation batches.

    Trained were exactly the refinements, each under q' with the best draft of its group in it; the reward function was asked
    about q in both stages; the trace says the same.

    Args:
        trainer: From :func:`make`, trained.
        reward: One of its reward functions.
        num_batches: Generation batches that were sampled.
        refine: Builds q' from q and the draft.
        score: The reward that chooses the draft.
        uses: How often each row went into the loss (``num_iterations``).
        chat: What the host passes to the chat template.
    """
    config = trainer._refine_batches.config
    found = batches(reward.calls, config.num_drafts, trainer.num_generations)
    assert len(found) == num_batches
    expected: Counter[tuple[str, str]] = Counter()
    choices: list[str | None] = []
    for batch in found:
        for question, drafts_N, refinements_G in zip(
            batch.questions_P, batch.drafts_PN, batch.refinements_PG, strict=True
        ):
            choices.append(best(drafts_N, score))
            prompt = question if choices[-1] is None else refine(question, choices[-1])
            for refinement in refinements_G:
                expected[rendered(trainer, prompt, **chat), refinement] += uses
    assert Counter(trained_rows(trainer)) == expected
    assert any(choice is not None for choice in choices), "nothing was refined: the run proves nothing"
    trace = read_groups(Path(config.trace_dir))
    assert [group["action"] for group in trace] == ["plain" if choice is None else "refine" for choice in choices]
    assert [group["draft_text"] for group in trace] == [choice or "" for choice in choices]
    assert [len(group["drafts"]) for group in trace] == [config.num_drafts] * len(choices)
    texts = [refinement["text"] for group in trace for refinement in group["refinements"]]
    assert texts == [text for batch in found for group in batch.refinements_PG for text in group]
    assert len({group["group_id"] for group in trace}) == len(trace)
    return found


def letters_only() -> dict[str, Any]:
    """``generation_kwargs`` that let the policy sample capital letters and the end, so that texts are the same stripped."""
    tokenizer = tiny_tokenizer()
    kept = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))}
    return {"suppress_tokens": [token for token in range(len(tokenizer)) if token not in kept]}


def trace_of(trainer: Any) -> list[dict[str, Any]]:
    """The groups that a trainer of :func:`make` has traced so far."""
    return read_groups(Path(trainer._refine_batches.config.trace_dir))
