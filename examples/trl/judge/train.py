"""GRPO with a judge, with the task's own verifier, or with both as the reward. Nothing in here refines.

vllm serve Qwen/Qwen2.5-7B-Instruct                                        # the judge, on a GPU of its own
python train.py --reward judge                                             # the plain run
refine-wrapper run --refine.num_drafts 4 --refine.match_budget -- python train.py --reward judge
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import reasoning_gym
from datasets import Dataset
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

from refine_wrapper.rewards.judge import AsyncJudgeReward, JudgeReward
from refine_wrapper.rewards.weighted import weighted

TASK = "chain_sum"


def verified(completions: list[Any], entry: list[str], **_: Any) -> list[float]:
    """reasoning-gym's own verifier, on the last word of the answer."""
    score = reasoning_gym.get_score_answer_fn(TASK)
    words = [(completion[-1]["content"].split() or [""])[-1].rstrip(".") for completion in completions]
    return [float(score(word, json.loads(problem))) for word, problem in zip(words, entry, strict=True)]


def problems(count: int, seed: int) -> Dataset:
    """Fresh problems; the whole entry travels along as JSON for the verifier."""
    made = reasoning_gym.create_dataset(TASK, seed=seed, size=count, min_terms=3, max_terms=4)
    ask = "{} Explain each step in a line. End with the result."
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": ask.format(e["question"])}], "entry": json.dumps(e)} for e in made]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="local folder or hub id")
    parser.add_argument("--reward", choices=["rule", "judge", "both"], default="judge")
    parser.add_argument("--judge", type=Path, default=Path(__file__).with_name("judge.yaml"))
    own, rest = parser.parse_known_args()
    if own.reward == "rule":
        reward: Any = verified
    elif own.reward == "judge":
        reward = AsyncJudgeReward(own.judge)
    else:  # one sum and not two functions: TRL would count a judgement that failed as 0 beside the other one
        reward = weighted((verified, 1.0), (JudgeReward(own.judge), 1.0))
    # Every setting of TRL's config is a flag; these are defaults.
    given = ["--num_generations", "8", "--per_device_train_batch_size", "16", "--max_completion_length", "128"]
    given += ["--max_steps", "100", "--logging_steps", "1", "--save_strategy", "no", "--output_dir", "outputs/judge"]
    (args,) = HfArgumentParser(GRPOConfig).parse_args_into_dataclasses([*given, *rest])
    data = problems(2 * args.max_steps, seed=1 + args.seed)
    trainer = GRPOTrainer(own.model, reward, args=args, train_dataset=data)
    trainer.train()
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main()
