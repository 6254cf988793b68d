"""`refine-wrapper eval --engine vllm`: the command itself, on a tiny model and the CPU build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refine_testing.tiny import save_tiny

K, LENGTH = 3, 12
REWARD = """
def even(completions, answer, **columns):
    return [float(len(text.encode("utf-8", "replace")) % 2 == 0) for text in completions]
"""


def _eval(folder: Path, out: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_CI_ENV": "1",  # eager, no warm-up
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "REFINE_WRAPPER_PLUGINS": "",
    }
    command = [
        sys.executable,
        "-m",
        "refine_wrapper.cli",
        "eval",
        "model",
        "problems.jsonl",
        "--reward",
        "reward.py:even",
    ]
    command += ["--samples", str(K), "--max-new-tokens", str(LENGTH), "--draft", "both", "--batch-size", "12"]
    return subprocess.run(
        [*command, "--out", out, "--refine.num_drafts", "4", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        start_new_session=True,
    )


def _records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm-eval")
    save_tiny(folder / "model", hidden_size=64)  # head_dim 32: the CPU backend refuses 16
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"Question {n}: what is {n} + {n}? ", "answer": str(2 * n)} for n in range(5)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Any]:
    done = _eval(folder, "out", "--engine", "vllm", "--engine-option", "dtype=float32", "--max-model-tokens", "512")
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        "screen": done.stdout,
        "records": _records(folder / "out"),
        "result": json.loads((folder / "out" / "evaluation.json").read_text()),
    }


def test_every_measure_comes_from_the_engine(ran: dict[str, Any]) -> None:
    assert [record["id"] for record in ran["records"]] == list("01234")
    for record in ran["records"]:
        assert [len(record[name]) for name in ("single_shot", "with_draft", "with_oracle_draft")] == [K] * 3
        assert len(record["more_drafts"]) == 1  # N = 4 drafts, of which k = 3 are the single-shot samples
    result = ran["result"]
    assert result["engine"]["name"] == "vllm"
    assert result["engine"]["dtype"] == "torch.float32"
    assert set(result["versions"]) == {"refine-wrapper", "vllm", "transformers", "torch"}
    assert "unknown" not in result["versions"].values()
    for name, measure in result["measures"].items():
        answers = [answer for record in ran["records"] for answer in record[name]]
        assert all(answer["reward"] == float(len(answer["text"].encode()) % 2 == 0) for answer in answers)
        assert measure["figures"]["avg@3"]["value"] == pytest.approx(sum(a["reward"] for a in answers) / len(answers))


def test_lengths_and_ends_are_the_tokens_that_were_sampled(ran: dict[str, Any]) -> None:
    """An end token counts as one, is no text, and is what `finished` means."""
    answers = [a for record in ran["records"] for name in ran["result"]["measures"] for a in record[name]]
    assert all(1 <= answer["tokens"] <= LENGTH for answer in answers)
    assert all(answer["finished"] for answer in answers if answer["tokens"] < LENGTH)
    assert not any("<|im_end|>" in answer["text"] for answer in answers)


def test_it_is_the_models_distribution(folder: Path, ran: dict[str, Any]) -> None:
    """Greedily, vLLM and transformers give the same answers to the same ids: prompts are encoded by the same code."""
    greedy = ("--temperature", "0", "--samples", "1", "--draft", "own")
    texts = {}
    for engine, options in (("vllm", ("--max-model-tokens", "512")), ("transformers", ())):
        done = _eval(folder, engine, "--engine", engine, "--engine-option", "dtype=float32", *greedy, *options)
        assert done.returncode == 0, done.stderr[-4000:]
        texts[engine] = [
            (record["single_shot"][0]["text"], record["with_draft"][0]["text"]) for record in _records(folder / engine)
        ]
    assert texts["vllm"] == texts["transformers"]
    sampled = [answer["text"] for record in ran["records"] for answer in record["single_shot"]]
    assert len(set(sampled)) > len(sampled) // 2
