"""Planes: runs of bytes, stored unchanged, or as one zstd frame where that is smaller.

The reader knows a plane's size. If as many bytes are stored, they are the plane. If fewer are
stored, they are one zstd frame (RFC 8878) that declares this size as its content size.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from prunectl.layouts.errors import Damaged
from prunectl.layouts.parts import Bytes, fixed

PROBE = 1 << 12
"""Bytes of each probe that tests whether a plane is worth compressing."""

PROBES = 4
"""Probes, evenly spread: a plane may be noise in one part of a tensor and not in another."""

WORTH = 64
"""A plane is compressed if that saves at least one byte of this many: reading it takes longer."""

_threads = threading.local()
"""zstd contexts; two threads must not use one at once."""


def _compressor() -> Any:
    held = getattr(_threads, "compressor", None)
    if held is None:
        import zstandard

        # The planes have no useful repeats, only bytes of unequal frequency, which Huffman codes
        # handle. Short chance matches would only interrupt these, so allow the fewest, longest
        # matches that zstd knows (for planes that are constant or periodic).
        settings = zstandard.ZstdCompressionParameters.from_level(
            1,
            strategy=zstandard.STRATEGY_FAST,
            min_match=7,
            hash_log=6,
            target_length=0,
            window_log=18,
        )
        held = _threads.compressor = zstandard.ZstdCompressor(compression_params=settings)
    return held


def _decompressor() -> Any:
    held = getattr(_threads, "decompressor", None)
    if held is None:
        import zstandard

        held = _threads.decompressor = zstandard.ZstdDecompressor()
    return held


def squeezed(plane: Bytes, *, probe: bool = False) -> Bytes:
    """Compress ``plane`` u8 [n] if that is smaller; return the bytes to store.

    Args:
        plane: the bytes.
        probe: whether to compress only if a probe shrinks, for planes that rarely shrink.
    """
    compress = _compressor().compress
    if probe and plane.size >= 4 * PROBES * PROBE:
        places = [plane.size * (2 * i + 1) // (2 * PROBES) for i in range(PROBES)]
        limit = PROBE - PROBE // WORTH
        if all(len(compress(plane[at : at + PROBE])) > limit for at in places):
            return plane
    if plane.size:
        frame = compress(plane)
        if len(frame) < plane.size - plane.size // WORTH:
            return np.frombuffer(frame, np.uint8)
    return plane


def expanded(stored: Bytes, size: int) -> Bytes:
    """Restore the plane of ``size`` bytes from :func:`squeezed`, read-only.

    Raises:
        Damaged: the bytes are not a plane of that size. Nothing larger is allocated.
    """
    if stored.size == size:
        return fixed(stored)
    if stored.size > size:
        raise Damaged(f"{stored.size} bytes are stored for a plane of {size}")
    import zstandard

    try:
        declared = zstandard.get_frame_parameters(stored.data).content_size
        if declared != size:
            raise Damaged(f"a zstd frame declares {declared} bytes, where {size} are expected")
        plane = _decompressor().decompress(stored, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"a zstd frame cannot be read: {error}") from None
    if len(plane) != size:
        raise Damaged(f"a zstd frame holds {len(plane)} bytes, where {size} are expected")
    return np.frombuffer(plane, np.uint8)
