#!/usr/bin/env bash
# iGRPO (arXiv 2602.09000) with OpenRLHF. "paper" marks what the paper states; the rest is ours.
# NODES: nodes of 8 GPUs. MODEL, DATA: other ones. `REFINE= bash train.sh` is the unwrapped baseline.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NODES=${NODES:-1}
REFINE=${REFINE---refine.num_drafts 4 --refine.match_budget --refine.max_reward 2 --refine.trace_dir outputs/trace}
if [ -n "$REFINE" ]; then COMMAND=refine_wrapper_openrlhf.train_ppo_ray; else COMMAND=openrlhf.cli.train_ppo_ray; fi

FLAGS=(
    --actor.model_name_or_path "${MODEL:-nvidia/OpenMath-Nemotron-7B}"   # one of the paper's
    --data.prompt_dataset "${DATA:-math.jsonl}" --data.input_key input --data.label_key label --data.apply_chat_template
    --reward.remote_url "$HERE/reward.py"                                # accuracy + format, 1.0 / 1.0: paper
    --algo.advantage.estimator group_norm                                # GRPO: paper
    --algo.kl.init_coef 0                                                # paper (0.0001 was best by a hair)
    --rollout.n_samples_per_prompt 8                                     # 4 drafts + 4 refinements with match_budget: paper
    --rollout.temperature 0.7                                            # paper
    --rollout.max_new_tokens 4096                                        # paper
    --data.max_len 10240                                                 # question 1,024 (paper) + draft 4,096 + answer 4,096 + template
    --actor.adam.lr 1e-6 --actor.lr_scheduler cosine_with_min_lr         # paper
    --actor.min_lr_ratio 0.1 --actor.lr_warmup_ratio 0.1                 # paper
    --train.num_episodes 1 --train.max_epochs 1                          # one epoch: paper
    --ds.param_dtype bf16                                                # paper
    --actor.loss_agg_mode seq-mean-token-mean                            # mean in a sample, then over the group: paper
    --actor.eps_clip 0.2
    --rollout.batch_size 128 --train.batch_size 1024                     # one update a rollout, without refinement as with it
    --rollout.micro_batch_size 4 --train.micro_batch_size 2
    --actor.num_nodes "$NODES" --actor.num_gpus_per_node 8 --ref.num_nodes "$NODES" --ref.num_gpus_per_node 8
    --vllm.num_engines "$((8 * NODES))" --vllm.tensor_parallel_size 1 --vllm.gpu_memory_utilization 0.6
    --vllm.enable_prefix_caching --vllm.enable_sleep --ds.enable_sleep --train.colocate_all
    --ds.zero_stage 3 --actor.gradient_checkpointing_enable
    --ckpt.output_dir outputs/model --ckpt.path outputs/checkpoints --ckpt.save_steps 20
    --logger.tensorboard_dir outputs/tensorboard
)
# shellcheck disable=SC2086  # REFINE is several flags
exec "${PYTHON:-python}" -m "$COMMAND" $REFINE "${FLAGS[@]}" "$@"
