"""``export``: a checkpoint in a smaller layout, and back."""
