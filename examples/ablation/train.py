"""Plain TRL on one of the two tasks; every setting of TRL's config is a flag. Nothing in here knows of refinement."""

from __future__ import annotations

import argparse
import os

from datasets import Dataset
from tasks import NAMES, Task, reward
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

HELD_OUT = 2000
"""Problems of the held-out stream that are kept out of training; the plan measures on some of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=NAMES, required=True)
    parser.add_argument("--model", required=True, help="folder of the warm-started model")
    parser.add_argument("--prompts", type=int, default=32, help="prompts per step")
    # Not from the parsed config: `match_budget` shrinks group and batch in there, and would shrink this batch twice.
    parser.add_argument("--num_generations", type=int, default=8, help="completions per prompt")
    own, rest = parser.parse_known_args()
    given = ["--use_cpu", "true", "--bf16", "false", "--learning_rate", "2e-4", "--lr_scheduler_type", "constant"]
    given += [
        "--max_completion_length",
        "10",
        "--temperature",
        "1.0",
        "--save_strategy",
        "no",
        "--disable_tqdm",
        "true",
    ]
    given += ["--num_generations", str(own.num_generations)]
    given += ["--per_device_train_batch_size", str(own.prompts * own.num_generations)]
    (args,) = HfArgumentParser(GRPOConfig).parse_args_into_dataclasses([*given, *rest])
    task = Task(own.task)
    avoid = frozenset(map(task.question, task.held_out(HELD_OUT)))
    problems = task.entries(10_000_000 + args.seed, args.max_steps * own.prompts, avoid)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(own.model),
        args=args,
        processing_class=AutoTokenizer.from_pretrained(own.model),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(task.rows(problems)),
    )
    trainer.train()
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
