"""Where 2:4 kernels are used: each weight shape is timed at each batch, and a model built of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.nn import functional

from prunectl.benchmarking.limits import weight_bytes
from prunectl.benchmarking.models import Live
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
    Interval,
    Pass,
    paired_ratio,
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
"""Bytes that are written between products: more than the cache of any card holds."""
MOST_BATCHES = 8

TOLERANCE = {"float16": 0.01, "bfloat16": 0.05, "float32": 0.001}
"""Relative error (norm of the difference over norm) of outputs that is rounding and no mistake:
both kernels add in their own order."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Weights that are alike: shape, number of rows that a kernel takes; and their names."""

    shape: tuple[int, int]
    rows: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShapeTimes:
    """The rows of one shape, and the backend that its weights are converted with; None: none."""

    rows: tuple[KernelRow, ...]
    backend: Backend | None

    @property
    def choices(self) -> dict[int, bool]:
        return {row.batch: row.chosen for row in self.rows}


def shapes_of(matrices: Iterable[Matrix], backends: Sequence[Backend]) -> list[Shape]:
    """Weights of linear layers that a backend takes, by shape and number of rows in 2:4."""
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
    """The numbers of input rows that layers see in some calls; at most eight, spread out."""
    seen: set[int] = set()

    def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:  # none where a model names the argument
            seen.add(inputs[0].numel() // inputs[0].shape[-1])

    hooks = [model.get_submodule(name).register_forward_pre_hook(look) for name in names]
    try:
        for run in runs:
            try:
                run()
            except RuntimeError as error:  # the workload itself will be reported
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
    """Time dense and sparse products of one weight at several batches, with the best backend.

    Args:
        weight: of ``shape.shape``, on the device.
        always: choose the sparse kernel everywhere, also where it loses.
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
            # A build without the library, a card without sparse tensor cores, no memory.
            errors.append(f"{backend.name}: {str(error).strip().splitlines()[0][:120]}")
            continue
        if bad := [line for line in lines if not line.relative_error <= _tolerance(weight)]:
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
    """Largest absolute difference, and norm of the difference over the norm; in float32."""
    expected, found = expected.float(), found.float()
    difference = expected - found
    norm = float(expected.norm())
    relative = float(difference.norm()) / norm if norm else float(difference.norm())
    return float(difference.abs().max()), relative


def tolerance_of(dtype: torch.dtype) -> float:
    """The relative error that outputs in a dtype may differ by."""
    return TOLERANCE.get(str(dtype).removeprefix("torch."), 0.05)


def _tolerance(weight: torch.Tensor) -> float:
    return tolerance_of(weight.dtype)


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

    # In a model, a weight comes from memory each time; the same one again and again would not.
    # The write keeps the device busy, too, until the product has been launched.
    is_cuda = weight.device.type == "cuda"
    scrub = torch.empty(_SCRUB if is_cuda else 0, dtype=torch.int8, device=weight.device)

    def timed(product: Callable[[], torch.Tensor]) -> Pass:
        def run(clock: Clock) -> Mapping[str, Any]:
            scrub.zero_()
            begin = clock.mark()
            product()
            return {"product": (begin, clock.mark(), 1)}

        return run

    passes = {
        "dense": timed(lambda: functional.linear(inputs, weight)),
        "sparse": timed(lambda: split(inputs, None)),
    }
    samples = time_passes(passes, clock, rounds=ROUNDS, seconds=SECONDS).samples
    dense, sparse = samples["dense"]["product"], samples["sparse"]["product"]
    against: Interval = paired_ratio(dense, sparse, seed)
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
    bench: Bench, live: Live, workloads: Sequence[Workload], kernels: Sequence[Backend]
) -> tuple[Live | None, tuple[KernelRow, ...]]:
    """A side that shares all tensors with another one, and runs 2:4 weights sparsely.

    Args:
        live: with dense kernels.
        kernels: the backends to choose from, for each weight shape.

    Returns:
        The new side, or None where no weight was converted; and the micro-benchmark.
    """
    always = bench.settings.kernels == "sparse"
    matrices = {matrix.name: matrix for matrix in block_matrices(live.model)}
    shapes = shapes_of(matrices.values(), kernels)
    if not shapes:
        return None, ()
    names = [shape.names[0] for shape in shapes]
    batches = observed_batches(live.model, names, _short_runs(bench, live, workloads))
    rows: list[KernelRow] = []
    replacements: dict[str, nn.Module] = {}
    for shape in shapes:
        found: ShapeTimes = measure_shape(
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
    tensors = (*live.model.parameters(), *live.model.buffers())
    model = deepcopy(live.model, {id(tensor): tensor for tensor in tensors})
    replace_linears(model, replacements)
    side = replace(
        live.side,
        label=f"{live.side.label}, sparse kernels",
        kernels=bench.settings.kernels,
        weight_bytes=weight_bytes(model),
        converted=len(replacements),
        loading=None,
        disk_bytes=None,
    )
    return Live(side, model, origin=live.side.label), tuple(rows)


def agreement(bench: Bench, live: Live, origin: Live, workloads: Sequence[Workload]) -> Agreement:
    """Outputs of a sparse side beside those of the side that it was made from, at their worst.

    Every workload is compared, and a single token of each batch as in decoding: layers choose
    their kernel by the number of input rows, so that one workload may not meet any sparse one.
    What does not fit the memory is left to the timing to report.
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
            found = relative_error(expected, outputs_of(live.model, kind, inputs))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        if not found[1] <= worst[1]:  # NaN is the worst of all
            worst = found
        if math.isnan(worst[1]):
            break
    tolerance = tolerance_of(next(origin.model.parameters()).dtype)
    return Agreement(live.side.label, origin.side.label, *worst, tolerance)


def _short_runs(bench: Bench, live: Live, workloads: Sequence[Workload]) -> Any:
    """Each workload with at most two new tokens: what its layers see, and no more."""
    for workload in workloads:
        short = replace(workload, new_tokens=min(2, workload.new_tokens))
        one = make_pass(live.model, bench.model_kind.kind, short, bench.inputs(workload))
        yield lambda one=one: one(bench.clock)
