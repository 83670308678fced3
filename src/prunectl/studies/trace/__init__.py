"""The ``trace`` verb: how prunable a model's weights become over its training."""
