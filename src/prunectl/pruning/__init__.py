"""``prune``: plan, resolve, transform, write."""
