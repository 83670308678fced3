"""Files of masks: which weights of some tensors are kept. The file is not trusted.

docs/masks.md specifies the format: a safetensors file with one U8 tensor of bits for each masked
tensor, and the description of the masks in its ``__metadata__``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import blake3
import msgspec
import numpy as np
from msgspec import Meta

from prunectl.checkpoint.reader import TensorReader, WeightReader
from prunectl.checkpoint.safetensors_file import read_safetensors
from prunectl.checkpoint.stored import StoredTensor, declared_spec
from prunectl.documents import Document, Sizes, Whole, convert, strict_json
from prunectl.errors import BadCheckpoint, BadMaskFile, InvalidPattern
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted
from prunectl.pattern import NM, parse_nm
from prunectl.tensorspec import DTYPES, TensorSpec

VERSION = 1

_FORMAT = re.compile(r"prunectl\.masks/([0-9]{1,9})")
_BLOCK = 1 << 20

T = TypeVar("T")
Short = Annotated[str, Meta(max_length=1024)]
"""Text that a manifest will repeat."""


class _Described(Document, frozen=True):
    """The description of a mask in the metadata, under the tensor's name."""

    shape: Sizes
    zeros: Whole
    pattern: str | None = None
    input_axis: Whole | None = None


class _SourceFile(Document, frozen=True):
    name: Short
    size: Whole
    sha256: Short | None = None


