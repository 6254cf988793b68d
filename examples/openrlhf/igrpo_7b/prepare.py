"""A data set of mathematical problems into math.jsonl, as train.sh reads it.

python prepare.py PATH_OR_HUB_ID --question problem --answer answer
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="hub id, or a local .json/.jsonl/.parquet file")
    parser.add_argument("--split", default="train")
    parser.add_argument("--question", default="problem", help="column of the question")
    parser.add_argument("--answer", default="answer", help="column of the final answer")
    parser.add_argument("--output", type=Path, default=Path("math.jsonl"))
    options = parser.parse_args()

    from datasets import load_dataset

    suffix = Path(options.dataset).suffix
    if suffix in (".json", ".jsonl", ".parquet"):
        kind = "parquet" if suffix == ".parquet" else "json"
        rows = load_dataset(kind, data_files=options.dataset, split="train")
    else:
        rows = load_dataset(options.dataset, split=options.split)
    with options.output.open("w", encoding="utf-8") as file:
        for row in rows:
            line = {"input": f"{row[options.question]}\n\n{INSTRUCTION}", "label": row[options.answer]}
            file.write(json.dumps({**line, "datasource": "math"}) + "\n")
