"""Split tensors into files, and write such a file at known positions."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from prunectl.errors import InvalidOption
from prunectl.output.header import Header, encode_header, storage_order
from prunectl.output.osfiles import Buffer, undone_by
from prunectl.output.partial import PartialFile
from prunectl.tensorspec import TensorSpec

INDEX_NAME = "model.safetensors.index.json"
_FLOATING = ("F", "BF", "C")
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}


def parse_size(text: int | str) -> int:
    """Read a size such as ``5GB`` or ``300MB`` in bytes: decimal units, as in huggingface_hub.

    Raises:
        InvalidOption: neither a positive number, nor one followed by TB, GB, MB or KB.
    """
    if isinstance(text, int):
        if text < 1:
            why = f"max_shard_size: {text} is not a positive size"
            raise InvalidOption(why, hint="such as 5GB")
        return text
    cleaned = text.strip()
    unit = _UNITS.get(cleaned[-2:].upper())
    why = "use a number and a decimal unit: 5GB, 300MB, 1TB or 64KB"
    if unit is None:
        raise InvalidOption(f"size '{text}' has no known unit", hint=why)
    try:
        value = float(cleaned[:-2])
    except ValueError:
        raise InvalidOption(f"size '{text}' has no number before its unit", hint=why) from None
    if not math.isfinite(value) or value * unit < 1:
        raise InvalidOption(f"size '{text}' is not a positive size", hint=why)
    return int(value * unit)


@dataclass(frozen=True, slots=True)
class Shard:
    """One weights file to write: its name, its tensors in stored order, and its encoded header."""

    name: str
    specs: tuple[TensorSpec, ...]
    header: Header

    @property
    def size(self) -> int:
        """Size of the complete file in bytes."""
        return self.header.file_size


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """All weight files of an output.

    Attributes:
        shards: in the order of their numbers.
        shard_of: file name by tensor name.
    """

    shards: tuple[Shard, ...]
    shard_of: dict[str, str]

    @property
    def total_bytes(self) -> int:
        """Bytes of all weight files, headers included."""
        return sum(shard.size for shard in self.shards)

    def index(self) -> bytes | None:
        """Return the index file, as transformers 5 writes it; None for a single file.

        ``total_parameters`` counts the elements of floating-point tensors: integer tensors in a
        checkpoint are buffers, which transformers does not count as parameters.
        """
        if len(self.shards) < 2:
            return None
        specs = [spec for shard in self.shards for spec in shard.specs]
        document = {
            "metadata": {
                "total_parameters": sum(
                    s.numel for s in specs if s.dtype.name.startswith(_FLOATING)
                ),
                "total_size": sum(s.nbytes for s in specs),
            },
            "weight_map": self.shard_of,
        }
        return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def plan_shards(specs: Sequence[TensorSpec], max_shard_size: int) -> ShardLayout:
    """Split tensors into files by transformers' own rule and names.

    Args:
        specs: all tensors, in the order in which they will be stored.
        max_shard_size: limit on the tensors of a file, in bytes; a larger tensor gets its own file.

    Raises:
        OutputError: names that cannot be stored (see :func:`encode_header`).
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    by_name = {spec.name: spec for spec in specs}
    if len(by_name) != len(specs):
        encode_header(specs)  # raises, naming the duplicate
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    shards = []
    for name, tensors in split.filename_to_tensors.items():
        ordered = storage_order([by_name[tensor] for tensor in tensors])
        shards.append(Shard(name, tuple(ordered), encode_header(ordered)))
    return ShardLayout(tuple(shards), dict(split.tensor_to_filename))


class ShardWriter:
    """Write one shard into ``folder`` as ``NAME.partial``; :meth:`close` gives it its name.

    :meth:`write` may be called from several threads at once. Space is reserved first, so that a
    full disk is found before the work and not after it. ``shown`` is the name of the shard in
    messages; ``read_again`` says that it should stay in the page cache.

    Raises:
        NoSpace, CannotWrite: the system refuses; also from :meth:`write` and :meth:`close`.
    """

    def __init__(
        self, folder: Path, shard: Shard, shown: Path | None = None, *, read_again: bool = False
    ) -> None:
        self.shard = shard
        self.name = shard.name
        self._lock = threading.Lock()
        self._missing = {spec.name: spec.nbytes for spec in shard.specs}
        self._sizes = dict(self._missing)
        self._file = PartialFile(folder, shard.name, shard.size, shown, direct=not read_again)
        with undone_by(self.abort):
            self._file.write(shard.header.data, 0)

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Write bytes at ``offset`` (bytes) inside the stored tensor; each byte is written once.

        Raises:
            ValueError: the tensor is not in this shard, or the bytes are not inside the tensor.
        """
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        if name not in self._sizes:
            raise ValueError(f"tensor '{name}' is not in {self.shard.name}")
        if offset < 0 or offset + view.nbytes > self._sizes[name]:
            raise ValueError(f"bytes outside of tensor '{name}' in {self.shard.name}")
        self._file.write(view, self.shard.header.offsets[name] + offset)
        with self._lock:
            self._missing[name] -= view.nbytes

    def close(self) -> None:
        """Make the file durable and give it its final name.

        Raises:
            ValueError: bytes of a tensor were not written, or written twice; the file is removed.
        """
        wrong = [name for name, count in self._missing.items() if count]
        if wrong and not self._file.closed:
            self.abort()
            raise ValueError(f"{self.shard.name}: tensor '{wrong[0]}' was not written exactly once")
        self._file.close()

    def abort(self) -> None:
        """Drop the partial file; does nothing after :meth:`close`."""
        self._file.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.abort()
