"""A training script as users have it: plain TRL. Nothing in it knows of refinement, and nobody edits it."""

import argparse
import json
import os

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer


def checksum(completions, answer, **columns):
    """Differs between random texts, and depends on the row."""
    return [
        sum((i + 1) * ord(c) for i, c in enumerate(str(a) + t)) % 97 / 97
        for t, a in zip(completions, answer, strict=False)
    ]


def note_trained(folder):
    """A hook that writes down what the model is trained on: the token ids of each forward pass that has a gradient."""

    def hook(model, args, kwargs):
        if torch.is_grad_enabled():
            with open(os.path.join(folder, f"trained-{os.environ.get('RANK', 0)}.jsonl"), "a") as file:
                mask = kwargs["attention_mask"].bool()
                file.write(
                    json.dumps([ids[kept].tolist() for ids, kept in zip(kwargs["input_ids"], mask, strict=False)])
                    + "\n"
                )

    return hook


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--generations", type=int, default=2)
    options = parser.parse_args()

    os.makedirs(options.output, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    model.register_forward_pre_hook(note_trained(options.output), with_kwargs=True)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=checksum,
        args=GRPOConfig(
            output_dir=options.output,
            per_device_train_batch_size=options.batch,
            num_generations=options.generations,
            max_completion_length=12,
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            seed=7,
        ),
        train_dataset=load_dataset("json", data_files=options.data, split="train"),
    )
    trainer.train()
    trainer.save_model(options.output)
    trainer.save_state()


if __name__ == "__main__":
    main()
