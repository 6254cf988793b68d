"""Writes train.parquet and val.parquet from problems with a final answer, in the form veRL reads.

python make_data.py --train PATH_OR_HUB_ID --val PATH_OR_HUB_ID data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset, load_dataset

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."


def load(name: str, split: str) -> Dataset:
    """A local .json/.jsonl/.parquet file, or a hub id."""
    suffix = Path(name).suffix
    if suffix in (".json", ".jsonl", ".parquet"):
        return load_dataset("parquet" if suffix == ".parquet" else "json", data_files=name, split="train")
    return load_dataset(name, split=split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", required=True, help="hub id, or a local .json/.jsonl/.parquet file")
    parser.add_argument("--val", required=True, help="the same, for validation")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-split", default="test")
    parser.add_argument("--problem", default="problem", help="column of the question")
    parser.add_argument("--answer", default="answer", help="column of the final answer")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for part, name, split in (
        ("train", options.train, options.train_split),
        ("val", options.val, options.val_split),
    ):
        problems = load(name, split)

        def as_row(row: dict[str, str], number: int) -> dict[str, object]:
            return {
                "data_source": "math",
                "prompt": [{"role": "user", "content": f"{row[options.problem]}\n\n{INSTRUCTION}"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(row[options.answer])},
                "extra_info": {"index": number},
            }

        rows = problems.map(as_row, with_indices=True, remove_columns=problems.column_names)
        rows.to_parquet(str(options.folder / f"{part}.parquet"))


if __name__ == "__main__":
    main()
