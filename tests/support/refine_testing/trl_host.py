"""TRL's own trainers on tiny models, watched from outside: what was sampled, scored, trained, and from which weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from refine_testing.devices import ON_GPU
from refine_testing.rewards import checksum, text_of
from refine_testing.tiny import tiny_llama, tiny_tokenizer
from refine_wrapper_trl import RefineGRPOConfig, RefineGRPOTrainer, RefineRLOOConfig, RefineRLOOTrainer

TRAINERS: dict[str, tuple[type, type, type, type]] = {
    "grpo": (RefineGRPOTrainer, RefineGRPOConfig, GRPOTrainer, GRPOConfig),
    "rloo": (RefineRLOOTrainer, RefineRLOOConfig, RLOOTrainer, RLOOConfig),
}
"""Objective -> refining trainer and config, plain trainer and config."""

ATTEMPT = "Here is an attempt at this problem. It may be wrong."
"""In every q' of the template `append`, and in no question of these tests."""


def as_q_prime(question: str, draft: str) -> str:
    """q' of the template `append` for a plain-text question, written out on purpose: not taken from the package."""
    return (
        f"{question}\n\n{ATTEMPT}\n\n{draft}\n\nCheck this attempt critically. Then solve the problem again from the start, "
        "correct any mistake, and give a complete, better answer in the form the problem asks for.\n\n"
    )


def questions(number: int, /, **columns: Sequence[Any]) -> Dataset:
    """Plain-text prompts of one length class, all different."""
    return Dataset.from_dict({"prompt": [f"Question {i}: {i}+{i}=" for i in range(number)], **columns})


def chats(number: int, /, **columns: Sequence[Any]) -> Dataset:
    """The same questions as conversations."""
    prompts = [[{"role": "user", "content": text}] for text in questions(number)["prompt"]]
    return Dataset.from_dict({"prompt": prompts, **columns})


@dataclass
class Batch:
    """One generation batch as it left `_generate_and_score_completions`, in the rows' order, on this rank."""

    mode: str
    rows: list[dict[str, Any]]
    output: dict[str, Any]
    weights: dict[str, torch.Tensor]
    """Weights of the policy before anything of this batch was sampled."""

    @property
    def prompt_ids(self) -> list[list[int]]:
        return unpadded(self.output["prompt_ids"], self.output["prompt_mask"])

    def prompts(self, tokenizer: Any) -> list[str]:
        """The trained prompts as text, control tokens included."""
        return [tokenizer.decode(ids) for ids in self.prompt_ids]


@dataclass
class Step:
    """One call of `_compute_loss`: what it was given, what it answered, and the weights it was computed with."""

    mode: str
    inputs: dict[str, Any]
    loss: float
    weights: dict[str, torch.Tensor]


class Watched:
    """Goes before a trainer class, outside of refinement; calls through and writes down."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.batches: list[Batch] = []
        self.steps: list[Step] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        trainer: Any = self
        rows, weights = [dict(row) for row in inputs], weights_of(trainer.model)
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        self.batches.append(Batch(_mode(trainer), rows, _copied(output), weights))
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        trainer: Any = self
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        self.steps.append(Step(_mode(trainer), _copied(inputs), float(loss.detach()), weights_of(trainer.model)))
        return loss


def trainer_for(
    folder: Path,
    reward: Any,
    dataset: Dataset,
    *,
    objective: str = "grpo",
    plain: bool = False,
    base: type | None = None,
    model: Any = None,
    script: Script | None = None,
    tokenizer: Any = None,
    more: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A watched trainer. ``settings`` are the config's; ``more`` goes to the trainer; ``script`` replaces sampling."""
    refining, refining_config, host, host_config = TRAINERS[objective]
    kind, config = (host, host_config) if plain else (refining, refining_config)
    tokenizer = tokenizer or tiny_tokenizer()
    if model is None:
        model = tiny_llama()
    if settings.get("beta"):
        model.config._name_or_path = _start(folder, model)  # where the host loads its reference model from
    generations = record_generation(model, tokenizer, script)
    trainer: Any = type("WatchedTrainer", (Watched, base or kind), {})(
        model=model,
        reward_funcs=reward,
        args=config(**{**DEFAULTS, "output_dir": str(folder), **settings}),
        train_dataset=dataset,
        processing_class=tokenizer,
        **(more or {}),
    )
    trainer.generations = generations
    return trainer


DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 10,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "beta": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": not ON_GPU,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "seed": 7,
}


