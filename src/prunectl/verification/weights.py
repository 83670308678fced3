"""Every tensor of an output against the manifest and, if there is one, its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import blake3
import numpy as np

from prunectl import numbers
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.geometry import Rows
from prunectl.magnitude.codes import Codes, code_format
from prunectl.magnitude.masks import (
    Comparison,
    compare,
    count_zeros,
    nm_violations,
    odd_codes,
)
from prunectl.output.records import TensorRecord
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import Bytes, Scratch
from prunectl.pattern import NM, Unstructured, parse_pattern
from prunectl.verification.result import Difference


@dataclass(frozen=True, slots=True)
class Source:
    """The source checkpoint, and its tensors by their names in the output."""

    checkpoint: Checkpoint
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True, slots=True)
class Found:
    """Counts of one tensor of the output; ``zeros_before`` in its source, if read.

    ``strays`` are weights in rows outside the pattern that were pruned, or changed in a tensor that
    calibration changed. ``odd`` and ``minus_zeros`` are NaN and Inf, and -0.0, in a tensor that
    calibration changed.
    """

    zeros: int
    zeros_before: int | None
    digest: str
    violations: int
    strays: int
    comparison: Comparison | None
    same_bytes: bool
    odd: int = 0
    minus_zeros: int = 0


def check_weights(
    output: Checkpoint,
    records: Mapping[str, TensorRecord],
    source: Source | None,
    run: Run,
) -> Iterator[tuple[TensorRecord, Found, list[Difference]]]:
    """Read every tensor once; yields its record, its counts, and the differences."""
    tensors = [tensor for tensor in output.tensors if tensor.name in records]
    with ExitStack() as stack:
        reader = stack.enter_context(output.open(once=True))
        origin = stack.enter_context(source.checkpoint.open(once=True)) if source else None

        def work(tensor: StoredTensor, scratch: Scratch) -> Found:
            record = records[tensor.name]
            original = source.tensors.get(tensor.name) if source else None
            if original is not None and original.spec.dtype != tensor.spec.dtype:
                original = None
            if original is not None and original.spec.shape != tensor.spec.shape:
                original = None
            read = None if original is None or origin is None else _reader_of(origin, original)
            return _examine(tensor, record, reader, read, scratch)

        for tensor, found in run.shared_tensors("verifying weights", tensors, work):
            record = records[tensor.name]
            yield record, found, list(_judge(tensor, record, found, source))


ReadSource = Callable[[int, int, Scratch], Bytes]


def _reader_of(reader: TensorReader, tensor: StoredTensor) -> ReadSource:
    def read(start: int, size: int, scratch: Scratch) -> Bytes:
        block = scratch.buffer(size, "source")
        reader.read(tensor, start, block)
        return block

    return read


def _pattern(record: TensorRecord) -> NM | None:
    """The N:M pattern in the manifest, or None."""
    if record.pattern is None:
        return None
    pattern = parse_pattern(record.pattern)
    return None if isinstance(pattern, Unstructured) else pattern


def _examine(
    tensor: StoredTensor,
    record: TensorRecord,
    reader: TensorReader,
    read_source: ReadSource | None,
    scratch: Scratch,
) -> Found:
    spec = tensor.spec
    digest = blake3.blake3()
    format = code_format(spec.dtype) if spec.dtype.is_float else None
    same_shape = spec.shape == record.shape  # else the recorded axis means nothing
    pattern = _pattern(record) if format and same_shape else None
    geometry = Rows.of(spec.shape, record.input_axis if same_shape else None)
    if pattern is not None and geometry.length % pattern.m:
        pattern, violations = None, spec.numel
    else:
        violations = 0
    zeros, before, strays, same = 0, 0, 0, True
    odd = minus_zeros = 0
    rows = None if pattern is None else record.pattern_rows
    comparison = Comparison() if read_source and format and format.bits >= 16 else None
    for start, block in scratch.blocks(reader, tensor, geometry.tile(pattern.m) if pattern else 1):
        digest.update(block.data)
        original = read_source(start, len(block), scratch) if read_source else None
        if format is not None:
            codes = block.view(format.uint)
            before += count_zeros(original.view(format.uint)) if original is not None else 0
            if comparison is not None and original is not None:
                part = compare(original.view(format.uint), codes)
                comparison += part
                zeros += part.zeros
                if rows is not None:
                    first = start // format.uint.itemsize
                    was, now = original.view(format.uint), codes
                    count = _differing_in if record.is_updated else _pruned_in
                    strays += count([was], [now]) - count(
                        geometry.parts(was, first, rows), geometry.parts(now, first, rows)
                    )
            else:
                zeros += count_zeros(codes)
            if pattern is not None:
                groups: Iterable[Codes] = (geometry.groups(codes, pattern.m),)
                if rows is not None:
                    groups = geometry.parts(codes, start // format.uint.itemsize, rows)
                violations += sum(nm_violations(group, pattern.n, pattern.m) for group in groups)
            if record.is_updated:
                odd += sum(odd_codes(codes, format))
                minus_zeros += int(np.count_nonzero(codes == format.mask + 1))
        if original is not None and same:
            same = bool(np.array_equal(original, block))
    counted = before if read_source else None
    return Found(
        zeros, counted, digest.hexdigest(), violations, strays, comparison, same, odd, minus_zeros
    )


def _pruned_in(source: Iterable[Codes], output: Iterable[Codes]) -> int:
    """Positions in these parts where the output is +0.0 and the source is not."""
    pairs = zip(source, output, strict=True)
    return sum(int(np.count_nonzero((now == 0) & (was != 0))) for was, now in pairs)


def _differing_in(source: Iterable[Codes], output: Iterable[Codes]) -> int:
    """Positions in these parts where the bits differ."""
    pairs = zip(source, output, strict=True)
    return sum(int(np.count_nonzero(now != was)) for was, now in pairs)


def _judge(
    tensor: StoredTensor, record: TensorRecord, found: Found, source: Source | None
) -> Iterator[Difference]:
    name, spec = tensor.name, tensor.spec
    if spec.dtype.name != record.dtype or spec.shape != record.shape:
        yield Difference(
            "shapes",
            name,
            f"is {spec.dtype.name} {list(spec.shape)}, "
            f"the manifest says {record.dtype} {list(record.shape)}",
        )
    if tensor.file != record.file:
        yield Difference("shapes", name, f"is in {tensor.file}, the manifest says {record.file}")
    if found.digest != record.blake3:
        yield Difference("hashes", name, "its bytes changed since it was written")
    if spec.dtype.is_float and found.zeros != record.zeros:
        detail = f"{found.zeros:,} zeros, the manifest says {record.zeros:,}"
        yield Difference("zeros", name, detail)
    if found.violations:
        yield Difference(
            "pattern", name, f"{found.violations:,} groups have more nonzeros than {record.pattern}"
        )
    if found.odd:
        yield Difference("calibrated", name, f"{found.odd:,} weights are NaN or Inf")
    if found.minus_zeros and not record.by_magnitude:
        # a matrix that no sample reached was not changed, and may keep the source's own -0.0
        yield Difference("calibrated", name, f"{found.minus_zeros:,} zeros are -0.0")
    if source is not None:
        yield from _judge_source(tensor, record, found, source)


def _judge_source(
    tensor: StoredTensor, record: TensorRecord, found: Found, source: Source
) -> Iterator[Difference]:
    name = tensor.name
    original = source.tensors.get(name)
    if original is None:
        yield Difference("source", name, "is not in the source")
        return
    if original.spec.dtype != tensor.spec.dtype or original.spec.shape != tensor.spec.shape:
        yield Difference("source", name, "has another dtype or shape than in the source")
        return
    if tensor.spec.dtype.is_float and found.zeros_before != record.zeros_before:
        detail = f"{found.zeros_before:,} zeros, the manifest says {record.zeros_before:,}"
        yield Difference("source", name, detail)
    if record.pattern is None:
        if not found.same_bytes:
            yield Difference("untouched", name, "was not pruned, but differs from the source")
        return
    comparison = found.comparison
    if comparison is None:
        return
    if comparison.changed and not record.is_updated:
        weights = numbers.plural(comparison.changed, "weight")
        detail = f"{weights} with neither the source's bits nor +0.0"
        yield Difference("survivors", name, detail)
    if found.strays:
        what = "changed" if record.is_updated else "pruned"
        weights = numbers.plural(found.strays, "weight")
        detail = f"{weights} {what} in rows that should be dense"
        yield Difference("survivors", name, detail)
    if record.threshold is not None:
        yield from _judge_threshold(tensor, record.threshold, comparison)


def _judge_threshold(
    tensor: StoredTensor, threshold: float, comparison: Comparison
) -> Iterator[Difference]:
    """Pruned weights are not above the threshold, kept ones not below; ties may be either."""
    value = code_format(tensor.spec.dtype).value
    wrong = []
    if comparison.largest_pruned is not None and value(comparison.largest_pruned) > threshold:
        wrong.append((value(comparison.largest_pruned), "pruned"))
    if comparison.smallest_kept is not None and value(comparison.smallest_kept) < threshold:
        wrong.append((value(comparison.smallest_kept), "kept"))
    for size, what in wrong:
        detail = f"a weight of magnitude {size:.9g} was {what}, the threshold is {threshold:.9g}"
        yield Difference("threshold", tensor.name, detail)
