"""What is trained: LoRA adapters and whole models, with a reference model; both stages see the policy, the KL sees q'."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from refine_testing.rewards import RecordingReward
from refine_testing.tiny import save_tiny, tiny_llama
from refine_testing.trl_runs import check_refined, make, plain_data

pytestmark = [pytest.mark.timeout(120)]

LORA = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)


def logps(model: Any, inputs: dict[str, Any], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a trained batch's completion tokens under a model, computed without TRL."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float() / temperature
    all_logps = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return all_logps[:, -inputs["completion_ids"].shape[1] :] * inputs["completion_mask"]


def check_reference(trainer: Any, reference: Any) -> None:
    """The KL's reference log-probabilities are those of the frozen reference for the refinements, under q'."""
    reference = reference.to(trainer.model.device)
    for inputs in trainer.trained:
        expected = logps(reference, inputs)
        assert torch.allclose(inputs["ref_per_token_logps"] * inputs["completion_mask"], expected, atol=1e-4)
    last = trainer.trained[-1]
    assert not torch.allclose(logps(trainer.model.eval(), last), logps(reference, last), atol=1e-3), "nothing moved"


@pytest.mark.oldest
def test_whole_model_with_beta(tmp_path: Path) -> None:
    """The reference comes from the model's folder, so a folder is what is trained."""
    reward, frozen = RecordingReward(), tiny_llama(seed=5).eval()
    folder = save_tiny(tmp_path / "model", seed=5)
    trainer = make(tmp_path, reward_funcs=reward, model=folder, beta=0.2, max_steps=3)
    trainer.train()
    check_refined(trainer, reward, num_batches=3)
    check_reference(trainer, frozen)
    kl = [entry["kl"] for entry in trainer.state.log_history[:-1]]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > 1e-6


@pytest.mark.oldest
def test_lora_with_beta_refers_to_the_model_without_the_adapter(tmp_path: Path) -> None:
    reward, frozen = RecordingReward(), tiny_llama(seed=5).eval()
    trainer = make(tmp_path, reward_funcs=reward, model=tiny_llama(seed=5), peft_config=LORA, beta=0.2, max_steps=3)
    assert trainer.ref_model is None
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    check_refined(trainer, reward, num_batches=3)
    check_reference(trainer, frozen)
    changed = {name for name, value in trainer.model.state_dict().items() if not value.equal(before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.oldest
def test_a_trained_adapter_with_beta_refers_to_its_copy(tmp_path: Path) -> None:
    """An adapter that is trained further: its reference is the adapter as it came, not the bare model."""
    reward = RecordingReward()
    torch.manual_seed(11)
    model = get_peft_model(tiny_llama(seed=5), LORA)
    frozen = copy.deepcopy(model).eval()
    trainer = make(tmp_path, reward_funcs=reward, model=model, beta=0.2, max_steps=3)
    trainer.train()
    check_refined(trainer, reward, num_batches=3)
    check_reference(trainer, frozen)
    with frozen.disable_adapter():
        bare = logps(frozen, trainer.trained[0])
    assert not torch.allclose(bare, logps(frozen, trainer.trained[0]), atol=1e-3)


@pytest.mark.oldest
@pytest.mark.parametrize("lora", [False, True])
def test_rloo_with_its_reference(tmp_path: Path, lora: bool) -> None:
    """RLOO puts the KL into the rewards it trains on; drafts are chosen by the reward functions alone."""
    reward = RecordingReward()
    model: Any = {"model": tiny_llama(seed=5), "peft_config": LORA} if lora else {"model": save_tiny(tmp_path / "m")}
    trainer = make(tmp_path, algorithm="rloo", reward_funcs=reward, beta=0.5, max_steps=3, **model)
    trainer.train()
    check_refined(trainer, reward, num_batches=3)
    assert abs(trainer.state.log_history[2]["kl"]) > 1e-6


@pytest.mark.oldest
def test_lora_with_gradient_checkpointing_and_a_buffer(tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = make(
        tmp_path,
        reward_funcs=reward,
        model=tiny_llama(seed=5),
        peft_config=LORA,
        gradient_checkpointing=True,
        steps_per_generation=2,
        num_iterations=2,
        max_steps=4,
    )
    trainer.train()
    check_refined(trainer, reward, num_batches=1, uses=2)
    assert all("old_per_token_logps" in inputs for inputs in trainer.trained)


@pytest.mark.oldest
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo", "dapo"])
def test_truncated_completions_masked(tmp_path: Path, loss_type: str) -> None:
    """Masking looks at refinements: an unfinished draft is still a draft."""
    reward = RecordingReward()
    trainer = make(
        tmp_path,
        reward_funcs=reward,
        loss_type=loss_type,
        mask_truncated_completions=True,
        max_completion_length=6,
        train_dataset=plain_data(),
    )
    trainer.train()
    refined = [entry["refine/refined_share"] for entry in trainer.state.log_history[:-1]]
    unfinished = [entry["refine/drafts_unfinished_share"] for entry in trainer.state.log_history[:-1]]
    assert refined == [1.0, 1.0]
    assert max(unfinished) > 0.5
    ends = {trainer.processing_class.eos_token_id, trainer.processing_class.pad_token_id}
    for inputs in trainer.trained:
        for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True):
            assert bool(mask.any()) is bool(ends & set(ids.tolist()))


@pytest.mark.skipif(Version(trl.__version__) < Version("1.5"), reason="TRL 1.0's own call fails on this transformers")
def test_continuous_batching(tmp_path: Path) -> None:
    """transformers' paged attention samples both stages."""
    reward = RecordingReward()
    trainer = make(
        tmp_path,
        reward_funcs=reward,
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"num_blocks": 64, "max_batch_tokens": 256},
    )
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_liger(tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, reward_funcs=reward, use_liger_kernel=True)
    trainer.train()
    check_refined(trainer, reward, num_batches=2)