def _start(folder: Path, model: Any) -> str:
    model.save_pretrained(folder / "start")
    return str(folder / "start")


Script = Callable[[str, int], "str | list[int]"]
"""(prompt as text, row of the call) -> the completion: a text, which then ends by itself, or the exact token ids."""


@dataclass
class Generation:
    """One call of `model.generate`: the prompts as text, and how it was to sample."""

    prompts: list[str]
    sampling: dict[str, Any] = field(default_factory=dict)


def record_generation(model: Any, tokenizer: Any, script: Script | None = None) -> list[Generation]:
    """Write down every `model.generate`, which the host calls; with a script, answer it in the model's place."""
    sample, calls = model.generate, list[Generation]()

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any, **rest: Any) -> Any:
        prompts = [tokenizer.decode(ids) for ids in unpadded(input_ids, attention_mask)]
        calls.append(Generation(prompts, _sampling(generation_config)))
        if script is None:
            return sample(
                input_ids=input_ids, attention_mask=attention_mask, generation_config=generation_config, **rest
            )
        answers = [script(prompt, row) for row, prompt in enumerate(prompts)]
        limit = generation_config.max_new_tokens
        ids = [[*spelled(tokenizer, a), tokenizer.eos_token_id] if isinstance(a, str) else a for a in answers]
        width = min(limit, max(map(len, ids)))
        padded = [row[:width] + [tokenizer.pad_token_id] * (width - len(row)) for row in ids]
        return torch.cat([input_ids, torch.tensor(padded, device=input_ids.device)], dim=1)

    model.generate = generate
    return calls


def spelled(tokenizer: Any, text: str) -> list[int]:
    """Ids that spell a text byte by byte, also where the tokenizer would read a control token."""
    return [token for character in text for token in tokenizer.encode(character, add_special_tokens=False)]


def unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """Rows of token ids without padding."""
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def logged(trainer: Any, name: str) -> list[float]:
    """A metric's values in `log_history`, in order, where it was logged."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def _mode(trainer: Any) -> str:
    return "train" if trainer.model.training else "eval"


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {n: v.detach().clone() if isinstance(v, torch.Tensor) else copy.copy(v) for n, v in values.items()}


def _sampling(config: Any) -> dict[str, Any]:
    names = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "num_beams")
    return {name: getattr(config, name, None) for name in names}


@dataclass
class Recorded:
    """Both stages of one generation batch as a reward function saw them, all ranks' rows in order."""

    drafts: dict[str, Any]
    refinements: dict[str, Any]
    draft_rewards: list[float | None]
    rewards: list[float | None]

    def best(self, group: int, num_drafts: int) -> int:
        """Row of the draft with the highest reward in a group, the first of equals."""
        rows = range(group * num_drafts, (group + 1) * num_drafts)
        return max(
            (row for row in rows if self.draft_rewards[row] is not None),
            key=lambda row: (self.draft_rewards[row], -row),
        )

    def best_text(self, group: int, num_drafts: int) -> str:
        """Its text as it stands in a prompt."""
        return text_of(self.drafts["completions"][self.best(group, num_drafts)]).strip()


def recorded(reward: Any, pay: Callable[..., list[float | None]] | None = None) -> list[Recorded]:
    """The calls of a :class:`RecordingReward`, as pairs of Stage 1 and Stage 2."""
    pay = pay or (lambda call: [checksum(text_of(completion)) for completion in call["completions"]])
    assert len(reward.calls) % 2 == 0, "a batch is one call for drafts and one for refinements"
    return [
        Recorded(first, second, pay(first), pay(second))
        for first, second in zip(reward.calls[::2], reward.calls[1::2], strict=True)
    ]


def q_prime_ids(tokenizer: Any, question: Any, draft: str) -> list[int]:
    """Token ids of q', for a question as text or as a conversation of one turn."""
    if isinstance(question, str):
        return tokenizer(text=as_q_prime(question, draft))["input_ids"]
    content = as_q_prime(question[-1]["content"], draft).removesuffix("\n\n")
    turns = [*question[:-1], {"role": "user", "content": content}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


def trained_rows(steps: Sequence[Step]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt ids, completion ids) of every row that reached the loss, in any order."""
    return sorted(
        (tuple(prompt), tuple(completion))
        for step in steps
        for prompt, completion in zip(
            unpadded(step.inputs["prompt_ids"], step.inputs["prompt_mask"]),
            unpadded(step.inputs["completion_ids"], step.inputs["completion_mask"]),
            strict=True,
        )
    )