class _Source(Document, frozen=True):
    """The description of the masks' source model in the metadata."""

    model: Short | None = None
    kind: Short | None = None
    repo_id: Short | None = None
    commit: Short | None = None
    files: tuple[_SourceFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of one tensor.

    Attributes:
        name, shape: of the tensor.
        zeros: pruned weights, as the file states; :func:`check_bits` counts them.
        pattern: the N:M that the mask follows, as the file states; None if it states none.
        input_axis: the axis of ``shape`` along which N:M groups lie; None if unknown.
        bits: the stored bits: U8 [ceil(numel / 8)].
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    pattern: NM | None
    input_axis: int | None
    bits: StoredTensor

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A file of masks, from its header.

    Attributes:
        path: the file.
        masks: by tensor name, in the order of the file.
        source: the checkpoint that the masks were made from: ``model``, ``kind``, ``repo_id``,
            ``commit`` (text or None) and ``files`` ({"name", "size", "sha256"} each).
    """

    path: Path
    masks: Mapping[str, Mask]
    source: Mapping[str, Any]

    def open(self) -> TensorReader:
        """A reader of the bits; close it, or use it in a ``with`` block."""
        return WeightReader(self.path.parent)


def is_mask_file(path: Path) -> bool:
    """Whether a file declares itself a file of masks, of any version."""
    try:
        return _FORMAT.fullmatch(_header(path)[1].get("format", "")) is not None
    except BadMaskFile:
        return False


def read_masks(path: Path) -> MaskFile:
    """Read the header of a file of masks, and check everything but the bits.

    Raises:
        BadMaskFile: the file is unreadable, not a file of masks, damaged or contradictory, or was
            written by a newer prunectl.
    """
    tensors, metadata = _header(path)
    version = _FORMAT.fullmatch(metadata.get("format", ""))
    if version is None:
        raise BadMaskFile(path, "not a file of masks")
    if int(version[1]) != VERSION:
        raise BadMaskFile(
            path,
            f"has format version {int(version[1])}; this prunectl reads {VERSION}",
            hint="a newer prunectl is needed: pip install -U prunectl",
        )
    described = _metadata(path, metadata, "masks", dict[str, Any])
    stored = {tensor.name: tensor for tensor in tensors}
    for name in sorted(stored.keys() ^ described.keys()):
        where = "bits" if name in stored else "a description"
        raise BadMaskFile(path, f"'{name[:80]}' has {where} only")
    if not stored:
        raise BadMaskFile(path, "holds no mask")
    masks = {name: _mask(path, tensor, described[name]) for name, tensor in stored.items()}
    source = _metadata(path, metadata, "source", _Source)
    return MaskFile(path, masks, msgspec.to_builtins(source))


def check_bits(file: MaskFile, reader: TensorReader, on_event: OnEvent) -> str:
    """Read all bits once: as many are 0 as the header states, and none is 1 after the last weight.

    Args:
        reader: of this file. It keeps the file open, so that later reads are of the checked file,
            even if the path gets another file.

    Returns:
        BLAKE3 of the whole file.

    Raises:
        BadMaskFile: a mask's bits contradict the header, or the file changed since it was read.
    """
    size = min(mask.bits.offset for mask in file.masks.values())
    header = np.empty(size, np.uint8)
    phase = "reading masks"
    on_event(PhaseStarted(phase, sum(mask.bits.spec.nbytes for mask in file.masks.values())))
    try:
        spec = TensorSpec("header", DTYPES["U8"], (size,))
        reader.read(StoredTensor(spec, file.path.name, 0), 0, header)
        digest = blake3.blake3(header.data)
        for mask in file.masks.values():
            digest_bits(file, mask, reader, digest)
            on_event(Advanced(phase, mask.bits.spec.nbytes, mask.name))
    except OSError as error:
        raise BadMaskFile(file.path, f"cannot be read: {error.strerror}") from None
    except BadCheckpoint as error:
        raise BadMaskFile(file.path, error.why) from None
    on_event(PhaseDone(phase))
    return digest.hexdigest()


def digest_bits(file: MaskFile, mask: Mask, reader: TensorReader, digest: Any) -> None:
    """Add a mask's bits to ``digest`` and count them.

    Raises:
        BadMaskFile: the bits contradict the header.
    """
    kept, last = 0, 0
    block = np.empty(min(_BLOCK, mask.bits.spec.nbytes), np.uint8)
    for start in range(0, mask.bits.spec.nbytes, _BLOCK):
        part = block[: mask.bits.spec.nbytes - start]
        reader.read(mask.bits, start, part)
        digest.update(part.data)
        whole = part[: part.size // 8 * 8].view(np.uint64)
        kept += int(np.bitwise_count(whole).sum(dtype=np.int64))
        kept += int(np.bitwise_count(part[part.size // 8 * 8 :]).sum(dtype=np.int64))
        last = int(part[-1])
    if mask.numel % 8 and last >> mask.numel % 8:
        raise BadMaskFile(file.path, f"'{mask.name}' has ones after its last weight")
    if kept != mask.numel - mask.zeros:
        raise BadMaskFile(
            file.path,
            f"'{mask.name}' removes {mask.numel - kept:,} weights, the header says {mask.zeros:,}",
        )


def _header(path: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    try:
        if not path.is_file():  # reading a pipe would never end
            what = "is a folder" if path.is_dir() else "no such file"
            raise BadMaskFile(path, what)
        return read_safetensors(path, path.name)
    except OSError as error:
        raise BadMaskFile(path, f"cannot be read: {error.strerror}") from None
    except BadCheckpoint as error:
        raise BadMaskFile(path, error.why) from None


def _metadata(path: Path, metadata: Mapping[str, str], key: str, kind: type[T]) -> T:
    """A member of the metadata, which is JSON in a string."""
    try:
        value = strict_json(metadata.get(key, ""))
    except ValueError:
        raise BadMaskFile(path, f"the header's '{key}' is not JSON") from None
    return _converted(path, value, kind, key)


def _converted(path: Path, value: object, kind: type[T], place: str) -> T:
    try:
        return convert(value, kind, place)
    except ValueError as error:
        raise BadMaskFile(path, str(error)) from None


def _mask(path: Path, bits: StoredTensor, value: object) -> Mask:
    def bad(why: str) -> BadMaskFile:
        return BadMaskFile(path, f"'{bits.name}': {why}")

    described = _converted(path, value, _Described, f"masks.{bits.name}")
    spec, sizes, axis = bits.spec, described.shape, described.input_axis
    try:
        numel = declared_spec(path, bits.name, spec.dtype, sizes).numel
        pattern = None if described.pattern is None else parse_nm(described.pattern[:20])
    except BadCheckpoint as error:
        raise BadMaskFile(path, error.why) from None
    except InvalidPattern:
        raise bad("its pattern is neither N:M nor null") from None
    if spec.dtype.name != "U8" or spec.shape != (-(-numel // 8),):
        shapes = f"{list(spec.shape)} is not one bit for each weight of {list(sizes)}"
        raise bad(f"{spec.dtype.label} {shapes}")
    if described.zeros > numel:
        raise bad(f"its {described.zeros:,} zeros are more than its weights")
    if axis is not None and axis >= len(sizes):
        raise bad("its input_axis is not an axis of its shape")
    if pattern is not None and (axis is None or sizes[axis] % pattern.m):
        raise bad(f"its shape has no input axis of whole groups of {pattern}")
    return Mask(bits.name, sizes, described.zeros, pattern, axis, bits)
