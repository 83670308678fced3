"""What ``bench`` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prunectl.benchmarking.limits import Rates
from prunectl.benchmarking.machine import Machine
from prunectl.benchmarking.timing import (
    FASTER,
    SLOWER,
    UNDECIDED,
    Ratio,
    Summary,
)
from prunectl.benchmarking.workloads import Workload
from prunectl.benchmarking.zeros import Zeros
from prunectl.to_json import to_json

SCHEMA = "prunectl.bench/1"
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class LoadCost:
    """The cost of loading, without imports and the start of the device.

    Attributes:
        seconds: from the call to a model whose every weight has been read.
        peak_bytes: peak host memory of the process. before_bytes: its memory before loading.
    """

    seconds: float
    peak_bytes: int
    before_bytes: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the models that are compared: a model with its kernels.

    Attributes:
        label: its name in tables and verdicts. model: as the user named it.
        kernels: ``dense``, ``sparse``, ``compressed``, or ``auto`` (whichever won for a shape).
        made: how its weights were changed in memory, or ''.
        architecture: name of the transformers class. dtype: of most of its weights.
        parameters: their number. weight_bytes: in memory, on the device.
        disk_bytes: of its weight files; None if it has none.
        zeros: in its prunable weights; without files, in the matrices of its blocks.
        converted: matrices with a sparse or compressed form in memory.
        loading: None where it was not measured.
        forms: in compressed execution, matrices by the form that they are held in.
        kept_dense: and why others stayed dense, by name.
    """

    label: str
    model: str
    kernels: str
    made: str
    architecture: str
    dtype: str
    parameters: int
    weight_bytes: int
    disk_bytes: int | None
    zeros: Zeros
    converted: int
    loading: LoadCost | None
    forms: Mapping[str, int] = field(default_factory=dict)
    kept_dense: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One phase of one workload on one side.

    Attributes:
        seconds: of one step: a prompt, one further token of each sequence, or a forward pass.
        samples: seconds, one for each round; sample i of all sides is from the same round.
        repeats: passes in one sample.
        units: tokens, sequences or images in one step, for ``rate``.
        nbytes, flops: the least that a step moves and computes. limit: seconds for them.
        peak_memory: bytes on the CUDA device: the side's weights and what the pass needs; or None.
        against: the baseline's seconds over these; None for the baseline itself.
    """

    workload: Workload
    phase: str
    side: str
    seconds: Summary
    samples: tuple[float, ...]
    repeats: int
    units: int
    nbytes: int
    flops: int
    limit: float
    peak_memory: int | None
    against: Ratio | None

    @property
    def rate(self) -> float:
        """Tokens, sequences or images per second."""
        return self.units / self.seconds.median if self.seconds.median else 0.0

    @property
    def of_limit(self) -> float:
        """1.0 is as fast as the measured bandwidth and matmul rate allow."""
        return self.limit / self.seconds.median if self.seconds.median else 0.0


@dataclass(frozen=True, slots=True)
class KernelRow:
    """The times of a dense and a sparse product of one weight shape, with ``batch`` rows of inputs.

    ``matrices`` counts the weights of that shape. ``backend`` is '' where no kernel takes the
    shape; ``error`` then says why. ``split`` is the share of rows that are sparse.
    """

    shape: tuple[int, int]
    matrices: int
    split: float
    batch: int
    backend: str
    dense_seconds: float
    sparse_seconds: float
    against: Ratio | None
    chosen: bool
    relative_error: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Outputs of sparse kernels against those of dense ones, with equal weights and inputs."""

    side: str
    baseline: str
    max_error: float
    relative_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        # False for NaN.
        return self.relative_error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was asked for and not measured, with the reason."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The whole outcome.

    Attributes:
        kind: of the model. machine, rates: the device and its measured rates.
        sides: the baseline first. runs: by workload, phase and side.
        kernels: the micro-benchmark of sparse kernels; empty without them.
        inputs: the origin of the tokens or pixels. seed: of everything random.
        seconds: wall time. notes: sentences.
    """

    kind: str
    machine: Machine
    rates: Rates
    sides: tuple[Side, ...]
    runs: tuple[MeasuredRun, ...]
    kernels: tuple[KernelRow, ...]
    agreements: tuple[Agreement, ...]
    skipped: tuple[Skipped, ...]
    inputs: str
    seed: int
    compile: str
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> Side:
        return self.sides[0]

    @property
    def ok(self) -> bool:
        """Whether sparse and dense kernels agree wherever both were run."""
        return all(one.ok for one in self.agreements)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the benchmark early."""
        return any(one.why == INTERRUPTED for one in self.skipped)

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases in the order in which they run."""
        return tuple(dict.fromkeys(run.phase for run in self.runs))

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A sentence for each side but the baseline, and one on zeros on the CPU."""
        sentences = [
            f"{side.label}: {', '.join(self._verdict(side))}; against {self.baseline.label}."
            for side in self.sides[1:]
        ]
        is_sparse = any(side.zeros.sparsity >= 0.01 for side in self.sides)
        measured = {run.against.verdict for run in self.runs if run.against}
        is_dense = all(side.kernels == "dense" for side in self.sides)
        if is_sparse and is_dense and self.machine.device == "cpu" and FASTER not in measured:
            sentences.append(
                "Zeros bring no speed-up on the CPU in dense execution, which computes with them "
                "like with any number; --execution auto leaves them out."
            )
        return tuple(sentences)

    def _verdict(self, side: Side) -> list[str]:
        parts = []
        for phase in self.phases:
            found = [
                run.against
                for run in self.runs
                if run.side == side.label and run.phase == phase and run.against
            ]
            if found:
                parts.append(phrase(phase, found))
        saved = 1 - side.weight_bytes / max(self.baseline.weight_bytes, 1)
        if abs(saved) >= 0.005:
            parts.append(f"{abs(saved):.0%} {'less' if saved > 0 else 'more'} weight memory")
        return parts or ["nothing measured"]

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json`` and of ``-o``."""
        runs = [
            {
                **to_json(run),
                "workload": run.workload.name,
                "batch": run.workload.batch,
                "tokens": run.workload.tokens,
                "new_tokens": run.workload.new_tokens,
                "rate": run.rate,
                "of_limit": run.of_limit,
                "verdict": run.against.verdict if run.against else None,
            }
            for run in self.runs
        ]
        agreements = [{**asdict(one), "ok": one.ok} for one in self.agreements]
        return {
            "schema": SCHEMA,
            **to_json(self),
            "runs": runs,
            "agreements": to_json(agreements),
            "verdicts": list(self.verdicts),
            "ok": self.ok,
            "interrupted": self.interrupted,
        }


def phrase(phase: str, intervals: Sequence[Ratio]) -> str:
    """The verdict over all workloads of a phase: ``faster at prefill (1.31x)``."""
    verdicts = {one.verdict for one in intervals}
    ratios = sorted(one.ratio for one in intervals)
    span = f"{ratios[0]:.2f}x"
    if f"{ratios[-1]:.2f}x" != span:
        span = f"{ratios[0]:.2f}x to {ratios[-1]:.2f}x"
    if verdicts == {UNDECIDED}:
        low, high = min(one.low for one in intervals), max(one.high for one in intervals)
        return f"no difference found at {phase} ({span}, could be {low:.2f}x to {high:.2f}x)"
    if len(verdicts) == 1:
        return f"{verdicts.pop()} at {phase} ({span})"
    counts = [
        f"{word} in {sum(one.verdict == word for one in intervals)}"
        for word in (FASTER, SLOWER)
        if word in verdicts
    ]
    return f"{' and '.join(counts)} of {len(intervals)} workloads at {phase} ({span})"
