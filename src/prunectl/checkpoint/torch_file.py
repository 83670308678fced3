"""Torch pickles (``.bin``, ``.pt``, ``.pth``): where their tensors lie, without reading weights.

Both formats are covered: the zip archives of torch >= 1.6, and the older stream of pickles that
many files from before 2020 still are. Unpickling is torch's ``weights_only`` unpickler onto the
meta device, so that no code of the file runs and no weight byte is read.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from prunectl.checkpoint.stored import StoredTensor, check_name, is_contiguous
from prunectl.errors import BadCheckpoint, PrunectlError, UnsafePickle, UnsupportedCheckpoint
from prunectl.tensorspec import DTYPES, DType, TensorSpec

if TYPE_CHECKING:
    import torch

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_BYTEORDER_BYTES = 16
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which training scripts put the state dict, beside step counts and the like."""

# Where a storage's bytes begin, by the storage's identity, and how many there are.
_Places = dict[int, tuple[int, int]]


def read_torch_file(path: Path, name: str) -> list[StoredTensor]:
    """List the tensors of a torch pickle, in the order of its state dict.

    Args:
        path: the file.
        name: the name to record as the tensors' ``file``.

    Raises:
        UnsafePickle: it needs more than tensors and plain containers.
        BadCheckpoint: truncated, or offsets outside of the file.
        UnsupportedCheckpoint: TorchScript, the tar format of 2017, quantized tensors.
    """
    read = _read_zip if zipfile.is_zipfile(path) else _read_legacy
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded, places, _keep_alive = read(path)
    except PrunectlError:
        raise
    except Exception as error:  # torch raises a dozen types for a damaged pickle
        raise _explain(path, error) from None
    return [_stored(path, name, key, tensor, places) for key, tensor in _state_dict(path, loaded)]


def _read_zip(path: Path) -> tuple[Any, _Places, Any]:
    import torch

    records = _zip_records(path)
    loaded = torch.load(path, map_location="meta", weights_only=True)
    places: _Places = {}
    storages = []
    for _, tensor in _tensors(loaded):
        if tensor.layout is not torch.strided:
            continue  # refused by name later
        storage = tensor.untyped_storage()
        offset = storage._checkpoint_offset
        if offset is None or records.get(offset, -1) < storage.nbytes():
            raise BadCheckpoint(path, "a tensor's bytes lie outside of their record in the archive")
        places[storage._cdata] = (offset, storage.nbytes())
        storages.append(storage)
    return loaded, places, storages


def _zip_records(path: Path) -> dict[int, int]:
    """Offset -> size of every record, after checking them all: none is compressed.

    torch writes records as they are. A compressed one could unpack to any size, in torch's reader
    too.
    """
    records = {}
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = [info.filename for info in archive.infolist()]
        if any(name.endswith("/constants.pkl") for name in names):
            raise UnsupportedCheckpoint(
                path, "a TorchScript archive", hint="save its state_dict() and use that"
            )
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise BadCheckpoint(
                    path,
                    f"the archive's record {info.filename[:80]!a} is compressed, which torch.save "
                    "never does",
                )
        byteorder = next((i for i in archive.infolist() if i.filename.endswith("/byteorder")), None)
        if byteorder and byteorder.file_size > _MAX_BYTEORDER_BYTES:
            raise BadCheckpoint(path, "the archive's byteorder record is not one of torch's")
        if byteorder and archive.read(byteorder).strip() != b"little":
            raise UnsupportedCheckpoint(
                path, "saved on a big-endian machine", hint="save it again on this machine"
            )
        for info in archive.infolist():
            file.seek(info.header_offset)
            header = file.read(30)
            if len(header) < 30:
                raise BadCheckpoint(path, "truncated archive")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            offset = info.header_offset + 30 + name_length + extra_length
            if offset + info.file_size > size:
                raise BadCheckpoint(path, "truncated archive")
            records[offset] = info.file_size
    return records


def _read_legacy(path: Path) -> tuple[Any, _Places, Any]:
    import torch
    from torch import _weights_only_unpickler as weights_only

    storages: dict[str, torch.UntypedStorage] = {}
    itemsizes: dict[str, int] = {}

    def persistent_load(saved: Any) -> Any:
        if not isinstance(saved, tuple) or len(saved) < 5 or _text(saved[0]) != "storage":
            raise UnsafePickle(path, "it refers to a whole module, not to tensors")
        storage_type, key, _, numel, view = saved[1:6] if len(saved) > 5 else (*saved[1:5], None)
        if view is not None:
            raise UnsupportedCheckpoint(
                path, "tensors stored as views of views", hint="save it again with a newer torch"
            )
        dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
        if key not in storages:
            storages[key] = torch.UntypedStorage(numel * dtype.itemsize, device="meta")
            itemsizes[key] = dtype.itemsize
        return torch.storage.TypedStorage(wrap_storage=storages[key], dtype=dtype, _internal=True)

    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise BadCheckpoint(path, "truncated: the archive's directory at its end is missing")
        file.seek(0)
        if weights_only.load(file) != _LEGACY_MAGIC:
            raise BadCheckpoint(path, "not a torch file", hint="expected the output of torch.save")
        if weights_only.load(file) != _LEGACY_PROTOCOL or not _is_little_endian(
            weights_only.load(file)
        ):
            raise UnsupportedCheckpoint(
                path, "saved on a big-endian machine or in an unknown version", hint="save it again"
            )
        unpickler = weights_only.Unpickler(file)
        unpickler.persistent_load = persistent_load  # type: ignore[method-assign]
        loaded = unpickler.load()
        keys = weights_only.load(file)
        places = _legacy_places(path, file, keys, storages, itemsizes)
    return loaded, places, storages


