#!/usr/bin/env bash
# iGRPO (arXiv 2602.09000) for a 7B model. [paper]: stated there. [open]: not stated; our choice, change it freely.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
DATA="${DATA:-$here/data}"
recipe=(
    # Two stages [paper: N = 4, G = 4, best draft]: 4 of the 8 completions become drafts
    +refine=matched_4
    actor_rollout_ref.rollout.n=8
    refine.selector=best
    refine.template=append          # [open] the paper's template is not public
    refine.max_reward=2.0           # accuracy + format, weights 1.0 / 1.0 [paper]
    refine.trace_dir=outputs/igrpo-7b/trace
    reward.custom_reward_function.path="$here/reward.py"

    # Model and data; prompt 1,024 and answer 4,096 [paper], plus the draft and the template
    actor_rollout_ref.model.path="${MODEL:-nvidia/OpenReasoning-Nemotron-7B}"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    data.max_prompt_length=1024
    data.max_response_length=4096
    data.filter_overlong_prompts=True
    actor_rollout_ref.rollout.prompt_length=5632
    actor_rollout_ref.rollout.max_model_len=9728

    # Objective and sampling [paper]
    algorithm.adv_estimator=grpo
    algorithm.use_kl_in_reward=False
    actor_rollout_ref.actor.use_kl_loss=False
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
    actor_rollout_ref.rollout.temperature=0.7

    # Optimisation [paper: bf16, 1e-6, cosine to 10 %, warm-up 10 %, one epoch]
    actor_rollout_ref.actor.optim.lr=1e-6
    actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
    actor_rollout_ref.actor.optim.min_lr_ratio=0.1
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1
    trainer.total_epochs=1

    # Batch and memory [open]
    data.train_batch_size=128
    actor_rollout_ref.actor.ppo_mini_batch_size=128
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24576
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=49152
    actor_rollout_ref.model.enable_gradient_checkpointing=True

    # Generation [paper: vLLM]
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6

    trainer.nnodes=2
    trainer.n_gpus_per_node=8
    trainer.logger='["console"]'
    trainer.project_name=igrpo
    trainer.experiment_name=igrpo-7b
    trainer.save_freq=20
    trainer.test_freq=20
)
exec "${PYTHON:-python}" -m verl.trainer.main_ppo "${recipe[@]}" "$@"
