"""Reading dense and compressed checkpoints into memory: tensors, state dicts, models."""