def _legacy_places(
    path: Path,
    file: BinaryIO,
    keys: list[str],
    storages: dict[str, torch.UntypedStorage],
    itemsizes: dict[str, int],
) -> _Places:
    """After the pickles come the storages: each its element count (int64), then its bytes."""
    places: _Places = {}
    size = path.stat().st_size
    position = file.tell()
    for key in keys:
        if key not in storages:
            raise BadCheckpoint(path, "a storage that no tensor uses: the file is damaged")
        storage = storages[key]
        file.seek(position)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadCheckpoint(path, "truncated")
        count = int.from_bytes(prefix, "little", signed=True)
        if count * itemsizes[key] != storage.nbytes():
            raise BadCheckpoint(path, "a storage's size differs from what its tensors need")
        if position + 8 + storage.nbytes() > size:
            raise BadCheckpoint(path, "truncated")
        places[storage._cdata] = (position + 8, storage.nbytes())
        position += 8 + storage.nbytes()
    return places


def _is_little_endian(system: Any) -> bool:
    return isinstance(system, dict) and bool(
        system.get("little_endian", system.get(b"little_endian", False))
    )


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _state_dict(path: Path, loaded: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of what was unpickled; step counts and the like are not weights."""
    if isinstance(loaded, dict):
        for wrapper in _WRAPPERS:
            inner = loaded.get(wrapper)
            if isinstance(inner, dict) and any(_is_tensor(value) for value in inner.values()):
                loaded = inner
                break
    if not isinstance(loaded, dict):
        raise BadCheckpoint(
            path,
            f"holds a {type(loaded).__name__}, not a state dict",
            hint="save model.state_dict()",
        )
    for key, value in loaded.items():
        if _is_tensor(value):
            yield _text(key), value


def _tensors(loaded: Any, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(loaded, dict) and depth < 3:
        for key, value in loaded.items():
            if _is_tensor(value):
                yield _text(key), value
            else:
                yield from _tensors(value, depth + 1)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _stored(path: Path, name: str, key: str, tensor: torch.Tensor, places: _Places) -> StoredTensor:
    check_name(path, key)
    dtype = _dtype(path, key, tensor)
    shape, strides = tuple(tensor.shape), tensor.stride()
    storage = tensor.untyped_storage()
    place = places.get(storage._cdata)
    if place is None:
        raise BadCheckpoint(path, f"tensor '{key}': its bytes are not in the file")
    start, size = place
    first = int(tensor.storage_offset())
    last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    itemsize = dtype.bits // 8
    if 0 not in shape and (
        first < 0 or min(strides, default=0) < 0 or (last + 1) * itemsize > size
    ):
        raise BadCheckpoint(path, f"tensor '{key}': its bytes lie outside of its storage")
    spec = TensorSpec(key, dtype, shape)
    if spec.nbytes > size:
        # A few bytes could otherwise claim to be terabytes (`zeros(1).expand(10**6, 10**6)`).
        raise UnsupportedCheckpoint(
            path,
            f"tensor '{key}' repeats its values: {spec.nbytes:,} bytes from {size:,} stored ones",
            hint="save it again after .contiguous()",
        )
    return StoredTensor(
        spec,
        name,
        start + first * itemsize,
        None if is_contiguous(shape, strides) else strides,
    )


def _dtype(path: Path, key: str, tensor: torch.Tensor) -> DType:
    import torch

    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
        torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
        torch.float8_e8m0fnu: "F8_E8M0",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
        torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
        torch.bool: "BOOL",
    }  # fmt: skip
    name = names.get(tensor.dtype)
    if name is None or tensor.layout is not torch.strided:
        raise UnsupportedCheckpoint(
            path,
            f"tensor '{key}' is quantized or sparse ({tensor.dtype}, {tensor.layout})",
            hint="use the checkpoint from before that conversion",
        )
    if tensor.is_conj() or tensor.is_neg():
        raise UnsupportedCheckpoint(
            path, f"tensor '{key}' is a lazy conjugate", hint="save it again after resolve_conj()"
        )
    return DTYPES[name]


def _explain(path: Path, error: Exception) -> PrunectlError:
    """What torch's many errors for a refused or damaged pickle mean."""
    text = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", text)
    if wanted:
        return UnsafePickle(path, wanted[1])
    if "Only persistent_load of storage" in text:
        return UnsafePickle(path, "it refers to a whole module")
    if "Quantized" in text:
        return UnsupportedCheckpoint(
            path, "holds quantized tensors", hint="use the checkpoint from before that conversion"
        )
    if "operand" in text or "weights_only" in text or "Weights only" in text:
        return UnsafePickle(path, "it uses a pickle instruction that is not on torch's safe list")
    first_line = text.splitlines()[0][:200] if text else ""
    return BadCheckpoint(
        path, f"cannot be read as a torch file ({type(error).__name__}: {first_line})"
    )
