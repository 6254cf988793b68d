"""Writes train.parquet and val.parquet with chain sums from reasoning-gym, in the form veRL reads.

python make_data.py data
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas
import reasoning_gym

GENERATOR = "chain_sum"


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Fresh problems; the whole entry travels along as JSON, for the verifier."""
    made = reasoning_gym.create_dataset(GENERATOR, seed=seed, size=count, min_terms=2, max_terms=3, max_digits=2)
    return [
        {
            "data_source": f"reasoning_gym/{GENERATOR}",
            "prompt": [{"role": "user", "content": f"{entry['question']} Answer with the number alone."}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": entry["answer"]},
            "extra_info": {"index": number, "entry": json.dumps(entry)},
        }
        for number, entry in enumerate(made)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2048, help="number of training problems")
    parser.add_argument("--val", type=int, default=128, help="number of validation problems")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows(options.train, seed=1)).to_parquet(options.folder / "train.parquet")
    pandas.DataFrame(rows(options.val, seed=2)).to_parquet(options.folder / "val.parquet")


if __name__ == "__main__":
    main()
