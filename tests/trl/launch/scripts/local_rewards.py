"""A reward of the user's own, which `trl grpo` finds by its import path in the current folder. Keeps a record."""

import json


def solution_letters(prompts, completions, solution, **columns):
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps({"prompts": prompts, "completions": completions, "solution": solution}) + "\n")
    return [len(set(c[0]["content"]) & set(s)) / len(set(s)) for c, s in zip(completions, solution, strict=False)]
