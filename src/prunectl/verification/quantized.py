"""Which weights of a quantized checkpoint are zero: those whose dequantized value is exactly 0.

A linear layer ``NAME.weight`` [out, in] is stored in one of these forms:

- ``NAME.weight`` itself, in a float type: fp16, bf16, fp32, or fp8 of any scale. +0 and -0 are
  zero.
- ``NAME.weight`` of int8, by compressed-tensors (``weight_scale``, ``weight_zero_point``) or by
  bitsandbytes (``SCB``).
- ``NAME.weight_packed``: integers of 1 to 8 bits in int32, or fp4 in uint8, by compressed-tensors.
- ``NAME.qweight``, ``qzeros``, ``scales``: integers in int32, by GPTQ or AWQ.
- ``NAME.weight`` with ``NAME.weight.quant_state.bitsandbytes__nf4`` or ``fp4``: 4-bit codes, by
  bitsandbytes.

An integer is zero where it is its zero point, or where the scale of its group is 0. Sources:
compressed_tensors/compressors, gptqmodel/nn_modules/qlinear, awq/modules/linear/gemm.py and
bitsandbytes/functional.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.documents import parse_json
from prunectl.magnitude.codes import code_format
from prunectl.tensorspec import TensorSpec
from prunectl.verification.integers import Unreadable, bits_of, ct_packing, unpacked, words_of

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Zeros = Callable[[int, int], Bools]
"""Rows [first, last) of a matrix, first a multiple of 8: True where the weight is zero."""

_INTEGERS = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output of each 4-bit field of a word, from the lowest bits up."""
_MOST_STATE = 1 << 16
"""Bytes of the JSON that bitsandbytes keeps with a weight; it has about a hundred."""
_BNB = "quant_state.bitsandbytes__"


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight of a quantized checkpoint.

    Attributes:
        form: how it is stored, in words.
        zeros: which of its weights are zero, by rows of its last axis.
    """

    form: str
    zeros: Zeros


@dataclass(frozen=True, slots=True)
class _Parts:
    """The tensors that store one weight of a shape [out, in].

    Attributes:
        tensors: of the checkpoint, by name.
        stem: the weight's name without its last part.
    """

    reader: TensorReader
    tensors: Mapping[str, StoredTensor]
    stem: str
    shape: tuple[int, int]

    def get(self, name: str) -> StoredTensor | None:
        return self.tensors.get(f"{self.stem}.{name}")

    def expect(self, name: str, *shapes: tuple[int, ...], dtypes: tuple[str, ...]) -> StoredTensor:
        """The part of this name, whose shape is one of these."""
        tensor = self.get(name)
        if tensor is None:
            raise Unreadable(f"its {name} is missing")
        if tensor.spec.dtype.name not in dtypes:
            raise Unreadable(f"its {name} is {tensor.spec.dtype.label}")
        if tensor.spec.shape not in shapes:
            raise Unreadable(f"its {name} is {list(tensor.spec.shape)}, not {list(shapes[0])}")
        return tensor

    def rows(self, tensor: StoredTensor, first: int, last: int) -> Array:
        """Rows of a tensor's first axis: integers as numbers, floats as codes."""
        inner = tensor.spec.shape[1:]
        size = math.prod(inner)
        return self._elements(tensor, first * size, (last - first) * size).reshape(-1, *inner)

    def whole(self, tensor: StoredTensor) -> Array:
        return self._elements(tensor, 0, tensor.spec.numel).reshape(tensor.spec.shape)

    def _elements(self, tensor: StoredTensor, first: int, count: int) -> Array:
        itemsize = tensor.spec.dtype.bits // 8
        data = np.empty(count * itemsize, np.uint8)
        self.reader.read(tensor, first * itemsize, data)
        return data.view(_INTEGERS.get(tensor.spec.dtype.name) or f"<u{itemsize}")


