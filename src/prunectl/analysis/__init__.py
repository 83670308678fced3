"""``analyze``: exact statistics from one streamed pass."""
