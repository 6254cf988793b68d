"""PEFT adapters, models in memory, end tokens: what the transformers engine does with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from refine_testing.evaluations import evaluate, records_of, result_of
from refine_testing.rewards import RecordingReward
from refine_testing.tiny import SPECIAL, save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from refine_wrapper.errors import ConfigError
from refine_wrapper.study.evaluation import EvaluationSettings, Problem, problem_set
from refine_wrapper.study.evaluation import evaluate as evaluate_here
from refine_wrapper.study.evaluation.engines.choose import EngineError, engine_name
from refine_wrapper.study.evaluation.engines.interface import Sampling
from refine_wrapper.study.evaluation.engines.transformers_engine import TransformersEngine

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=16)
QUESTIONS = problem_set("questions", [Problem(str(n), f"Question {n}?") for n in range(6)])


def _measured(engine: TransformersEngine, out: Path | None = None, **settings: Any) -> Any:
    settings = {"samples": 2, "max_new_tokens": 12, **settings}
    return evaluate_here(EvaluationSettings(**settings), engine, problems=QUESTIONS, reward=RecordingReward(), out=out)


def test_a_peft_adapter_is_its_base_model_with_the_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    torch.manual_seed(3)
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(4)))
    texts = {}
    for name in "base", "adapter", "merged":
        options = ("--reward", "format", "--samples", "1", "--temperature", "0", "--max-new-tokens", "12")
        ran = evaluate(tmp_path, name, "p.jsonl", *options, "--out", name + "-out")
        assert ran.returncode == 0, ran.stderr
        texts[name] = [record["with_draft"][0]["text"] for record in records_of(tmp_path / (name + "-out"))]
        assert result_of(tmp_path / (name + "-out"))["engine"]["name"] == "transformers"
    assert texts["adapter"] == texts["merged"]
    assert texts["adapter"] != texts["base"]
    with pytest.raises(EngineError, match="is a PEFT adapter, which is read with --engine transformers"):
        engine_name(str(tmp_path / "adapter"), EvaluationSettings(engine="vllm"))


def test_a_model_in_memory_is_left_as_it_was() -> None:
    """A training run that is measured goes on as if it was not: mode, generation config, random numbers."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.train()
    before, random_state = model.generation_config, torch.random.get_rng_state()
    _measured(TransformersEngine(model, tokenizer))
    assert model.training
    assert model.generation_config is before
    assert torch.equal(torch.random.get_rng_state(), random_state)
    _, drawn = torch.manual_seed(9), torch.rand(1)
    torch.manual_seed(9)
    _measured(TransformersEngine(model, tokenizer))
    assert torch.equal(torch.rand(1), drawn)


def test_nothing_of_the_models_own_sampling_applies() -> None:
    """A checkpoint's generation_config.json may say top_k = 1; two hosts write different ones."""
    tokenizer, prompt = tiny_tokenizer(), tiny_tokenizer().encode("Question?")
    plain, odd = tiny_llama(), tiny_llama()
    odd.generation_config = GenerationConfig(
        top_k=1,
        temperature=0.1,
        repetition_penalty=5.0,
        no_repeat_ngram_size=2,
        min_new_tokens=9,
        num_beams=3,
        do_sample=True,
        eos_token_id=plain.generation_config.eos_token_id,
        pad_token_id=0,
    )
    expected = TransformersEngine(plain, tokenizer).sample([prompt] * 8, SAMPLING, seed=1)
    assert TransformersEngine(odd, tokenizer).sample([prompt] * 8, SAMPLING, seed=1) == expected
    assert TransformersEngine(plain, tokenizer).sample([prompt] * 8, SAMPLING, seed=2) != expected


def test_padding_does_not_change_a_greedy_answer() -> None:
    engine = TransformersEngine(tiny_llama(), tiny_tokenizer())
    prompts = [engine.tokenizer.encode("x" * length) for length in (1, 7, 40)]
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=12)
    together = engine.sample(prompts, greedy, seed=0)
    assert together == [engine.sample([prompt], greedy, seed=0)[0] for prompt in prompts]


@pytest.mark.parametrize("several", [False, True])
def test_an_answer_ends_at_any_of_the_models_end_tokens(several: bool, tmp_path: Path) -> None:
    """Chat models have several. The end token counts among the tokens and is no text; what follows it is padding."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ends = [SPECIAL.index("<|im_end|>"), *([tokenizer.encode("e")[0]] if several else [])]
    model.generation_config.eos_token_id = ends
    engine = TransformersEngine(model, tokenizer)
    assert engine.end_ids == set(ends)
    ids = engine.sample([tokenizer.encode("Question?")] * 200, Sampling(1.0, 1.0, 0, 30), seed=0)
    assert all(not set(row[:-1]) & set(ends) for row in ids)
    ended = [row for row in ids if row[-1] in ends]
    assert {row[-1] for row in ended} == set(ends)
    assert all(len(row) == 30 for row in ids if row[-1] not in ends)
    evaluation = _measured(engine, tmp_path, samples=100, max_new_tokens=30, draft_choice="none")
    answers = [answer for record in records_of(tmp_path) for answer in record["single_shot"]]
    assert all(answer["finished"] for answer in answers if answer["tokens"] < 30)
    assert any(answer["finished"] for answer in answers)
    assert not any("<|im_end|>" in answer["text"] for answer in answers)
    assert not several or not any("e" in answer["text"] for answer in answers)
    assert evaluation.measures["single_shot"].counts["tokens"] == sum(answer["tokens"] for answer in answers)


def test_text_that_begins_with_the_begin_token_gets_no_second_one() -> None:
    from tokenizers.processors import TemplateProcessing

    from refine_wrapper.study.evaluation.engines.interface import PromptCodec

    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    codec = PromptCodec(tokenizer, {})
    assert codec.encode("Question?")[:1] == [begin]
    assert codec.encode("<|im_start|>user\nQuestion?").count(begin) == 1


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU that is full."""
    model = tiny_llama()

    def full(**kwargs: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "generate", full)
    with pytest.raises(ConfigError, match="12 completions together do not fit into memory: lower --batch-size"):
        _measured(TransformersEngine(model, tiny_tokenizer()))


def test_the_tokenizer_of_the_folder_is_used(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}!{{ mood }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Question?"}\n')
    (tmp_path / "length.py").write_text("def one(completions, **columns):\n    return [1.0] * len(completions)\n")
    options = ("--reward", "length.py:one", "--samples", "1", "--draft", "none", "--max-new-tokens", "4082")
    # "Question?!" is 10 tokens of the model's 4,096; with a mood of 5 it is 15, one too many.
    fits = evaluate(
        tmp_path, "model", "p.jsonl", *options, "--chat", "--chat-arg", "mood=glad", "--max-new-tokens", "4"
    )
    assert fits.returncode == 0, fits.stderr
    refused = evaluate(tmp_path, "model", "p.jsonl", *options, "--chat", "--chat-arg", "mood=happy", "--out", "other")
    assert refused.returncode == 2
    assert "the longest has 15. Lower --max-new-tokens to at most 4081" in refused.stderr
