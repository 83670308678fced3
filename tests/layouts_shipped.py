"""The encoders and decoders that exports and loaders use, on tensors and parts in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from layouts_reference import Part, survey

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint
from prunectl.layouts.layout import Pieces
from prunectl.layouts.parts import code_type, fixed
from prunectl.layouts.table import CODINGS
from prunectl.loading.reader import Packed, PartsReader
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES, DType, TensorSpec

Run = Callable[[Callable[[int], Pieces], Iterable[int]], Iterable[Pieces]]


@dataclass(frozen=True)
class Encoded:
    """A tensor in a layout."""

    layout: str
    parts: dict[str, Part]
    extra: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(part.data.size for part in self.parts.values())


def encode(
    layout: str,
    codes: np.ndarray,
    dtype: DType,
    shape: tuple[int, ...],
    *,
    pattern: NM | None = None,
    axis: int = -1,
    padding: int = 0,
    run: Run = map,
) -> Encoded:
    """The parts of a tensor as an export writes them, with so many zeros after the last."""
    coding = CODINGS[layout]
    extra = coding.parameters(survey(codes, dtype, shape, pattern=pattern, axis=axis))
    encoder = coding.encoder(TensorSpec("w", dtype, shape), extra)
    flat = fixed(codes).reshape(-1)

    def work(number: int) -> Pieces:
        return encoder.encode(number, flat[slice(*encoder.ranges[number])])

    pieces = list(run(work, range(len(encoder.ranges))))
    nothing = np.empty(0, np.uint8)
    large = np.concatenate([nothing, *(piece for some in pieces for piece in some.large)])
    small = encoder.finish(np.concatenate([nothing, *(some.small for some in pieces)]))
    data = [large, small]
    last = 1 if encoder.lead is None else 0
    data[last] = np.append(data[last], np.zeros(padding, np.uint8))
    parts = encoder.parts(large.size, padding)
    made = {
        part.suffix: Part(part.dtype, part.shape, some)
        for part, some in zip(parts, data, strict=True)
    }
    return Encoded(layout, made, extra)


class _Memory:
    """Stands for the files: one for all parts."""

    def __init__(self, data: np.ndarray) -> None:
        self._data = data

    def read(self, tensor: StoredTensor, start: int, out: np.ndarray) -> None:
        found = self._data[tensor.offset + start :][: out.size]
        if found.size < out.size:
            raise BadCheckpoint("memory", "truncated while it was read")
        out[:] = found


def opened(
    found: Encoded, dtype: DType, shape: tuple[int, ...]
) -> tuple[PartsReader, StoredTensor]:
    """A reader of the parts, and the tensor to read by it."""
    offset, stored = 0, {}
    for suffix, part in found.parts.items():
        spec = TensorSpec(f"w.{suffix}", DTYPES[part.dtype], part.shape)
        stored[suffix] = StoredTensor(spec, "memory", offset)
        offset += part.data.size
    spec = TensorSpec("w", dtype, shape)
    packed: Mapping[str, Packed] = {"w": Packed(spec, "memory", found.layout, found.extra, stored)}
    reader = PartsReader(cast(Checkpoint, SimpleNamespace(folder=Path())), packed, {})
    data = np.concatenate([np.empty(0, np.uint8), *(p.data for p in found.parts.values())])
    reader._inner = cast(WeightReader, _Memory(data))
    return reader, StoredTensor(spec, "memory", 0)


def decode(
    found: Encoded, dtype: DType, shape: tuple[int, ...], rows: tuple[int, int] | None = None
) -> np.ndarray:
    """All of a tensor, or some of its rows, as loaders read it.

    Raises:
        BadCheckpoint: the parts are damaged.
    """
    reader, tensor = opened(found, dtype, shape)
    reader.check(tensor)
    first, last = rows or (0, shape[0] if shape else 1)
    width = tensor.spec.nbytes // max(1, shape[0]) if shape else tensor.spec.nbytes
    out = np.full((last - first) * width, 0xA5, np.uint8)
    reader.read(tensor, first * width, out)
    return out.view(code_type(dtype)).reshape((last - first, *shape[1:]) if shape else ())
