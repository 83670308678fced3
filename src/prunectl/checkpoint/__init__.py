"""SOURCE: a Hub id or path becomes headers, roles and readable bytes."""
