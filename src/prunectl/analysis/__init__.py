"""``analyze``: one streamed pass, exact statistics."""
