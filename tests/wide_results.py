"""Results for the screens whose tables are wider than a terminal: long labels, wide numbers."""

from __future__ import annotations

from prunectl.benchmarking.compare import Change, Comparison
from prunectl.benchmarking.limits import Rates
from prunectl.benchmarking.loading import LoadCost
from prunectl.benchmarking.machine import Machine
from prunectl.benchmarking.result import BenchResult, KernelRow, MeasuredRun, Side
from prunectl.benchmarking.timing import Ratio, Summary
from prunectl.benchmarking.workloads import Workload
from prunectl.benchmarking.zeros import Zeros
from prunectl.measure.model_stats import ModelStats
from prunectl.studies.compare.result import Overlap
from prunectl.studies.lottery.result import LotteryResult, Round, Scored
from prunectl.studies.sweep.result import Curve, CurvePoint, Essential, SweepResult, SweptModel
from prunectl.studies.trace.result import Series, Trace, TracePoint

LABEL = "some-organisation/a-model-with-a-very-long-name-v2-instruct"
SPARSITIES = ("0.2", "0.4", "0.6", "0.999999")


def trace() -> Trace:
    """Three checkpoints late in a training, with four sparsities and two patterns."""
    names = (*(f"lost at {s}" for s in SPARSITIES), "lost by 2:4", "lost by 16:32")
    near = {"0.001": 1_000, "0.01*std": 123_456_789, "0.01*own std": 5}
    stats = ModelStats(
        1_000_000_000, 3, 0, 1.25e-05, 1.0, near, {"0.5": 1.25e-05},
        dict.fromkeys(SPARSITIES, 0.9), {"2:4": 0.9, "16:32": 0.9},
    )  # fmt: skip
    points = tuple(TracePoint(LABEL, LABEL, None, 1_000_000 + i, stats) for i in range(3))
    series = tuple(
        Series(name, (0.12345,) * 3, None, None) for name in ("near zero 0.01*std", *names)
    )
    return Trace(points, True, 1, 1_000_000_000, series, (), "prunectl trace", 1.0)


def lottery() -> LotteryResult:
    """Scores of five digits before the point, a negative gain, and a training that failed."""
    good = Scored(12345.6789, 12333.4444, 12355.5555, {"0": 12345.6789}, 1.0)
    bad = Scored(None, None, None, {"0": None}, 1.0, f"the loss of {LABEL} is NaN at step 12345")
    overlaps = {"0": Overlap.of_tensor(100, 20, 20, 15)}
    rounds = (
        Round(1, 0.2, good, good, -1234.5678, -2345.6789, 1234.5678, overlaps, {}),
        Round(2, 0.36, good, bad, None, None, None, overlaps, {}),
    )
    return LotteryResult(
        LABEL, None, 100, "perplexity", "windows", False, 50, {}, {"seeds": [0]}, {}, good, None,
        rounds, (0.2, 0.36), 2, "No difference can be shown.", "prunectl lottery", 3.0,
    )  # fmt: skip


def sweep() -> SweepResult:
    """Perplexities that went through the roof."""
    points = tuple(
        CurvePoint(s, s, 0.7 * s, 1234567.89, 1234567.11, 1234568.22, 98765.43, 98765.11, 98766.22,
                   3725.0, {})
        for s in (0.0, 0.123456, 0.5)
    )  # fmt: skip
    essential = Essential(None, None, None, "failed", None, "Nothing is free.")
    curve = Curve(
        f"{LABEL}, unstructured", LABEL, "unstructured", "magnitude", 1e6, points, essential, None,
        None,
    )  # fmt: skip
    return SweepResult(
        "perplexity", "windows", False, (SweptModel(LABEL, None, 1, 1, 24, {}, "fp32"),), (curve,),
        {"epsilon": 0.01, "epsilon_mode": "relative"}, {"device": "cpu", "name": "x"},
        "prunectl sweep", 1.0,
    )  # fmt: skip


def bench() -> BenchResult:
    """Four sides with long labels, two phases, and a kernel of each kind."""
    labels = [f"{LABEL}-{i}" for i in range(4)]
    against = Ratio(12.34, 11.11, 13.45)
    sides = tuple(
        Side(label, label, "dense", "", "X", "bf16", 10**9, 2 * 10**9, 10**9, Zeros(10, 100, 50, 0),
             0, LoadCost(725.0, 20 * 10**9, 0))
        for label in labels
    )  # fmt: skip
    seconds = Summary(123.4, 123.3, 123.5, 0.123, 20)
    runs = tuple(
        MeasuredRun(workload, phase, label, seconds, (123.4,), 1, 10**9, 1, 1, 10.0, None,
            against if label != labels[0] else None)
        for workload in (Workload(128, 32768, 16384), Workload(1, 128, 16))
        for phase in ("prefill", "decode")
        for label in labels
    )  # fmt: skip
    kernels = (
        KernelRow((152_064, 11_008), 12_000, 0.55, 16_384, "cusparselt", 0.1234, 0.0123, against,
                  True, 0.0),
        KernelRow((11_008, 4_096), 12_000, 0.0, 1, "", 0.0, 0.0, None, False, 0.0,
                  f"no kernel takes {LABEL}"),
    )  # fmt: skip
    machine = Machine("cuda", "NVIDIA", 1, 1, "", "", "Linux", "3.12", {})
    rates = Rates(1e12, 1e15, 1, 1)
    return BenchResult(
        "causal", machine, rates, sides, runs, kernels, (), (), "random tokens", 0, "none", 1.0
    )


def comparison() -> Comparison:
    """An earlier benchmark of the same."""
    change = Change("128 x 32768+16384", "prefill", LABEL, Ratio(0.98, 0.95, 1.02))
    return Comparison((change,), 0, ())
