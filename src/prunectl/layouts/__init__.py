"""How a tensor's bits are stored: dense, bitmask, N:M, packed. Exact maths; no files.

A layout turns the codes of one tensor (its raw bits as unsigned integers) into *parts*, each an
ordinary safetensors tensor, and the parts back into the same bits. The docstring of each layout
module specifies its bytes; exports encode and loaders decode them, a range of a tensor at a time,
with the chunks, groups and kernels here. Wherever a layout drops weights, it drops those whose bits
are all zero (+0.0) and no others: -0.0, subnormals, Inf and NaN are kept bit for bit. Numbers of
more than one byte are little endian, and bits of a byte are counted from the lowest.
"""