def find_weight(
    model: Checkpoint, reader: TensorReader, spec: TensorSpec, *, transposed: bool
) -> QuantizedWeight:
    """Find a weight in a checkpoint, in whatever form it is stored there.

    Args:
        reader: of ``model``; must stay open as long as the result is used.
        spec: name and shape of the weight as it was before.
        transposed: whether its first axis is inputs (a Conv1D of GPT-2).

    Raises:
        Unreadable: it is not there, or in no form that can be read.
    """
    tensors = model.by_any_name
    same = tensors.get(spec.name)
    stem, _, own = spec.name.rpartition(".")
    kind = next((kind for kind in ("nf4", "fp4") if f"{spec.name}.{_BNB}{kind}" in tensors), "")
    if same is not None and same.spec.dtype.is_float and not kind:
        return _floats(reader, same, spec)
    if len(spec.shape) != 2 or own != "weight":
        raise Unreadable("it is not there in a float type, and only linear layers are quantized")
    if transposed:
        raise Unreadable("its first axis is inputs, which is read in float types only")
    rows, width = spec.shape
    parts = _Parts(reader, tensors, stem, (rows, width))
    stated = model.config.get("quantization_config")
    config = stated if isinstance(stated, dict) else {}
    if parts.get("weight_packed") is not None:
        return _packed(parts, config)
    if parts.get("qweight") is not None:
        return _gptq_or_awq(parts, config)
    if same is None:
        raise Unreadable("it is not there")
    if kind:
        return _four_bits(parts, same, kind)
    if same.spec.dtype.name == "I8":
        return _int8(parts)
    raise Unreadable(f"it is {same.spec.dtype.label}, a form that is not known")


def _floats(reader: TensorReader, tensor: StoredTensor, spec: TensorSpec) -> QuantizedWeight:
    if tensor.spec.shape != spec.shape:
        raise Unreadable(f"it is {list(tensor.spec.shape)}, not {list(spec.shape)}")
    format, length = code_format(tensor.spec.dtype), spec.shape[-1]
    itemsize = format.uint.itemsize

    def zeros(first: int, last: int) -> Bools:
        data = np.empty((last - first) * length * itemsize, np.uint8)
        reader.read(tensor, first * length * itemsize, data)
        found: Bools = data.view(format.uint).reshape(-1, length) & format.mask == 0
        return found

    return QuantizedWeight(tensor.spec.dtype.label, zeros)


# --- groups of inputs with a scale and a zero point each ------------------------------------------


@dataclass(frozen=True, slots=True)
class _Groups:
    """What belongs to each group of inputs.

    Attributes:
        of_column: int [in], the group of each input.
        points: int [out, groups], or [1, 1] for all: the integer that means zero.
        dead: bool [out, groups]: the scale is 0; None if none is.
    """

    of_column: Array
    points: Array
    dead: Bools | None

    def zeros(self, integers: Array, first: int, last: int) -> Bools:
        """Which of the integers [rows, in] of rows [first, last) are zero."""
        points = self.points if self.points.size == 1 else self.points[first:last, self.of_column]
        found: Bools = integers == points
        if self.dead is not None:
            found |= self.dead[first:last, self.of_column]
        return found


def _columns(parts: _Parts, name: str, groups: int) -> Array:
    """The group of each input: as stored under ``name``, else consecutive."""
    width = parts.shape[1]
    if parts.get(name) is not None:
        stored = parts.whole(parts.expect(name, (width,), dtypes=("I32", "I64")))
        if (stored >= 0).all() and (stored < groups).all():
            return stored
        if not (stored == -1).all():  # -1: it was never set
            raise Unreadable(f"its {name} names other groups than 0 to {groups - 1}")
    if width % groups:
        raise Unreadable(f"{groups} groups do not divide {width} inputs")
    return np.arange(width) // (width // groups)


def _is_zero(codes: Array, tensor: StoredTensor) -> Bools:
    zero: Bools = codes & code_format(tensor.spec.dtype).mask == 0
    return zero


_SCALES = ("F16", "BF16", "F32", "F64")


def _ct_groups(parts: _Parts, middle: int, bits: int, *, whole: bool = False) -> _Groups:
    """The groups of compressed-tensors; ``middle`` is the integer 0 as it is stored."""
    rows, width = parts.shape
    scale = parts.get("weight_scale")
    count = scale.spec.shape[1] if scale and len(scale.spec.shape) == 2 else 1
    shapes = ((rows, count), (rows,), (1,), (1, 1), ())
    if not 1 <= count <= width:
        raise Unreadable(f"its weight_scale has {count} groups")
    scale = parts.expect("weight_scale", *shapes, dtypes=_SCALES)
    dead = np.zeros((rows, count), np.bool_)
    dead[:] = _is_zero(parts.whole(scale), scale).reshape(-1, count)
    points = np.full((1, 1), middle)
    if (stored := parts.get("weight_zero_point")) is not None:
        if stored.spec.dtype.name == "I32":  # packed along the outputs
            words = words_of(rows, bits, whole=whole)
            stored = parts.expect("weight_zero_point", (words, count), dtypes=("I32",))
            points = unpacked(parts.whole(stored).T, bits, rows, whole=whole).T
        else:
            stored = parts.expect("weight_zero_point", *shapes[:4], dtypes=("I8",))
            points = np.broadcast_to(
                parts.whole(stored).reshape(-1, count).astype(np.int16) + middle, (rows, count)
            )
    columns = _columns(parts, "weight_g_idx", count)
    return _Groups(columns, points, dead if dead.any() else None)


