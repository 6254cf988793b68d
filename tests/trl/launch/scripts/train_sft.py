"""Plain TRL, but no reinforcement learning: there is nothing to refine."""

import sys

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

SFTTrainer(
    model=sys.argv[1],
    args=SFTConfig(output_dir=sys.argv[2], max_steps=1, save_strategy="no", report_to="none", bf16=False),
    train_dataset=Dataset.from_dict({"text": ["one two three"] * 8}),
).train()
