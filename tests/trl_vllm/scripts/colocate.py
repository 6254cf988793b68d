"""Trains GRPO with vLLM colocate on a tiny model and writes what happened; started by test_colocate.py.

    python colocate.py FOLDER [--stale] [--max-length TOKENS] [--draft-ahead] [--mode NAME]

``--stale`` leaves out the weight sync: the control that shows the check of vLLM's logprobs can fail.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import refine_testing.vllm_cpu  # noqa: F401  (before the engine is built)
from datasets import Dataset
from refine_testing.rewards import RecordingReward
from refine_testing.tiny import save_tiny

from refine_wrapper.errors import BudgetError
from refine_wrapper_trl import RefineGRPOConfig, RefineGRPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stale", action="store_true")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--draft-ahead", action="store_true")
    parser.add_argument("--mode", default="paper")
    options = parser.parse_args()
    model = save_tiny(options.folder / "model", hidden_size=64)  # head_dim 32: the CPU backend refuses 16
    reward = RecordingReward()
    trained: list[list[int]] = []
    ratios: list[float] = []

    class Watched(RefineGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True):
                trained.append(ids[mask.bool()].tolist())
            ratios.extend(output["importance_sampling_ratio"].mean(1).tolist())
            return output

    args = RefineGRPOConfig(
        output_dir=str(options.folder / "out"),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=24,
        max_steps=4,
        learning_rate=3e-2,
        use_cpu=True,
        bf16=False,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=options.max_length,
        vllm_gpu_memory_utilization=0.2,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        refine_num_drafts=3 if options.mode == "paper" else 2,
        refine_mode=options.mode,
        refine_max_reward=1.0 if options.mode == "paper" else 0.6,
        refine_draft_ahead=options.draft_ahead,
        refine_trace_dir=str(options.folder / "trace"),
        refine_trace_texts=True,
    )
    rows = [{"prompt": f"Question {number}: what is {number} + {number}? "} for number in range(8)]
    try:
        trainer = Watched(model, reward, args=args, train_dataset=Dataset.from_list(rows))
    except BudgetError as error:
        (options.folder / "refused.txt").write_text(str(error))
        return
    if options.stale:
        trainer.vllm_generation.sync_weights = lambda: None
    rows_asked: list[int] = []
    generate = trainer.vllm_generation.generate

    def counted(prompts, *args, **kwargs):
        rows_asked.append(len(prompts))
        return generate(prompts, *args, **kwargs)

    trainer.vllm_generation.generate = counted
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = max(float((value - before[name]).abs().max()) for name, value in trainer.model.state_dict().items())
    tokenizer = trainer.processing_class
    (options.folder / "result.json").write_text(
        json.dumps(
            {
                "log": [line for line in trainer.state.log_history if "reward" in line],
                "moved": moved,
                "rows_asked": rows_asked,
                "rows_scored": [len(call["completions"]) for call in reward.calls],
                "prompts_scored": sorted({prompt for call in reward.calls for prompt in call["prompts"]}),
                "ratios": ratios,
                "trained": [tokenizer.decode(ids) for ids in trained],
                "longest_prompt": max(map(len, trained)),
                "template_is_in": "Here is an attempt",
            }
        )
    )


if __name__ == "__main__":
    main()
