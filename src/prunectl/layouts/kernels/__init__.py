"""Compiled loops over codes. All of them release the GIL and keep no state between calls.

numba does not check bounds: callers check every size, position and digit before the call. Inputs
are read-only arrays (``parts.fixed``) and outputs are writable ones, so that each kernel is
compiled once per type of codes; numba caches it.
"""
