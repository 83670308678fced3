"""2:4 kernels: timed for each weight shape and batch, and used where they win.

The micro-benchmark decides; a side is then built whose weights run on the kernels, and its outputs
are compared with those of the side that it was made from.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.nn import functional

from prunectl.benchmarking.limits import weight_bytes
from prunectl.benchmarking.models import LoadedSide
from prunectl.benchmarking.result import Agreement, KernelRow
from prunectl.benchmarking.running import Bench, make_pass, outputs_of
from prunectl.benchmarking.sparse import (
    Backend,
    ChoosingLinear,
    SplitWeight,
    replace_linears,
    sparse_rows,
)
from prunectl.benchmarking.timing import (
    FASTER,
    Clock,
    paired_ratio,
    pass_of,
    summarize,
    time_passes,
)
from prunectl.benchmarking.workloads import Workload
from prunectl.benchmarking.zeros import block_matrices
from prunectl.device import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

    from prunectl.benchmarking.zeros import Matrix


ROUNDS, SECONDS = 15, 1.0
_SCRUB = 1 << 28
"""Bytes that are written between products: more than the cache of any card."""
MOST_BATCHES = 8

TOLERANCE = {"float16": 0.01, "bfloat16": 0.05, "float32": 0.001}
"""Relative error of outputs (norm of the difference over norm) that rounding explains, since each
kernel adds in its own order."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The names of weights with equal shapes and equal numbers of rows that a kernel takes."""

    shape: tuple[int, int]
    rows: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShapeTimes:
    """The times of one shape, and the backend that converts its weights; None if none does."""

    rows: tuple[KernelRow, ...]
    backend: Backend | None

    @property
    def choices(self) -> dict[int, bool]:
        return {row.batch: row.chosen for row in self.rows}


def shapes_of(matrices: Iterable[Matrix], backends: Sequence[Backend]) -> list[Shape]:
    """The weights of linear layers that a backend takes, by shape and number of rows in 2:4."""
    import torch

    groups: dict[tuple[tuple[int, int], int], list[str]] = defaultdict(list)
    for matrix in matrices:
        if isinstance(matrix.module, torch.nn.Linear):
            rows = max((len(sparse_rows(matrix.weight, one)) for one in backends), default=0)
            if rows:
                out, width = matrix.weight.shape
                groups[(out, width), rows].append(matrix.name)
    return [Shape(shape, rows, tuple(names)) for (shape, rows), names in groups.items()]


