"""The result of an analysis: typed values, exact unless the name says otherwise."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunectl.checkpoint.roles import TensorRole

SPARSITIES = tuple(step / 100 for step in range(5, 100, 5))
"""Sparsities of the threshold table, 5% to 95%."""


def packed_dict(typecode: str) -> Any:
    """A field that is read and set as a dict; empty by default.

    Args:
        typecode: of the values, as in :mod:`array`: ``q`` for ints, ``d`` for floats; '' to keep
            them unpacked.
    """
    return _PackedDict(typecode)


def packed_floats() -> Any:
    """A field that is read and set as a tuple of floats; empty by default."""
    return _PackedFloats()


@functools.lru_cache(4096)
def _shared(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same tuple object for equal keys."""
    return keys


class _PackedDict:
    def __init__(self, typecode: str) -> None:
        self._typecode = typecode

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_{name}"

    def __get__(self, owner: Any, kind: type | None = None) -> dict[Any, Any] | None:
        if owner is None:  # dataclasses ask for the default
            return None
        keys, values = getattr(owner, self._place)
        return dict(zip(keys, values, strict=True))

    def __set__(self, owner: Any, value: Mapping[Any, Any] | None) -> None:
        held: tuple[Any, Sequence[Any]] = _EMPTY
        if value:
            numbers = value.values()
            values = array(self._typecode, numbers) if self._typecode else tuple(numbers)
            held = _shared(tuple(value)), values
        object.__setattr__(owner, self._place, held)


_EMPTY: tuple[tuple[Any, ...], tuple[Any, ...]] = ((), ())


