"""Reads tensors of a compressed checkpoint as if they were stored densely."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    from prunectl.layouts.scheme import Scheme

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor that is stored as parts.

    Attributes:
        spec: the tensor that they stand for.
        file: the weights file that holds them.
        layout: its layout's name.
        extra: the layout's own parameters.
        parts: by suffix.
    """

    spec: TensorSpec
    file: str
    layout: str
    extra: Mapping[str, Any]
    parts: Mapping[str, StoredTensor]


class PartsReader:
    """Decodes what it is asked for; several threads may read at once.

    Each thread keeps the block that it decoded last, for the reads that will follow.
    """

    def __init__(
        self, stored: Checkpoint, packed: Mapping[str, Packed], dense: Mapping[str, StoredTensor]
    ) -> None:
        self._folder = stored.folder
        self._inner = WeightReader(stored.folder)
        self._packed = packed
        self._dense = dense
        self._decoders: dict[str, _Decoder] = {}
        self._lock = threading.Lock()
        self._held = threading.local()

    def read(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's dense row-major bytes from byte ``start`` on.

        Raises:
            BadCheckpoint: the parts are damaged; the message names the tensor.
        """
        packed = self._packed.get(tensor.name)
        if packed is None:
            self._inner.read(self._dense[tensor.name], start, out)
            return
        from prunectl.layouts.parts import Damaged

        try:
            self._decode(packed, start, out)
        except Damaged as error:
            raise BadCheckpoint(
                self._folder / packed.file, f"tensor '{tensor.name}' is damaged: {error}"
            ) from None

    def _decode(self, packed: Packed, start: int, out: Bytes) -> None:
        decoder = self._decoder(packed)
        end = start + len(out)
        done = start
        while done < end:
            number = done // decoder.unit_bytes
            block = self._block(packed.spec.name, decoder, number)
            skip = done - number * decoder.unit_bytes
            length = min(end - done, len(block) - skip)
            out[done - start : done - start + length] = block[skip : skip + length]
            done += length

    def _decoder(self, packed: Packed) -> _Decoder:
        with self._lock:
            found = self._decoders.get(packed.spec.name)
            if found is None:
                make = _Chunks.of if packed.layout == "packed" else _Whole
                found = make(packed, self._inner)
                if len(self._decoders) > 64:  # tables of tensors that were read before
                    self._decoders.clear()
                self._decoders[packed.spec.name] = found
            return found

    def _block(self, name: str, decoder: _Decoder, number: int) -> Bytes:
        held: tuple[str, int, Bytes] | None = getattr(self._held, "block", None)
        if held is not None and held[:2] == (name, number):
            return held[2]
        self._held.block = None  # frees the last one before the next is made
        block = decoder.decode(number)
        self._held.block = (name, number, block)
        return block

    def close(self) -> None:
        """Close all files."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Whole:
    """A tensor that is decoded at once."""

    def __init__(self, packed: Packed, reader: WeightReader) -> None:
        self._packed, self._reader = packed, reader
        self.unit_bytes = max(1, packed.spec.nbytes)

    def decode(self, number: int) -> Bytes:
        from prunectl.layouts.choice import LAYOUTS
        from prunectl.layouts.parts import Part

        packed = self._packed
        parts = {
            suffix: Part(part.spec.dtype.name, part.spec.shape, _all_of(self._reader, part))
            for suffix, part in packed.parts.items()
        }
        spec = packed.spec
        codes: Codes = LAYOUTS[packed.layout].decode(parts, spec.dtype, spec.shape, packed.extra)
        return codes.reshape(-1).view(np.uint8)


class _Chunks:
    """A packed tensor, one chunk at a time."""

    def __init__(self, packed: Packed, reader: WeightReader, scheme: Scheme) -> None:
        from prunectl.layouts.parts import ALIGNMENT, Damaged

        self._reader, self._scheme = reader, scheme
        self._data = packed.parts["data"]
        table = packed.parts["chunks"]
        if table.spec.dtype.name != "U32" or table.spec.shape != (scheme.chunks, scheme.planes):
            raise Damaged("the table of chunks has another dtype or shape")
        sizes = _all_of(reader, table).view(np.uint32).astype(np.int64)
        self._ends = np.concatenate([[0], np.cumsum(sizes)])
        if not 0 <= self._data.spec.nbytes - int(self._ends[-1]) < ALIGNMENT:
            raise Damaged("the chunks take more or fewer bytes than there are")
        self.unit_bytes = max(1, scheme.chunk * scheme.grid.m * scheme.width)

    @classmethod
    def of(cls, packed: Packed, reader: WeightReader) -> _Decoder:
        """Groups across the rows do not lie together: such a tensor is decoded whole."""
        from prunectl.layouts.parts import Damaged
        from prunectl.layouts.scheme import read_scheme

        if not {"chunks", "data"} <= packed.parts.keys():
            raise Damaged("a part is missing")
        scheme = read_scheme(packed.spec.dtype, packed.spec.shape, packed.extra)
        if scheme.grid.inner != 1:
            return _Whole(packed, reader)
        return cls(packed, reader, scheme)

    def decode(self, number: int) -> Bytes:
        from prunectl.layouts.chunks import decode_chunk

        scheme = self._scheme
        places = self._ends[number * scheme.planes : (number + 1) * scheme.planes + 1].tolist()
        stored = np.empty(places[-1] - places[0], np.uint8)
        self._reader.read(self._data, places[0], stored)
        planes = [stored[a - places[0] : b - places[0]] for a, b in itertools.pairwise(places)]
        first = number * scheme.chunk
        count = min(scheme.chunk, scheme.grid.groups - first)
        groups: Codes = np.empty((count, scheme.grid.m), f"u{scheme.width}")
        decode_chunk(scheme, planes, groups)
        return groups.reshape(-1).view(np.uint8)


_Decoder = _Whole | _Chunks


def _all_of(reader: WeightReader, tensor: StoredTensor) -> Bytes:
    data = np.empty(tensor.spec.nbytes, np.uint8)
    reader.read(tensor, 0, data)
    return data