def observed_batches(
    model: torch.nn.Module, names: Sequence[str], runs: Iterable[Callable[[], Any]]
) -> tuple[int, ...]:
    """The numbers of input rows that layers see in some calls: at most eight, evenly chosen."""
    seen: set[int] = set()

    def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:  # none if the model passes it by name
            seen.add(inputs[0].numel() // inputs[0].shape[-1])

    hooks = [model.get_submodule(name).register_forward_pre_hook(look) for name in names]
    try:
        for run in runs:
            try:
                run()
            except RuntimeError as error:  # the timing reports the workload
                if not is_out_of_memory(error):
                    raise
    finally:
        for hook in hooks:
            hook.remove()
    found = sorted(seen - {0})
    if len(found) <= MOST_BATCHES:
        return tuple(found)
    step = (len(found) - 1) / (MOST_BATCHES - 1)
    return tuple(found[round(step * number)] for number in range(MOST_BATCHES))


def measure_shape(
    shape: Shape,
    weight: torch.Tensor,
    batches: Sequence[int],
    backends: Sequence[Backend],
    clock: Clock,
    *,
    always: bool,
    seed: int,
) -> ShapeTimes:
    """Time dense and sparse products of one weight at several batches, and choose a backend.

    Args:
        weight: of ``shape.shape``, on the device.
        always: choose the sparse kernel even where it loses.
    """
    found: list[tuple[float, ShapeTimes]] = []
    errors: list[str] = []
    for backend in backends:
        rows = sparse_rows(weight, backend)
        if not len(rows):
            continue
        try:
            split = SplitWeight(weight, rows, backend.convert)
            lines = [
                _row(shape, weight, split, batch, backend.name, clock, always, seed)
                for batch in batches
            ]
        except (RuntimeError, NotImplementedError) as error:
            # torch was built without the library, the card has no sparse cores, or no memory.
            errors.append(f"{backend.name}: {str(error).strip().splitlines()[0][:120]}")
            continue
        if bad := [line for line in lines if not line.relative_error <= tolerance_of(weight.dtype)]:
            errors.append(
                f"{backend.name}: outputs differ by {bad[0].relative_error:.2g} at {bad[0].batch}"
            )
            continue
        speed = sum(math.log(line.dense_seconds / line.sparse_seconds) for line in lines)
        found.append((speed, ShapeTimes(tuple(lines), backend)))
    if found:
        return max(found, key=lambda one: one[0])[1]
    why = "; ".join(errors) or "no kernel takes this shape"
    empty = KernelRow(
        shape.shape, len(shape.names), shape.rows / shape.shape[0], 0, "", 0.0, 0.0, None,
        False, 0.0, why,
    )  # fmt: skip
    return ShapeTimes((empty,), None)


def relative_error(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """The largest absolute difference, and the norm of the difference over the norm, in float32."""
    expected, found = expected.float(), found.float()
    difference = expected - found
    norm = float(expected.norm())
    relative = float(difference.norm()) / norm if norm else float(difference.norm())
    return float(difference.abs().max()), relative


def tolerance_of(dtype: torch.dtype) -> float:
    """The relative error that rounding explains in a dtype."""
    return TOLERANCE.get(str(dtype).removeprefix("torch."), 0.05)


def _row(
    shape: Shape,
    weight: torch.Tensor,
    split: SplitWeight,
    batch: int,
    backend: str,
    clock: Clock,
    always: bool,
    seed: int,
) -> KernelRow:
    import torch

    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn((batch, shape.shape[1]), generator=generator)
    inputs = inputs.to(weight.device, weight.dtype)
    _, error = relative_error(functional.linear(inputs, weight), split(inputs, None))

    # In a model, weights come from memory; a repeated product would find its weight in the cache.
    # The write also keeps the device busy until the product is launched.
    is_cuda = weight.device.type == "cuda"
    scrub = torch.empty(_SCRUB if is_cuda else 0, dtype=torch.int8, device=weight.device)

    passes = {
        "dense": pass_of(lambda: functional.linear(inputs, weight), scrub.zero_),
        "sparse": pass_of(lambda: split(inputs, None), scrub.zero_),
    }
    samples = time_passes(passes, clock, rounds=ROUNDS, seconds=SECONDS).samples
    dense, sparse = samples["dense"]["work"], samples["sparse"]["work"]
    against = paired_ratio(dense, sparse, seed)
    return KernelRow(
        shape=shape.shape,
        matrices=len(shape.names),
        split=shape.rows / shape.shape[0],
        batch=batch,
        backend=backend,
        dense_seconds=summarize(dense).median,
        sparse_seconds=summarize(sparse).median,
        against=against,
        chosen=always or against.verdict == FASTER,
        relative_error=error,
    )


def sparse_side(
    bench: Bench, loaded: LoadedSide, workloads: Sequence[Workload], kernels: Sequence[Backend]
) -> tuple[LoadedSide | None, tuple[KernelRow, ...]]:
    """Make a side that shares all tensors with another one, and runs 2:4 weights on sparse kernels.

    Args:
        kernels: the backends to choose from for each weight shape.

    Returns:
        the new side, or None where no weight was converted; and the micro-benchmark.
    """
    always = bench.settings.kernels == "sparse"
    matrices = {matrix.name: matrix for matrix in block_matrices(loaded.model)}
    shapes = shapes_of(matrices.values(), kernels)
    if not shapes:
        return None, ()
    names = [shape.names[0] for shape in shapes]
    batches = observed_batches(loaded.model, names, _short_runs(bench, loaded, workloads))
    rows: list[KernelRow] = []
    replacements: dict[str, nn.Module] = {}
    for shape in shapes:
        found = measure_shape(
            shape, matrices[shape.names[0]].weight, batches, kernels, bench.clock,
            always=always, seed=bench.settings.seed,
        )  # fmt: skip
        rows += found.rows
        if found.backend is None or not any(found.choices.values()):
            continue
        for name in shape.names:
            linear: Any = matrices[name].module
            split = SplitWeight(
                linear.weight, sparse_rows(linear.weight, found.backend), found.backend.convert
            )
            replacements[name] = ChoosingLinear(linear, split, {} if always else found.choices)
    if not replacements:
        return None, tuple(rows)
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    model = deepcopy(loaded.model, {id(tensor): tensor for tensor in tensors})
    replace_linears(model, replacements)
    side = replace(
        loaded.side,
        label=f"{loaded.side.label}, sparse kernels",
        kernels=bench.settings.kernels,
        weight_bytes=weight_bytes(model),
        converted=len(replacements),
        loading=None,
        disk_bytes=None,
    )
    return LoadedSide(side, model), tuple(rows)


def agreement(
    bench: Bench, loaded: LoadedSide, origin: LoadedSide, workloads: Sequence[Workload]
) -> Agreement:
    """The worst difference between a sparse side's outputs and those of the side it was made from.

    Every workload is compared, and a single token of each batch as in decoding, since layers choose
    their kernel by the number of input rows. Workloads that do not fit the memory are skipped here
    and reported by the timing.
    """
    kind = bench.model_kind.kind
    sizes = list(workloads)
    if kind.generates:
        sizes += [replace(one, tokens=1) for one in workloads]
    worst = (0.0, 0.0)
    for size in dict.fromkeys(replace(one, new_tokens=0) for one in sizes):
        try:
            inputs = bench.inputs(size)
            expected = outputs_of(origin.model, kind, inputs)
            found = relative_error(expected, outputs_of(loaded.model, kind, inputs))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        if not found[1] <= worst[1]:  # also if it is NaN
            worst = found
        if math.isnan(worst[1]):
            break
    tolerance = tolerance_of(next(origin.model.parameters()).dtype)
    return Agreement(loaded.side.label, origin.side.label, *worst, tolerance)


def _short_runs(bench: Bench, loaded: LoadedSide, workloads: Sequence[Workload]) -> Any:
    """Each workload with at most two new tokens, which suffice to observe its layers."""
    for workload in workloads:
        short = replace(workload, new_tokens=min(2, workload.new_tokens))
        one = make_pass(loaded.model, bench.model_kind.kind, short, bench.inputs(workload))
        yield lambda one=one: one(bench.clock)