class _PackedFloats:
    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_{name}"

    def __get__(self, owner: Any, kind: type | None = None) -> tuple[float, ...]:
        return () if owner is None else tuple(getattr(owner, self._place))

    def __set__(self, owner: Any, value: Sequence[float]) -> None:
        object.__setattr__(owner, self._place, array("d", value) if value else ())


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The source and contents of the checkpoint.

    Attributes:
        model: as given.
        kind: ``hub``, ``folder``, ``file``.
        format: ``safetensors``, ``pickle``.
        repo_id, revision, commit: if it came from the Hub.
        architecture: the model class, or '' where unknown.
        roles_from: ``modules`` (the model's own module tree) or ``headers``; roles_detail: why.
        quantization: how it is quantized; '' if it is not.
        dtypes: label -> number of weights.
        shards, file_bytes, tensor_bytes, tensors, weights, prunable_weights, layers: counts.
    """

    model: str
    kind: str
    format: str
    repo_id: str | None
    revision: str | None
    commit: str | None
    architecture: str
    roles_from: str
    roles_detail: str
    quantization: str
    dtypes: dict[str, int]
    shards: int
    file_bytes: int
    tensor_bytes: int
    tensors: int
    weights: int
    prunable_weights: int
    layers: int


@dataclass(frozen=True, slots=True)
class PatternFit:
    """The effect of an N:M pattern on one tensor.

    Attributes:
        norm_kept: share of the squared norm that stays; None if the tensor cannot take the pattern.
        zeros: zeros afterwards, including those present before.
        reason: why the tensor cannot take the pattern; '' if it can.
    """

    norm_kept: float | None
    zeros: int
    reason: str = ""


@dataclass(frozen=True)
class TensorStats:
    """Exact statistics of one tensor.

    A model may have 100,000 of these. Dicts and tuples are held as packed numbers and built at each
    access, so keep one in a variable if it is used often.

    Attributes:
        name, dtype (label), shape, numel, role, stack, layer, component: facts from the headers.
        prunable: whether it is pruned by default; reason: why not; '' if it is.
        measured: False for integer and boolean tensors; the numbers below are then zero.
        zeros: weights that are +0 or -0.
        near_zero: tolerance (as text; '0.01*std') -> weights with |w| <= tolerance, zeros included.
        nans, infs: their numbers; they are not part of mean, std, norm_squared, octaves.
        minimum, maximum: of the values that are not NaN; NaN if there are none.
        std: population standard deviation.
        norm_squared: sum of squares, float64.
        quantiles: q (as text) -> that quantile of |w|.
        octaves: binary exponent e -> weights with 2^e <= |w| < 2^(e+1).
        patterns: N:M -> fit, for prunable tensors.
        sparsity: share of zeros that OMP gives this tensor at each of the threshold table's rows.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    numel: int
    role: str
    stack: str
    layer: int | None
    component: str
    prunable: bool
    reason: str
    measured: bool
    zeros: int = 0
    near_zero: dict[str, int] = packed_dict("q")  # noqa: RUF009
    nans: int = 0
    infs: int = 0
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    norm_squared: float = 0.0
    quantiles: dict[str, float] = packed_dict("d")  # noqa: RUF009
    octaves: dict[int, int] = packed_dict("q")  # noqa: RUF009
    patterns: dict[str, PatternFit] = packed_dict("")  # noqa: RUF009
    sparsity: tuple[float, ...] = packed_floats()


@dataclass(frozen=True, slots=True)
class Threshold:
    """A row of the OMP table: one global threshold over all prunable weights.

    Attributes:
        sparsity: requested.
        count: weights that are zero then, exactly floor(s*P + 0.5), or more if more are zero
            already.
        threshold: largest pruned magnitude.
        norm_kept: share of the squared norm of the prunable weights that stays.
        ties: weights at exactly the threshold; ties_pruned: how many of them are pruned.
        roles, layers: share of zeros by role, and by 'stack.layer' (prunable tensors only).
    """

    sparsity: float
    count: int
    threshold: float
    norm_kept: float
    ties: int
    ties_pruned: int
    roles: dict[str, float]
    layers: dict[str, float]


@dataclass(frozen=True, slots=True)
class PatternSummary:
    """An N:M pattern over the whole model.

    Attributes:
        pattern: as text.
        norm_kept: share of the squared norm of all prunable weights that stays if every tensor that
            fits takes it.
        eligible, ineligible: numbers of tensors.
        reasons: why not eligible -> number of tensors.
        zeros, sparsity: of the prunable weights, afterwards.
        by_layer: norm kept per 'stack.layer'.
        bytes_packed: size of values and packed positions of the pruned tensors, all others dense.
    """

    pattern: str
    norm_kept: float
    eligible: int
    ineligible: int
    reasons: dict[str, int]
    zeros: int
    sparsity: float
    by_layer: dict[str, float]
    bytes_packed: int


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """Exact histograms of |w|, four bins an octave.

    The counts of each group: first the weights with 0 < |w| < ``edges[0]``, then those with
    ``edges[i]`` <= |w| < ``edges[i + 1]`` for each i, and last those not below the last edge, Inf
    included. Zeros and NaN are not counted.

    Attributes:
        edges: increasing.
        roles: of all measured tensors.
        components, layers: of the prunable ones; all experts of a layer are one component
            (``mlp.experts.*.up_proj``).
    """

    edges: tuple[float, ...] = ()
    roles: dict[str, tuple[int, ...]] = field(default_factory=dict)
    components: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layers: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """The prunable weights of one component in one layer, all experts together.

    Attributes:
        stack, layer, component: the place in the model.
        tensors, weights: counts.
        zeros: at each threshold of the :class:`Cuts`.
    """

    stack: str
    layer: int | None
    component: str
    tensors: int
    weights: int
    zeros: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cuts:
    """The zeros of each component and layer at a series of global thresholds.

    The first threshold is 0: the checkpoint as it is. The others are those nearest to 1%, 2% .. 99%
    that split no bin of the histograms. Exactly the weights with |w| < threshold are pruned, so
    ``prune`` with the same number of zeros prunes the same weights. Coarse types have few such
    thresholds.

    Attributes:
        thresholds: increasing.
        zeros: of all prunable weights.
        norm_kept: share of their squared norm that stays.
        cells: in file order.
    """

    thresholds: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    norm_kept: tuple[float, ...] = ()
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupStats:
    """Sums over the tensors of a role, component or layer."""

    tensors: int
    weights: int
    prunable_weights: int
    nbytes: int
    zeros: int
    near_zero: dict[str, int]
    std: float
    largest: float
    norm_squared: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result of ``prunectl analyze``.

    Attributes:
        source: the checkpoint.
        tensors: in file order.
        thresholds: the OMP table. patterns: one entry per N:M measured.
        roles: by role. components: prunable ones by component (``self_attn.q_proj``).
        layers: by 'stack.layer', in order.
        octaves: binary exponent -> prunable weights; zeros are counted in ``prunable_zeros``.
        magnitudes: finer histograms of |w|, by role, component and layer.
        cuts: zeros of each component and layer at global thresholds, in steps of 1%.
        predicted_bytes: ``dense``, ``bitmask@0.5``, ``nm@2:4`` -> bytes of all tensors stored so.
        warnings: sentences on Inf, NaN, roles from header rules only.
        advice: one sentence on what to try next.
        from_cache: whether cached measurements replaced the pass over the weights.
        seconds: wall time.
    """

    source: SourceFacts
    tensors: tuple[TensorStats, ...]
    thresholds: tuple[Threshold, ...]
    patterns: tuple[PatternSummary, ...]
    roles: dict[str, GroupStats]
    components: dict[str, GroupStats]
    layers: dict[str, GroupStats]
    octaves: dict[int, int]
    prunable_zeros: int
    predicted_bytes: dict[str, int]
    warnings: tuple[str, ...]
    advice: str
    magnitudes: Magnitudes = Magnitudes()
    cuts: Cuts = Cuts()
    from_cache: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The analysis as JSON values; NaN and Inf, which JSON lacks, become strings."""
        from prunectl.to_json import to_json

        return {"schema": "prunectl.analysis/1", **to_json(self)}


def layer_label(tensor: TensorStats | TensorRole) -> str:
    """``stack.layer`` as numbered in the model's module tree, for example ``model.layers.3``."""
    return f"{tensor.stack}.{tensor.layer}" if tensor.stack else str(tensor.layer)
