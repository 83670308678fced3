"""The second pass of an export to a compressed layout: threads encode blocks of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import blake3
import numpy as np

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.exporting.survey import Choice, check_digest
from prunectl.layouts.layout import Encoder, Pieces, StoredPart
from prunectl.layouts.parts import Bytes
from prunectl.layouts.table import CODINGS, DENSE
from prunectl.magnitude.codes import code_format
from prunectl.magnitude.masks import count_zeros
from prunectl.output.header import ALIGNMENT
from prunectl.output.parts import PartsShard, PartsWriter, header_room
from prunectl.output.shards import Shard, ShardWriter
from prunectl.parallel.run import Advance, Run
from prunectl.parallel.streaming import Scratch
from prunectl.plan.job import OutputTensor
from prunectl.tensorspec import DTYPES, TensorSpec

_ITEM_BYTES = 4 << 20
"""Dense bytes that a thread encodes before it hands over the result."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The facts of a written tensor, and its names in the file."""

    name: str
    layout: str
    pattern: str | None
    zeros: int
    blake3: str
    stored_bytes: int
    stored_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    """Some ranges of a tensor's encoder; of a tensor that stays dense, some blocks of its bytes."""

    choice: Choice
    source: StoredTensor
    encoder: Encoder | None
    numbers: range
    last: bool


def write_parts(
    shard: PartsShard,
    choices: Mapping[str, Choice],
    sources: Mapping[str, StoredTensor],
    reader: TensorReader,
    writer: PartsWriter,
    run: Run,
    advance: Advance,
) -> list[Stored]:
    """Write all tensors of one compressed file; return their facts in the shard's order.

    Dense tensors come last, wide types first, so that each is aligned for its type.

    Args:
        advance: receives dense bytes as they are written.
    """

    def work(item: _Item, scratch: Scratch) -> tuple[_Item, list[Pieces]]:
        return item, [_encode(item, number, reader, scratch) for number in item.numbers]

    order = {spec.name: place for place, spec in enumerate(shard.specs)}
    ordered = sorted((choices[name] for name in order), key=_place)
    written: list[Stored] = []
    position, current = 0, None
    for item, pieces in run.ordered(_items(ordered, sources), work):
        if current is None:
            current = _Tensor(item.choice, item.encoder, writer, position)
        for piece in pieces:
            current.append(piece)
        advance(_share(item), shard.name)
        if item.last:
            stored, position = current.close()
            written.append(stored)
            current = None
    return sorted(written, key=lambda stored: order[stored.name])


def _place(choice: Choice) -> tuple[bool, int]:
    return choice.is_dense, -choice.spec.dtype.bits


