#!/usr/bin/env bash
# Plain veRL on one GPU: MODEL=... [DATA=folder] bash run.sh [Hydra overrides]. Add +refine=matched_4 to refine.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${MODEL:?set MODEL to a local folder or a hub id}"
DATA="${DATA:-$here/data}"
exec "${PYTHON:-python}" -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/val.parquet" \
    data.train_batch_size=32 \
    data.max_prompt_length=256 \
    data.max_response_length=64 \
    reward.custom_reward_function.path="$here/reward.py" \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16 \
    trainer.n_gpus_per_node=1 \
    trainer.nnodes=1 \
    trainer.total_epochs=1 \
    trainer.test_freq=20 \
    trainer.save_freq=-1 \
    trainer.logger='["console"]' \
    trainer.project_name=refine-small \
    trainer.experiment_name=chain_sum \
    "$@"
