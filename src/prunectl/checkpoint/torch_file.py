"""Torch pickles (``.bin``, ``.pt``, ``.pth``): where their tensors lie, without reading weights.

Covers both formats: the zip archives of torch >= 1.6, and the older stream of pickles in many files
from before 2020. No function named by a pickle is called, no weight byte is read, and torch is not
needed.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from prunectl.checkpoint.pickled import STORAGE_TYPES, Named, PickledStorage, PickledTensor
from prunectl.checkpoint.stored import StoredTensor, declared_spec, is_contiguous, is_sizes
from prunectl.checkpoint.torch_tensors import TORCH_NAMES
from prunectl.checkpoint.unpickling import unpickle
from prunectl.errors import BadCheckpoint, PrunectlError, UnsafePickle, UnsupportedCheckpoint
from prunectl.tensorspec import DTYPES, DType

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_BYTEORDER_BYTES = 16
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys of the state dict in checkpoints of training scripts, next to step counts and others."""

_DTYPES = {torch_name: DTYPES[name] for name, torch_name in TORCH_NAMES.items()}
_OTHER_BYTES = {
    "complex128": 16, "complex32": 4, "qint32": 4, "qint8": 1, "quint8": 1, "quint4x2": 1,
    "quint2x4": 1,
}  # fmt: skip
"""Most bytes of elements in storages without a tensor that is read here."""

# Offset and size of each storage in bytes, by its key.
_Places = dict[str, tuple[int, int]]


def read_torch_file(path: Path, name: str) -> list[StoredTensor]:
    """List the tensors of a torch pickle, in the order of its state dict.

    Args:
        name: the name to record as the tensors' ``file``.

    Raises:
        UnsafePickle: it needs more than tensors and plain containers.
        BadCheckpoint: truncated, or offsets outside the file.
        UnsupportedCheckpoint: TorchScript, the tar format of 2017, quantized tensors.
    """
    try:
        read = _read_zip if zipfile.is_zipfile(path) else _read_legacy
        loaded, places = read(path)
        return [_stored(path, name, key, it, places) for key, it in _state_dict(path, loaded)]
    except PrunectlError:
        raise
    except Exception as error:  # damage may lead to any exception
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise BadCheckpoint(
            path, f"cannot be read as a torch file ({type(error).__name__}: {first_line})"
        ) from None


