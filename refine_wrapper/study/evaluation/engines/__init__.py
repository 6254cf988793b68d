"""What generates: transformers, or vLLM. Nothing here imports either before a model is loaded."""
