"""A plain TRL script that reads its settings with TrlParser, from flags and YAML."""

from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, TrlParser


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


if __name__ == "__main__":
    script, training, model = TrlParser((ScriptArguments, GRPOConfig, ModelConfig)).parse_args_and_config()
    trainer = GRPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=length,
        args=training,
        train_dataset=load_dataset("json", data_files=script.dataset_name, split="train"),
    )
    trainer.train()
