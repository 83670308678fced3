"""The packed layout: the smallest. Chunks of planes, each entropy coded where that pays.

Weights are taken in chunks of ``chunk`` groups (the last one may have fewer), each decoded on its
own. With ``mask`` = ``nm`` groups are the N:M groups of :mod:`prunectl.layouts.groups`, ``n``,
``m`` and ``axis`` say which; otherwise each weight, in row-major order, is a group.

Parts:

- ``chunks``: U32 [chunks, planes]: the stored bytes of each plane of each chunk.
- ``data``: U8 [sum of ``chunks``]: chunk by chunk, plane by plane.

A plane of S bytes (S follows from what is read before it) is stored either as these S bytes, or, if
fewer than S are stored, as one zstd frame that declares S as its content size.

Planes of a chunk of G groups, which keeps V values:

1. The mask, and with it V.
   ``none``: no plane; V = G, and every weight is a value.
   ``bits``: ceil(G / 8) bytes; bit i % 8 of byte i // 8 is 1 if weight i is not +0.0. Bits after
   the last are 0. V is the number of ones.
   ``nm``: V = G * N. Each group has a set number below B = binom(M, N). If B <= 256, ceil(G / D)
   bytes of D numbers each, where D is the largest with B**D <= 256: byte = first + B * second +
   B**2 * third .. (2:4: B = 6, D = 3). Otherwise two planes of G bytes: low bytes, high bytes.
2. The digits of the values' symbols. The *symbol* of a value of w > 8 bits is the 8 bits below its
   sign; of 8 bits, all of it.
   ``per_byte`` = 1: V bytes, the symbols themselves.
   ``per_byte`` = k > 1: ceil(V / k) bytes of k digits each, in base b = len(``symbols``) + 1, the
   first digit lowest, zeros after the last. Digit d < b - 1 is the symbol ``symbols[d]``; digit
   b - 1 is the escape.
3. Escapes: the symbols of escaped values, in order, a byte each.
4. The other w - 8 bits of the values, the sign moved on top of them (u = v >> (w - 1) << (w - 9) |
   v & ((1 << (w - 9)) - 1)): a plane of V bytes for each byte of u, lowest first.

Any dtype of whole bytes, any shape. A group with fewer than N nonzeros keeps zeros too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunectl.layouts.layout import (
    Coding,
    Decoder,
    Encoder,
    Extra,
    Layout,
    Statistics,
    Survey,
)
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    from prunectl.layouts.parts import Parts

CODING = 1.005
"""Bytes of a packed tensor / its order-0 entropy, approximately (benchmarks/export.py --sizes)."""


def nbytes(survey: Survey) -> int:
    """Approximate bytes of both parts, from counts of the whole tensor, as if it were well mixed.

    Raises:
        Misfit: elements of less than a byte.
    """
    from prunectl.layouts.packing.scheme import best_scheme

    return best_scheme(survey)[1]


def _parameters(survey: Survey) -> dict[str, Any]:
    from prunectl.layouts.packing.scheme import best_scheme

    return best_scheme(survey)[0].extra()


def _predicted(statistics: Statistics) -> int:
    """The order-0 entropy plus the overhead of coding; signs and mantissas count as noise."""
    numel, kept, pattern = statistics.numel, statistics.kept, statistics.pattern
    bits = mask_bits(numel, numel - kept)
    if pattern is not None:
        bits = min(bits, numel / pattern.m * math.log2(math.comb(pattern.m, pattern.n)))
    bits += statistics.exponent_bits + kept * (1 + statistics.dtype.mantissa_bits)
    return round(bits / 8 * CODING)


def mask_bits(numel: int, zeros: float) -> float:
    """Entropy of a mask with independent bits."""
    return -sum(n * math.log2(n / numel) for n in (zeros, numel - zeros) if 0 < n < numel)


def _encoder(spec: TensorSpec, extra: Extra) -> Encoder:
    from prunectl.layouts.packing.coding import ChunkEncoder

    return ChunkEncoder(spec, extra)


def _decoder(spec: TensorSpec, extra: Extra, parts: Parts) -> Decoder:
    from prunectl.layouts.packing.coding import ChunkDecoder

    return ChunkDecoder(spec, extra, parts)


LAYOUT = Layout(
    summary="kept values and positions, entropy coded: the smallest",
    nbytes=nbytes,
    predicted=_predicted,
    coding=Coding(("chunks", "data"), _encoder, _decoder, _parameters),
    is_exact=False,
    unpruned="packed, nothing pruned",
    pruned="{}, packed",
    takes_unstructured=True,
    takes_groups=True,
)
