"""The names that a pickle of tensors may use, and what each of them stands for.

Nothing is called: a function that rebuilds a tensor becomes a record of where that tensor lies.
Other names on torch's list of safe ones are accepted, and their results dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Named:
    """A function or type, by its full name."""

    name: str


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """Bytes that tensors share: their key in the file, torch's name of the type, and elements."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it, unchecked.

    Attributes:
        dtype: torch's name.
        storage: the one with its elements; None if it has none.
        offset: of the first element in the storage, in elements.
        shape, strides: as in torch.
        form: ``sparse``, ``quantized``, ``conjugate``, or '' for an ordinary tensor.
    """

    dtype: str
    storage: PickledStorage | None = None
    offset: Any = 0
    shape: Any = ()
    strides: Any = ()
    form: str = ""


OTHER = object()
"""Stands for values other than tensors and plain containers."""

_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    "float4_e2m1fn_x2", "qint32", "qint8", "quint8", "quint4x2", "quint2x4",
    "bits16", "bits8", "bits4x2", "bits2x4", "bits1x8",
)  # fmt: skip
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "ComplexDouble": "complex128", "ComplexFloat": "complex64", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "QInt32": "qint32",
    "QInt8": "qint8", "QUInt8": "quint8", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4",
}  # fmt: skip
STORAGE_TYPES = {
    f"torch.{place}{name}Storage": dtype
    for place in ("", "cuda.")
    for name, dtype in _STORAGES.items()
} | {"torch.storage.UntypedStorage": "uint8"}
"""Types of storages by full name: torch's name of the elements' type."""

ORDERED = "collections.OrderedDict"
_OTHERS = (
    "collections.Counter", "builtins.set", "builtins.bytearray", "builtins.complex",
    "_codecs.encode", "torch.device", "torch.serialization._get_layout",
    "torch.per_tensor_affine", "torch.per_tensor_symmetric", "torch.per_channel_affine",
    "torch.per_channel_symmetric", "torch.per_channel_affine_float_qparams",
)  # fmt: skip
TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")


def _tensor(
    storage: PickledStorage, offset: Any, shape: Any, strides: Any, *rest: Any
) -> PickledTensor:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``: requires_grad, hooks and metadata follow."""
    form = _lazy_form(rest[2] if len(rest) > 2 else None)
    return PickledTensor(storage.dtype, storage, offset, shape, strides, form)


def _untyped_tensor(
    storage: PickledStorage, offset: Any, shape: Any, strides: Any, *rest: Any
) -> PickledTensor:
    """``_rebuild_tensor_v3``: requires_grad, hooks, dtype and metadata follow."""
    form = _lazy_form(rest[3] if len(rest) > 3 else None)
    return PickledTensor(_dtype_name(rest[2]), storage, offset, shape, strides, form)


def _lazy_form(metadata: Any) -> str:
    is_lazy = isinstance(metadata, dict) and any(metadata.get(key) for key in ("conj", "neg"))
    return "conjugate" if is_lazy else ""


def _same(data: Any, *rest: Any) -> Any:
    """Parameters, and tensors of other devices: the tensor inside."""
    return data


def _nothing_stored(dtype: Any, *rest: Any) -> PickledTensor:
    return PickledTensor(_dtype_name(dtype))


def _sparse(*parts: Any) -> PickledTensor:
    return PickledTensor("", form="sparse")


def _quantized(storage: PickledStorage, *rest: Any) -> PickledTensor:
    return PickledTensor(storage.dtype, form="quantized")


def _from_type(function: Named, kind: Any, arguments: tuple[Any, ...], state: Any) -> Any:
    """``_rebuild_from_type_v2``: tensors with attributes, and subclasses."""
    return REBUILD[function.name](*arguments)


def _dtype_name(dtype: Named) -> str:
    return dtype.name.removeprefix("torch.")


_UTILS = "torch._utils._rebuild_"
REBUILD: dict[str, Callable[..., Any]] = {
    f"{_UTILS}tensor": _tensor,
    f"{_UTILS}tensor_v2": _tensor,
    f"{_UTILS}tensor_v3": _untyped_tensor,
    f"{_UTILS}parameter": _same,
    f"{_UTILS}parameter_with_state": _same,
    f"{_UTILS}device_tensor_from_cpu_tensor": _same,
    f"{_UTILS}meta_tensor_no_storage": _nothing_stored,
    f"{_UTILS}sparse_tensor": _sparse,
    f"{_UTILS}nested_tensor": _sparse,
    f"{_UTILS}wrapper_subclass": _sparse,
    f"{_UTILS}qtensor": _quantized,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _same,
}
KNOWN = {
    name: Named(name)
    for name in (
        ORDERED, *_OTHERS, *TENSOR_TYPES, *REBUILD, *STORAGE_TYPES,
        *(f"torch.{dtype}" for dtype in _DTYPES),
    )
}  # fmt: skip
"""All names that a pickle may use."""
