"""A checkpoint: from a Hub id or path to headers, roles and readable bytes."""