def _items(choices: Sequence[Choice], sources: Mapping[str, StoredTensor]) -> Iterator[_Item]:
    for choice in choices:
        spec, source = choice.spec, sources[choice.spec.name]
        encoder = None if choice.is_dense else _encoder_of(choice)
        if encoder is None:
            count, some = max(1, -(-spec.nbytes // _ITEM_BYTES)), 1
        else:
            count = len(encoder.ranges)
            some = max(1, _ITEM_BYTES * count // max(1, spec.nbytes))
        for start in range(0, count, some):
            stop = min(start + some, count)
            yield _Item(choice, source, encoder, range(start, stop), stop == count)


def _encoder_of(choice: Choice) -> Encoder:
    return CODINGS[choice.layout].encoder(choice.spec, choice.extra)


def _share(item: _Item) -> int:
    """Dense bytes of an item; those of all items of a tensor add up to its size."""
    total = item.choice.spec.nbytes
    count = len(item.encoder.ranges) if item.encoder else max(1, -(-total // _ITEM_BYTES))
    return total * item.numbers.stop // count - total * item.numbers.start // count


def _encode(item: _Item, number: int, reader: TensorReader, scratch: Scratch) -> Pieces:
    spec, source, encoder = item.choice.spec, item.source, item.encoder
    if encoder is None:
        start = number * _ITEM_BYTES
        block = np.empty(min(_ITEM_BYTES, spec.nbytes - start), np.uint8)
        reader.read(source, start, block)
        return Pieces([block], block[:0])
    first, last = encoder.ranges[number]
    size = spec.dtype.bits // 8
    block = scratch.buffer((last - first) * size)
    reader.read(source, first * size, block)
    return encoder.encode(number, block.view(f"u{size}"))


@dataclass(slots=True)
class _Tensor:
    """A tensor being written to the file, from position ``begin`` on."""

    choice: Choice
    encoder: Encoder | None
    writer: PartsWriter
    begin: int
    large: int = 0
    small: list[Bytes] = field(default_factory=list)

    def append(self, pieces: Pieces) -> None:
        """Write the next bytes of the large part, and collect those of the small one."""
        start = self._large_begin() + self.large
        for piece in pieces.large:
            self.writer.write(piece.data, start)
            start += piece.size
            self.large += piece.size
        if pieces.small.size:
            self.small.append(pieces.small)

    def _large_begin(self) -> int:
        return self.begin + ((self.encoder.lead or 0) if self.encoder else 0)

    def close(self) -> tuple[Stored, int]:
        """List the tensor in the header; return where the next one may begin."""
        choice, encoder = self.choice, self.encoder
        spec = choice.spec
        if encoder is None:
            end = self.begin + self.large
            self.writer.declare(spec.name, spec.dtype.name, spec.shape, self.begin, end)
            self.writer.state(spec.name, choice.blake3)
            return self._stored(end, (spec.name,)), end
        small = encoder.finish(np.concatenate([np.empty(0, np.uint8), *self.small]))
        places = [(self._large_begin(), self.large), (self.begin, small.size)]
        if encoder.lead is None:
            places[1] = (self.begin + self.large, small.size)
        self.writer.write(small.data, places[1][0])
        end = max(place + size for place, size in places)
        padding = -end % ALIGNMENT
        self.writer.write(bytes(padding), end)  # a file without gaps is written in whole chunks
        parts = encoder.parts(self.large, padding)
        last = 1 if encoder.lead is None else 0
        places[last] = (places[last][0], places[last][1] + padding)
        for part, (place, size) in zip(parts, places, strict=True):
            name = f"{spec.name}.{part.suffix}"
            self.writer.declare(name, part.dtype, part.shape, place, place + size)
        self.writer.describe(spec.name, _description(choice, parts))
        names = tuple(f"{spec.name}.{part.suffix}" for part in parts)
        return self._stored(end + padding, names), end + padding

    def _stored(self, end: int, names: tuple[str, ...]) -> Stored:
        choice = self.choice
        pattern = str(choice.pattern) if choice.pattern else None
        return Stored(
            choice.spec.name,
            choice.layout,
            pattern,
            choice.zeros,
            choice.blake3,
            end - self.begin,
            names,
        )


def _description(choice: Choice, parts: Sequence[StoredPart]) -> dict[str, Any]:
    """A tensor's description in the file header."""
    return {
        "layout": choice.layout,
        "dtype": choice.spec.dtype.name,
        "shape": list(choice.spec.shape),
        "parts": [part.suffix for part in parts],
        "extra": choice.extra,
        "blake3": choice.blake3,
    }


def room_for(shard: PartsShard, choices: Mapping[str, Choice]) -> int:
    """Bytes to reserve for the header of a compressed file, before its sizes are known.

    Raises:
        OutputError: a header cannot hold them.
    """
    entries: list[TensorSpec] = []
    described: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for spec in shard.specs:
        choice = choices[spec.name]
        if choice.is_dense:
            entries.append(spec)
            digests[spec.name] = choice.blake3
            continue
        encoder = _encoder_of(choice)
        parts = encoder.parts(encoder.most, 0)
        described[spec.name] = _description(choice, parts)
        entries += [
            TensorSpec(f"{spec.name}.{part.suffix}", DTYPES[part.dtype], part.shape)
            for part in parts
        ]
    return header_room(entries, described, digests)


# --- dense files: a compressed folder made dense, or new shards -----------------------------------


def write_dense(
    shard: Shard,
    outputs: dict[str, OutputTensor],
    checkpoint: Checkpoint,
    reader: TensorReader,
    writer: ShardWriter,
    run: Run,
    advance: Advance,
) -> list[Stored]:
    """Write all tensors of one dense file; return their facts in the shard's order.

    Raises:
        BadCheckpoint: a tensor's bytes do not match its stored hash.
    """
    # keyed by output, since two outputs may be one tensor of the source
    tensors = [
        StoredTensor(spec, outputs[spec.name].source.file, outputs[spec.name].source.offset)
        for spec in shard.specs
    ]

    def work(tensor: StoredTensor, scratch: Scratch) -> Stored:
        put = partial(writer.write, tensor.name)
        source = outputs[tensor.name].source
        digest, zeros = blake3.blake3(), 0
        format = code_format(tensor.spec.dtype) if tensor.spec.dtype.is_float else None
        for start, block in scratch.blocks(reader, source):
            digest.update(block.data)
            zeros += count_zeros(block.view(format.uint)) if format else 0
            put(start, block.data)
        found = digest.hexdigest()
        check_digest(checkpoint, source, found)
        spec = tensor.spec
        return Stored(spec.name, DENSE, None, zeros, found, spec.nbytes, (spec.name,))

    written = []
    for tensor, stored in run.tensors(tensors, work):
        written.append(stored)
        advance(tensor.spec.nbytes, shard.name)
    return written
