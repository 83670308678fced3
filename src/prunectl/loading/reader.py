"""Read tensors of a compressed checkpoint as if they were stored densely."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint
from prunectl.layouts.errors import Damaged, Misfit
from prunectl.layouts.layout import code_bytes
from prunectl.layouts.table import CODINGS
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    from prunectl.layouts.layout import Decoder


Bytes = npt.NDArray[np.uint8]

_MAX_DECODERS = 16
"""Decoders that are kept; in the order ``cutlass``, one holds a sixteenth of the tensor."""


class PartsReader:
    """Decodes on reading; several threads may read at once.

    Each thread keeps the unit that it decoded last, since the next read is often of the same unit.
    """

    def __init__(
        self, stored: Checkpoint, packed: Mapping[str, Packed], dense: Mapping[str, StoredTensor]
    ) -> None:
        self._folder = stored.folder
        self._inner = WeightReader(stored.folder)
        self.packed = packed
        self._dense = dense
        self._decoders: dict[str, Decoder] = {}
        self._lock = threading.Lock()
        self._held = threading.local()

    def read(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's dense row-major bytes from byte ``start`` on.

        Raises:
            BadCheckpoint: the parts are damaged; the message names the tensor.
        """
        packed = self.packed.get(tensor.name)
        if packed is None:
            self._inner.read(self._dense[tensor.name], start, out)
            return
        with self._named(packed):
            self._decode(packed, start, out)

    def check(self, tensor: StoredTensor) -> None:
        """Compare the sizes of the parts with the tensor's; reads the small ones.

        Raises:
            BadCheckpoint: the sizes do not fit the tensor.
        """
        if packed := self.packed.get(tensor.name):
            with self._named(packed):
                self._decoder(packed)

    @contextmanager
    def _named(self, packed: Packed) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise BadCheckpoint(
                self._folder / packed.file,
                f"tensor '{packed.spec.name}' does not fit in memory for decoding",
            ) from None
        except (Damaged, Misfit) as error:
            raise BadCheckpoint(
                self._folder / packed.file, f"tensor '{packed.spec.name}' is damaged: {error}"
            ) from None

    def _decode(self, packed: Packed, start: int, out: Bytes) -> None:
        decoder = self._decoder(packed)
        size = packed.spec.dtype.bits // 8
        unit = decoder.unit * size
        done, end = start, start + len(out)
        while done < end:
            number, skip = divmod(done, unit)
            length = min(unit, packed.spec.nbytes - number * unit)
            place = out[done - start : done - start + length]
            if not skip and len(place) == length and place.ctypes.data % size == 0:
                decoder.decode(number, place.view(f"u{size}"))
            else:
                place = out[done - start : done - start + length - skip]
                place[:] = self._unit(packed, decoder, number, length)[skip : skip + len(place)]
            done += len(place)

    def _unit(self, packed: Packed, decoder: Decoder, number: int, length: int) -> Bytes:
        """Decode a unit of which only a part is read now."""
        key = (packed.spec.name, number)
        held: tuple[tuple[str, int], Bytes] | None = getattr(self._held, "unit", None)
        if held is not None and held[0] == key:
            return held[1]
        self._held.unit = None  # free the last unit before the next is allocated
        size = packed.spec.dtype.bits // 8
        codes = np.empty(length // size, f"u{size}")
        decoder.decode(number, codes)
        block: Bytes = codes.view(np.uint8)
        self._held.unit = (key, block)
        return block

    def _decoder(self, packed: Packed) -> Decoder:
        with self._lock:
            found = self._decoders.get(packed.spec.name)
        if found is None:
            found = self._made(packed)
            with self._lock:
                while len(self._decoders) >= _MAX_DECODERS:  # drop the oldest
                    del self._decoders[next(iter(self._decoders))]
                self._decoders[packed.spec.name] = found
        return found

    def _made(self, packed: Packed) -> Decoder:
        from prunectl.layouts.parts import Parts

        inner = self._inner  # not self: that would be a reference cycle with the decoders

        def fill(suffix: str, start: int, out: Bytes) -> None:
            inner.read(packed.parts[suffix], start, out)

        code_bytes(packed.spec.dtype, packed.layout)
        parts = Parts({suffix: part.spec for suffix, part in packed.parts.items()}, fill)
        return CODINGS[packed.layout].decoder(packed.spec, packed.extra, parts)

    def close(self) -> None:
        """Close all files."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# --- a tensor in parts ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor that is stored as parts.

    Attributes:
        spec: the tensor that the parts encode.
        file: the weights file that holds the parts.
        layout: its layout's name.
        extra: the layout's own parameters.
        parts: stored parts by suffix.
    """

    spec: TensorSpec
    file: str
    layout: str
    extra: Mapping[str, Any]
    parts: Mapping[str, StoredTensor]
