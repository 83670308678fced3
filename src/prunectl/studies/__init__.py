"""Questions that take many runs: sweep, compare, trace, lottery."""
