"""Compiled loops over codes. All of them release the GIL and keep no state between calls.

Two habits make the compiler vectorise: counters have the width of the codes (so each chunk is short
enough for them not to overflow), and conditions are 0/1 values. Float sums run in fixed lanes, so
that the order of additions, and with it every bit of the result, is the same on every machine; no
fastmath.
A kernel is compiled for a type of codes when it first meets it, and kept in numba's cache.
"""
