"""iGRPO (arXiv 2602.09000) with TRL: `python train.py --config recipe.yaml`, every setting also a flag."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, load_dataset
from trl import ModelConfig, TrlParser

from refine_wrapper.rewards.format import FormatReward
from refine_wrapper.rewards.math import MathReward
from refine_wrapper_trl import RefineGRPOConfig, RefineGRPOTrainer

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."


@dataclass
class DataConfig:
    """Where the problems come from."""

    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, or a local .json/.jsonl/.parquet file with the columns below."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})
    problem_column: str = field(default="problem", metadata={"help": "Column of the question."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the final answer."})


def load_problems(config: DataConfig) -> Dataset:
    """Problems as conversations; the answer stays a column, for the reward."""
    if config.dataset is None:
        raise SystemExit("Give --dataset: a hub id such as a MATH training set, or a local .json/.jsonl/.parquet file.")
    suffix = Path(config.dataset).suffix
    if suffix in (".json", ".jsonl", ".parquet"):
        kind = "parquet" if suffix == ".parquet" else "json"
        rows = load_dataset(kind, data_files=config.dataset, split="train")
    else:
        rows = load_dataset(config.dataset, split=config.dataset_split)

    def as_prompt(row: dict[str, str]) -> dict[str, object]:
        question = f"{row[config.problem_column]}\n\n{INSTRUCTION}"
        return {"prompt": [{"role": "user", "content": question}], "answer": row[config.answer_column]}

    return rows.map(as_prompt, remove_columns=rows.column_names)


def main() -> None:
    data, args, model = TrlParser((DataConfig, RefineGRPOConfig, ModelConfig)).parse_args_and_config()
    trainer = RefineGRPOTrainer(
        model.model_name_or_path, [MathReward(), FormatReward()], args=args, train_dataset=load_problems(data)
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
