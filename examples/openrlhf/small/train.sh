#!/usr/bin/env bash
# OpenRLHF on reasoning-gym's chain sums. With refinement: `bash train.sh`; without: `REFINE= bash train.sh`.
# MODEL: a folder or hub id. More flags: `bash train.sh --data.max_samples 16`.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REFINE=${REFINE---refine.num_drafts 4 --refine.match_budget --refine.trace_dir outputs/trace}
if [ -n "$REFINE" ]; then COMMAND=refine_wrapper_openrlhf.train_ppo_ray; else COMMAND=openrlhf.cli.train_ppo_ray; fi

# shellcheck disable=SC2086  # REFINE is several flags
exec "${PYTHON:-python}" -m "$COMMAND" $REFINE \
    --actor.model_name_or_path "${MODEL:-tiny-model}" \
    --data.prompt_dataset "${DATA:-data.jsonl}" --data.input_key input --data.label_key label --data.apply_chat_template \
    --reward.remote_url "$HERE/reward.py" \
    --algo.advantage.estimator group_norm --algo.kl.init_coef 0 \
    --rollout.batch_size 2 --rollout.n_samples_per_prompt 8 --rollout.micro_batch_size 4 \
    --train.batch_size 16 --train.micro_batch_size 4 \
    --rollout.max_new_tokens 16 --data.max_len 640 \
    --actor.num_nodes 1 --actor.num_gpus_per_node 1 --ref.num_nodes 1 --ref.num_gpus_per_node 1 \
    --vllm.num_engines 1 --vllm.tensor_parallel_size 1 --vllm.gpu_memory_utilization 0.3 --vllm.enforce_eager \
    --vllm.enable_prefix_caching --train.colocate_all --ds.zero_stage 2 \
    --actor.adam.lr 1e-3 --ckpt.output_dir outputs/model --ckpt.path outputs/checkpoints "$@"
