"""Compiled loops over codes. All of them release the GIL and keep no state between calls.

numba checks no bounds: callers have checked every size, position and digit before they call. Inputs
are read-only arrays (``parts.fixed``), outputs are writable ones, so that each kernel is compiled
once for a type of codes; it is kept in numba's cache.
"""