class _Storages:
    """The storages that a pickle refers to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, PickledStorage] = {}

    def load(self, saved: Any) -> PickledStorage:
        """Read a storage from a pickle's tuple: its type, key, device and elements."""
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
            raise UnsafePickle(self._path, "it refers to a whole module, not to tensors")
        kind, key, _, numel, view = saved[1:6] if len(saved) > 5 else (*saved[1:5], None)
        if view is not None:
            raise UnsupportedCheckpoint(
                self._path,
                "it holds tensors stored as views of views",
                hint="save it again with a newer torch",
            )
        dtype = STORAGE_TYPES.get(kind.name) if isinstance(kind, Named) else None
        if dtype is None or not isinstance(key, str) or not is_sizes((numel,)):
            raise BadCheckpoint(self._path, "its pickle describes no storage of a tensor")
        storage = self.found.setdefault(key, PickledStorage(key, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise BadCheckpoint(self._path, "its pickle describes one storage in two ways")
        return storage


def _read_zip(path: Path) -> tuple[Any, _Places]:
    home, records = _zip_records(path)
    storages = _Storages(path)
    if f"{home}/data.pkl" not in records:
        raise BadCheckpoint(path, "not an archive of torch: it has no data.pkl")
    begin, size = records[f"{home}/data.pkl"]
    with path.open("rb") as file:
        file.seek(begin)
        loaded = unpickle(path, file, size, storages.load)
    places: _Places = {}
    for key, storage in storages.found.items():
        place = records.get(f"{home}/data/{key}")
        if place is None or place[1] != _storage_bytes(storage):
            raise BadCheckpoint(path, "the archive lacks a tensor's record, or it has another size")
        places[key] = place[0], _storage_bytes(storage)
    return loaded, places


def _storage_bytes(storage: PickledStorage) -> int:
    dtype = _DTYPES.get(storage.dtype)
    return storage.numel * (dtype.bits // 8 if dtype else _OTHER_BYTES[storage.dtype])


def _zip_records(path: Path) -> tuple[str, dict[str, tuple[int, int]]]:
    """The archive's folder, and offset and size of every record, by its name.

    All records are checked: torch stores them uncompressed, and a compressed one could unpack to
    any size.
    """
    records: dict[str, tuple[int, int]] = {}
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = [info.filename for info in archive.infolist()]
        if any(name.endswith("/constants.pkl") for name in names):
            raise UnsupportedCheckpoint(
                path, "a TorchScript archive", hint="save its state_dict() instead"
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
            raise BadCheckpoint(path, "the archive's byteorder record is not valid")
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
            if info.filename in records:
                raise BadCheckpoint(path, "two records of the archive have one name")
            records[info.filename] = offset, info.file_size
    return names[0].partition("/")[0] if names else "", records


def _read_legacy(path: Path) -> tuple[Any, _Places]:
    storages = _Storages(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise BadCheckpoint(path, "truncated: the archive's directory at its end is missing")
        file.seek(0)

        def following() -> Any:
            """The next of the five pickles: magic number, version, machine, tensors, keys."""
            return unpickle(path, file, size - file.tell(), storages.load)

        if following() != _LEGACY_MAGIC:
            raise BadCheckpoint(path, "not a torch file", hint="expected the output of torch.save")
        protocol, system = following(), following()
        is_little_endian = isinstance(system, dict) and system.get("little_endian")
        if protocol != _LEGACY_PROTOCOL or not is_little_endian:
            raise UnsupportedCheckpoint(
                path, "saved on a big-endian machine or in an unknown version", hint="save it again"
            )
        loaded = following()
        return loaded, _legacy_places(path, file, following(), storages.found)


def _legacy_places(
    path: Path, file: BinaryIO, keys: list[str], storages: dict[str, PickledStorage]
) -> _Places:
    """Find the storages after the pickles: each has its element count (int64), then its bytes."""
    places: _Places = {}
    size = path.stat().st_size
    position = file.tell()
    for key in keys:
        if key not in storages:
            raise BadCheckpoint(path, "a storage that no tensor uses: the file is damaged")
        nbytes = _storage_bytes(storages[key])
        file.seek(position)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadCheckpoint(path, "truncated")
        if int.from_bytes(prefix, "little", signed=True) != storages[key].numel:
            raise BadCheckpoint(path, "a storage's size differs from what its tensors need")
        if position + 8 + nbytes > size:
            raise BadCheckpoint(path, "truncated")
        places[key] = position + 8, nbytes
        position += 8 + nbytes
    return places


def _state_dict(path: Path, loaded: Any) -> Iterator[tuple[object, PickledTensor]]:
    """The named tensors of an unpickled object; step counts and the like are not weights."""
    if isinstance(loaded, dict):
        for wrapper in _WRAPPERS:
            inner = loaded.get(wrapper)
            if isinstance(inner, dict) and any(_is_tensor(value) for value in inner.values()):
                loaded = inner
                break
    if not isinstance(loaded, dict):
        names = {PickledTensor: "tensor", object: "value of another type"}
        what = names.get(type(loaded), type(loaded).__name__)
        raise BadCheckpoint(
            path, f"holds a {what}, not a state dict", hint="save model.state_dict()"
        )
    for key, value in loaded.items():
        if _is_tensor(value):
            yield key, value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, PickledTensor)


def _stored(
    path: Path, name: str, key: object, tensor: PickledTensor, places: _Places
) -> StoredTensor:
    dtype = _dtype(path, key, tensor)
    spec = declared_spec(path, key, dtype, tensor.shape)
    place = places.get(tensor.storage.key) if tensor.storage else None
    if place is None:
        raise BadCheckpoint(path, f"tensor '{key}': its bytes are not in the file")
    start, size = place
    shape, strides, first = spec.shape, tensor.strides, tensor.offset
    if not is_sizes(strides) or not is_sizes((first,)) or len(shape) != len(strides):
        raise BadCheckpoint(path, f"tensor '{key}': its strides are not valid")
    last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    itemsize = dtype.bits // 8
    if 0 not in shape and (last + 1) * itemsize > size:
        raise BadCheckpoint(path, f"tensor '{key}': its bytes lie outside its storage")
    if spec.nbytes > size:
        # A few bytes could otherwise be expanded to terabytes (`zeros(1).expand(10**6, 10**6)`).
        raise UnsupportedCheckpoint(
            path,
            f"tensor '{key}' repeats its values: {spec.nbytes:,} bytes from {size:,} stored ones",
            hint="save it again after .contiguous()",
        )
    return StoredTensor(
        spec,
        name,
        start + first * itemsize if spec.numel else start,
        None if is_contiguous(shape, tuple(strides)) else tuple(strides),
    )


def _dtype(path: Path, key: object, tensor: PickledTensor) -> DType:
    if tensor.form == "conjugate":
        raise UnsupportedCheckpoint(
            path, f"tensor '{key}' is a lazy conjugate", hint="save it again after resolve_conj()"
        )
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None or tensor.form:
        what = ", ".join(filter(None, (tensor.dtype, tensor.form)))
        raise UnsupportedCheckpoint(
            path,
            f"tensor '{key}' is quantized or sparse ({what})",
            hint="use the checkpoint from before that conversion",
        )
    return dtype
