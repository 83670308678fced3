"""Load dense and compressed checkpoints: tensors, state dicts, transformers models."""