def _int8(parts: _Parts) -> QuantizedWeight:
    rows, _ = parts.shape
    tensor = parts.expect("weight", parts.shape, dtypes=("I8",))
    if parts.get("SCB") is not None:
        scale = parts.expect("SCB", (rows,), dtypes=_SCALES)
        order = parts.get("weight_format")
        if order is not None and (order.spec.nbytes > 8 or parts.whole(order).any()):
            raise Unreadable("its weight_format is not row by row")
        dead = _is_zero(parts.whole(scale), scale)[:, None]
        groups = _Groups(np.zeros(parts.shape[1], np.int64), np.zeros((1, 1)), dead)
        form = "int8 of bitsandbytes"
    else:
        groups, form = _ct_groups(parts, 0, 8), "int8 of compressed-tensors"
    return QuantizedWeight(
        form, lambda first, last: groups.zeros(parts.rows(tensor, first, last), first, last)
    )


def _packed(parts: _Parts, config: Mapping[str, Any]) -> QuantizedWeight:
    rows, width = parts.shape
    if (shape := parts.get("weight_shape")) is not None:
        shape = parts.expect("weight_shape", (2,), dtypes=("I64", "I32"))
        if (stated := tuple(parts.whole(shape).tolist())) != parts.shape:
            raise Unreadable(f"its weight_shape says {list(stated)}, not {list(parts.shape)}")
    found = parts.get("weight_packed")
    assert found is not None
    if found.spec.dtype.name == "U8":
        tensor = parts.expect("weight_packed", (rows, width // 2), dtypes=("U8",))
        if width % 2:
            raise Unreadable(f"{width} inputs are not pairs of fp4")

        def zeros(first: int, last: int) -> Bools:
            codes = unpacked(parts.rows(tensor, first, last), 4, width)
            zero: Bools = codes & 7 == 0  # without the sign
            return zero

        return QuantizedWeight("fp4 of compressed-tensors", zeros)
    words = found.spec.shape[-1] if found.spec.shape else 0
    bits, whole = ct_packing(words, width, config)
    tensor = parts.expect("weight_packed", (rows, words), dtypes=("I32",))
    groups = _ct_groups(parts, 1 << (bits - 1), bits, whole=whole)

    def integers(first: int, last: int) -> Bools:
        some = unpacked(parts.rows(tensor, first, last), bits, width, whole=whole)
        return groups.zeros(some, first, last)

    return QuantizedWeight(f"int{bits} of compressed-tensors", integers)


# --- GPTQ and AWQ: inputs along the first axis ----------------------------------------------------


def _gptq_or_awq(parts: _Parts, config: Mapping[str, Any]) -> QuantizedWeight:
    method = str(config.get("quant_method", "")).lower()
    kind = str(config.get("checkpoint_format") or config.get("format") or "").lower()
    rows, width = parts.shape
    scale = parts.get("scales")
    count = scale.spec.shape[0] if scale and scale.spec.shape else 0
    if not 1 <= count <= width:
        raise Unreadable(f"its scales have {count} groups")
    scale = parts.expect("scales", (count, rows), dtypes=_SCALES)
    dead = _is_zero(parts.whole(scale), scale).T
    if method == "awq":
        version = kind or str(config.get("version", "gemm")).lower()
        if version != "gemm":
            raise Unreadable(f"AWQ of version {version[:40]} is not known")
        return _awq(parts, count, dead)
    if method != "gptq" or kind not in ("", "gptq", "gptq_v2"):
        raise Unreadable(f"{method[:40] or 'qweight'} {kind[:40]} is not known".replace("  ", " "))
    return _gptq(parts, count, dead, above=0 if kind == "gptq_v2" else 1)


def _gptq(parts: _Parts, count: int, dead: Bools, above: int) -> QuantizedWeight:
    """``above``: what is added to a stored zero point."""
    rows, width = parts.shape
    found = parts.get("qweight")
    height = found.spec.shape[0] if found and found.spec.shape else 0
    bits = bits_of(height, width)
    words = parts.whole(parts.expect("qweight", (height, rows), dtypes=("I32",)))
    stored = parts.expect("qzeros", (count, words_of(rows, bits)), dtypes=("I32",))
    points = (unpacked(parts.whole(stored), bits, rows) + np.uint8(above)) & np.uint8(
        (1 << bits) - 1
    )
    columns = _columns(parts, "g_idx", count)
    groups = _Groups(columns, points.T, dead if dead.any() else None)

    def zeros(first: int, last: int) -> Bools:
        return groups.zeros(unpacked(words[:, first:last].T, bits, width), first, last)

    return QuantizedWeight(f"int{bits} of GPTQ", zeros)


def _awq(parts: _Parts, count: int, dead: Bools) -> QuantizedWeight:
    rows, width = parts.shape
    if rows % 8:
        raise Unreadable(f"{rows} outputs do not fill words of 8")
    words = parts.whole(parts.expect("qweight", (width, rows // 8), dtypes=("I32",)))
    stored = parts.expect("qzeros", (count, rows // 8), dtypes=("I32",))
    points = _in_order(unpacked(parts.whole(stored), 4, rows))
    columns = _columns(parts, "g_idx", count)
    groups = _Groups(columns, points.T, dead if dead.any() else None)

    def zeros(first: int, last: int) -> Bools:
        some = words[:, first // 8 : -(-last // 8)]
        return groups.zeros(_in_order(unpacked(some, 4, last - first)).T, first, last)

    return QuantizedWeight("int4 of AWQ", zeros)


def _in_order(fields: Array) -> Array:
    """The fields [n, outputs] of AWQ's words, by output."""
    ordered = np.empty_like(fields)
    for at, output in enumerate(_AWQ_ORDER):
        ordered[:, output::8] = fields[:, at::8]
    return ordered


# --- bitsandbytes, 4 bits -------------------------------------------------------------------------


def _four_bits(parts: _Parts, tensor: StoredTensor, kind: str) -> QuantizedWeight:
    rows, width = parts.shape
    numel = rows * width
    state = parts.get(f"weight.{_BNB}{kind}")
    if state is None or state.spec.dtype.name != "U8" or state.spec.nbytes > _MOST_STATE:
        raise Unreadable("its quantization state is damaged")
    try:
        facts = parse_json(parts.whole(state).tobytes())
        shape, block = tuple(facts["shape"]), facts["blocksize"]
    except (ValueError, TypeError, KeyError):
        raise Unreadable("its quantization state is damaged") from None
    if shape != parts.shape:
        raise Unreadable(f"its state says {str(list(shape))[:80]}, not {list(parts.shape)}")
    if tensor.spec.nbytes != -(-numel // 2):
        raise Unreadable(f"it has {tensor.spec.nbytes:,} bytes for {numel:,} weights")
    if type(block) is not int or not 1 <= block <= numel:
        raise Unreadable("its blocksize is damaged")
    values = parts.whole(parts.expect("weight.quant_map", (16,), dtypes=("F32",)))
    means_zero = values & 0x7FFFFFFF == 0
    count = -(-numel // block)
    largest = parts.expect("weight.absmax", (count,), dtypes=("F32", "U8"))
    # A block's largest value may be quantized too: then it is an approximation, which is not 0.
    dead = parts.whole(largest) == 0 if largest.spec.dtype.name == "F32" else None
    if dead is not None and not dead.any():
        dead = None

    def zeros(first: int, last: int) -> Bools:
        begin, end = first * width, last * width
        data = np.empty(-(-(end - begin) // 2), np.uint8)
        parts.reader.read(tensor, begin // 2, data)
        codes = np.stack([data >> 4, data & 15], axis=1).reshape(-1)[: end - begin]
        found: Bools = means_zero[codes]
        if dead is not None:
            found |= dead[np.arange(begin, end) // block]
        return found.reshape(-1, width)

    return QuantizedWeight(f"{kind} of bitsandbytes", zeros)
