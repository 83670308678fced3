"""The side whose 2:4 weights run on torch's sparse kernels, and whether it says what it should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prunectl.benchmarking.kernels import (
    ShapeTimes,
    measure_shape,
    observed_batches,
    relative_error,
    shapes_of,
    tolerance_of,
)
from prunectl.benchmarking.limits import weight_bytes
from prunectl.benchmarking.passes import make_pass, outputs_of
from prunectl.benchmarking.result import Agreement, KernelRow
from prunectl.benchmarking.running import Bench
from prunectl.benchmarking.sides import Live
from prunectl.benchmarking.sparse import (
    Backend,
    ChoosingLinear,
    SplitWeight,
    replace_linears,
    sparse_rows,
)
from prunectl.benchmarking.workloads import Workload
from prunectl.benchmarking.zeros import block_matrices
from prunectl.device import is_out_of_memory

if TYPE_CHECKING:
    from torch import nn


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
