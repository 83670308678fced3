"""The ``compare`` verb: which weights two checkpoints would lose, and whose weights are smaller."""
