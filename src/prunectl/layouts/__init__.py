"""Layouts: how a tensor's bits are stored, dense, bitmask, N:M or packed. Math only; no files.

A layout turns the codes of a tensor (its raw bits as unsigned integers) into *parts*, each an
ordinary safetensors tensor, and the parts back into the same bits. The docstring of each layout
module specifies its bytes. Exports encode and loaders decode these, a range of a tensor at a time,
with the chunks, groups and kernels here. A layout that drops weights drops those whose bits are all
zero (+0.0) and no others: -0.0, subnormals, Inf and NaN are kept bit for bit. Numbers of more than
one byte are little endian, and bits of a byte are counted from the lowest.
"""
