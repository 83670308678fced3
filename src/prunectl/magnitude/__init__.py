"""Exact arithmetic on magnitudes: codes, histograms, thresholds, masks.

Pure maths on numpy arrays of integer codes, in cache-sized blocks: no paths, no printing; and no
torch, except in :mod:`prunectl.magnitude.on_device`, which does some of it on a CUDA device.
The magnitude order of IEEE floats is the order of their bits without the sign, so everything here
counts and compares unsigned integers and never rounds a weight.
"""
