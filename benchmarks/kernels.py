"""Speed of the magnitude kernels on one thread: blocks of 1 MiB, warm, best of many.

    python benchmarks/kernels.py

Prints GB/s of codes read, and the seconds of each first call (compiling, or loading from numba's
cache). In-place kernels run again on what they left, which costs the same: none of them branches on
the data, but for ties at the threshold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from prunectl.magnitude import masks
from prunectl.magnitude.codes import CodeFormat, Codes, code_format
from prunectl.magnitude.measure import PatternMeasure, TensorMeasure
from prunectl.magnitude.refine import Refiner
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES

BLOCK = 2**20
ROW = 4096
REPEATS = 50


def normal_codes(format: CodeFormat) -> Codes:
    """One block of random-normal weights, std 0.02."""
    real = np.random.default_rng(0).standard_normal(BLOCK // format.uint.itemsize) * 0.02
    match format.dtype.name:
        case "F64":
            return real.view(np.uint64)
        case "F16":
            return real.astype(np.float16).view(np.uint16)
        case "BF16":
            return (real.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        case _:
            return real.astype(np.float32).view(np.uint32)


def jobs(format: CodeFormat) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and calls; each call works through one block."""
    source = normal_codes(format)
    output, fresh = source.copy(), source.copy()
    code = format.floor_code(0.0105)  # about 40% of the weights
    rows, columns = output.reshape(-1, ROW, 1), output.reshape(1, 512, -1)

    def row_cut() -> None:
        np.copyto(output, source)
        masks.cut_rows(rows, 0.4)

    measure = TensorMeasure(format.dtype)
    yield "measure", lambda: measure.update(source)
    if format.bits > 16:
        for n in (1, 19):
            width = 1 << (format.bits - 17)
            start = code // width * width
            refiner = Refiner(
                format.dtype, [(start + i * width, format.bits - 17) for i in range(n)]
            )
            yield f"refine {n} bins", lambda r=refiner: r.update(source)
    yield "cut, no ties", lambda: masks.cut(output, code, 0)
    yield "cut, some ties", lambda: masks.cut(fresh, code, 9)
    yield "cut, all ties", lambda: masks.cut(output, code, BLOCK)
    yield "copy and cut rows", row_cut
    yield "compare", lambda: masks.compare(source, output)
    for n, m in ((1, 2), (2, 4), (1, 4), (4, 8), (8, 16)):
        loss = PatternMeasure(format.dtype, NM(n, m))
        yield f"{n}:{m}", lambda n=n, m=m: masks.nm(rows, n, m)
        yield f"{n}:{m} along columns", lambda n=n, m=m: masks.nm(columns, n, m)
        yield f"{n}:{m} loss", lambda loss=loss: loss.update(source.reshape(-1, ROW, 1))
        yield f"{n}:{m} violations", lambda n=n, m=m: masks.nm_violations(rows, n, m)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """(GB/s of the best repeat, seconds of the first call)."""
    spans = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        spans.append(time.perf_counter() - begin)
    return BLOCK / min(spans) / 1e9, spans[0]


def main() -> None:
    results: dict[str, dict[str, tuple[float, float]]] = {}
    names = ("BF16", "F16", "F32", "F64")
    for name in names:
        for job, call in jobs(code_format(DTYPES[name])):
            results.setdefault(job, {})[name] = timed(call)
    table = Table("kernel", *(f"{DTYPES[n].label}, GB/s (first, s)" for n in names))
    for job, speeds in results.items():
        cells = (f"{s[0]:6.1f} ({s[1]:.2f})" if (s := speeds.get(n)) else "" for n in names)
        table.add_row(job, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
