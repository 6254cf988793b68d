"""The two arms: TRL's trainer at 8 completions, and refined at 4 + 4; same seed, problems and prompts per step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from refine_wrapper_demo.evaluate import MAX_ANSWER_TOKENS, Accuracy, evaluate
from refine_wrapper_demo.task import REFINE_TEMPLATE, Task
from refine_wrapper_trl import RefineGRPOConfig, RefineGRPOTrainer, RefineRLOOConfig, RefineRLOOTrainer

COMPLETIONS: Final = 8
"""Completions per prompt of the plain arm; the refined one splits them into drafts and refinements."""
DRAFTS: Final = 4
ARMS: Final = ("plain", "refined")
PROGRESS_FILE, RESULT_FILE, STATUS_FILE = "steps.jsonl", "result.json", "status.json"

OBJECTIVES: Final[Mapping[str, Mapping[str, Any]]] = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "rloo": {},
}
"""Settings of the objectives; DAPO without dynamic sampling, which TRL does not have."""


@dataclass(frozen=True)
class Plan:
    """What a demo run does.

    Attributes:
        steps: RL steps of each arm.
        prompts: Prompts per step.
        objective: A key of :data:`OBJECTIVES`.
        measurements: How often accuracy is measured on the way.
    """

    steps: int = 150
    prompts: int = 32
    objective: str = "grpo"
    measurements: int = 5


def run_arm(
    arm: str, model_folder: Path, task: Task, folder: Path, plan: Plan, seed: int, on_step: Callable[[int], None]
) -> dict[str, Any]:
    """Train one arm for one seed and write what happened, step by step, to ``folder``.

    Args:
        arm: ``plain`` or ``refined``.
        model_folder: The warm-started model.
        task: Problems and reward.
        folder: Gets ``steps.jsonl`` (appended on the way), ``result.json`` (at the end), and what a cell's folder of an
            ablation has: ``status.json`` and the refined arm's trace.
        plan: Sizes and objective.
        seed: Of data, sampling and training.
        on_step: Called with the number of finished steps.

    Returns:
        The contents of ``result.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    _note_state(folder, "unfinished")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    rloo = plan.objective == "rloo"
    if arm == "plain":
        config, trainer_class = (RLOOConfig, RLOOTrainer) if rloo else (GRPOConfig, GRPOTrainer)
        settings: dict[str, Any] = {}
        group_size = COMPLETIONS
    else:
        config, trainer_class = (RefineRLOOConfig, RefineRLOOTrainer) if rloo else (RefineGRPOConfig, RefineGRPOTrainer)
        template = folder / "template.txt"
        template.write_text(REFINE_TEMPLATE, encoding="utf-8")
        group_size = COMPLETIONS - DRAFTS
        settings = {
            "refine_num_drafts": DRAFTS,
            "refine_template": str(template),
            "refine_trace_dir": str(folder / "trace"),
            "refine_trace_texts": True,
            "refine_plain_generations": COMPLETIONS,
        }
        (folder / "trace" / "groups.jsonl").unlink(missing_ok=True)
    args = config(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=plan.prompts * group_size,
        num_generations=group_size,
        max_completion_length=MAX_ANSWER_TOKENS,
        temperature=1.0,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        beta=0.0,
        max_steps=plan.steps,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **OBJECTIVES[plan.objective],
        **settings,
    )
    note = _Note(folder, task, plan, arm, on_step)
    trainer = trainer_class(
        model=model,
        args=args,
        processing_class=tokenizer,
        reward_funcs=task.reward,
        train_dataset=Dataset.from_list(task.rows(task.training(seed, plan.steps * plan.prompts))),
        callbacks=[note],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    accuracy = evaluate(trainer.model, tokenizer, task, task.held_out())
    result = {"arm": arm, "seed": seed, "steps": plan.steps, **asdict(accuracy), **note.totals()}
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=2), encoding="utf-8")
    _note_state(folder, "finished")
    return result


def warm_start_accuracy(model_folder: Path, task: Task) -> Accuracy:
    """Where both arms start from."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    return evaluate(model, AutoTokenizer.from_pretrained(model_folder), task, task.held_out())


def _note_state(folder: Path, state: str) -> None:
    (folder / STATUS_FILE).write_text(json.dumps({"state": state}) + "\n", encoding="utf-8")


class _Note(TrainerCallback):
    """Appends one line per step, so that an interrupted run leaves what it had."""

    def __init__(self, folder: Path, task: Task, plan: Plan, arm: str, on_step: Callable[[int], None]) -> None:
        self._file = folder / PROGRESS_FILE
        self._task, self._plan, self._arm, self._on_step = task, plan, arm, on_step
        self._entries = task.held_out()[:200]
        self._lines: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "reward" not in logs:
            return
        self._seconds += time.perf_counter() - self._started
        rows = self._plan.prompts * args.num_generations
        line = {
            "step": state.global_step,
            "seconds": round(self._seconds, 3),
            "reward": logs["reward"],
            "entropy": logs.get("entropy"),
            "gradient_active_share": 1 - logs["frac_reward_zero_std"],
            "completions": logs.get("refine/completions", rows),
            "tokens": (
                logs["refine/draft_tokens"] + logs["refine/refinement_tokens"]
                if "refine/draft_tokens" in logs
                else logs["completions/mean_length"] * rows
            ),
            **{name: value for name, value in logs.items() if name.startswith("refine/")},
        }
        every = max(1, self._plan.steps // max(1, self._plan.measurements))
        if state.global_step % every == 0:
            accuracy = evaluate(kwargs["model"], kwargs["processing_class"], self._task, self._entries, samples=1)
            line["single_shot"], line["with_draft"] = accuracy.single_shot, accuracy.with_draft
        self._lines.append(line)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._on_step(state.global_step)
        self._started = time.perf_counter()  # measuring is not training time

    def totals(self) -> dict[str, Any]:
        """Sums over the run; shares over its last quarter."""
        last = self._lines[-max(1, len(self._lines) // 4) :]
        copies = [line["refine/copy_rate"] for line in last if "refine/copy_rate" in line]
        return {
            "completions": int(sum(line["completions"] for line in self._lines)),
            "tokens": int(sum(line["tokens"] for line in self._lines)),
            "seconds": round(self._seconds, 1),
            "gradient_active_share": sum(line["gradient_active_share"] for line in last) / len(last),
            "copy_rate": sum(copies) / len(copies) if copies else None,
        }
