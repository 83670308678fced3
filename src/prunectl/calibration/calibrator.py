"""Calibrated methods applied to a checkpoint's tensors, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from prunectl.calibration.capture import as_matrices
from prunectl.calibration.matrix import LEAST_DAMPING, Done, MatrixPruner, inside
from prunectl.calibration.pruner import Computed, Pruner, refuse_odd
from prunectl.calibration.store import CalibratedStore
from prunectl.calibration.targets import ByShare, Goal, TensorTarget, split
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.device import is_out_of_memory
from prunectl.events import Note, OnEvent
from prunectl.geometry import Ranges
from prunectl.methods.factor import SingularHessian
from prunectl.methods.spec import Needs
from prunectl.methods.table import needing
from prunectl.numbers import listed
from prunectl.plan.job import Job
from prunectl.transform.edits import Copy, Replace, Resolution
from prunectl.transform.row_blocks import merged

if TYPE_CHECKING:
    import torch

    from prunectl.calibration.pruner import Captured, Fit


@dataclass(frozen=True, slots=True)
class CalibratedFacts:
    """What calibration did to one tensor; means over the matrices of a stack.

    Attributes:
        survivors: ``kept`` bit for bit, or ``updated``.
        tokens: inputs seen, for the matrix that saw fewest.
        skipped: inputs left out because they held NaN or Inf, or overflowed.
        error: squared output error relative to the squared output, on the calibration's inputs,
            of the weights as stored; None where only the inputs' norms were gathered.
        error_before_refine: the error before the survivors were fitted; None without refinement.
        damping: of the matrix where it was raised most often, or else the largest. raised: how
            often it was raised tenfold there.
        dead_inputs: inputs that were zero in every sample.
        by_magnitude: matrices that no input reached, pruned by magnitude.
        pattern_rows: row ranges that follow the pattern, as in the manifest; None for all rows.
        movable_rows: row ranges whose kept weights a fit may change: those that were pruned, of
            matrices that inputs reached.
        steps: of fitting its block. block_error_before, block_error: of the block, on samples held
            out; None without that.
        scale_steps: of fitting scales to the logits. divergence_before, divergence: of the model's
            logits from the dense model's, on samples held out; None without that.
    """

    survivors: str
    tokens: int
    skipped: int
    error: float | None
    error_before_refine: float | None
    damping: float
    raised: int
    dead_inputs: int
    by_magnitude: int
    pattern_rows: list[tuple[int, int]] | None = None
    movable_rows: Sequence[tuple[int, int]] = ()
    steps: int = 0
    block_error_before: float | None = None
    block_error: float | None = None
    scale_steps: int = 0
    divergence_before: float | None = None
    divergence: float | None = None


class Calibrator(Pruner):
    """Prunes the tensors that the engine hands over.

    Args:
        store: takes the new values; None measures the errors and changes nothing.
        full: whether whole second moments are gathered.

    Attributes:
        facts: by name of each pruned tensor. zeros: in its new values.
    """

    def __init__(
        self,
        job: Job,
        targets: Mapping[str, TensorTarget],
        reader: TensorReader,
        store: CalibratedStore | None,
        on_event: OnEvent,
        *,
        full: bool,
    ) -> None:
        assert job.settings.calibration is not None
        self._job, self._targets, self._reader, self._store = job, targets, reader, store
        settings, damping = job.settings, job.settings.calibration.damping
        if damping is None and not settings.reconstruct:
            damping = LEAST_DAMPING
        self._pruner = MatrixPruner(settings.method, settings.refine, damping, full)
        self._stored = job.checkpoint.by_name
        self._on_event = on_event
        self.notes = CalibrationNotes(on_event, by_mask=job.masks is not None)
        self._is_full = False
        self.facts: dict[str, CalibratedFacts] = {}
        self.zeros: dict[str, int] = {}
        # Of a block that is reconstructed before it is stored.
        self._new: dict[str, torch.Tensor] = {}

    def in_turn(self, name: str) -> bool:
        """Whether a tensor's share of a budget depends on the tensors before it."""
        return isinstance(self._targets[name], ByShare)

    def compute(self, name: str, measured: Sequence[Captured]) -> Computed:
        """Prune one tensor: its new values, and facts about it, its matrices and their inputs."""
        source = read_tensor(self._reader, self._stored[name])
        refuse_odd(name, source)
        target, axis = self._targets[name], self._job.planned[name].input_axis
        new = source.clone()
        parts = as_matrices(source, axis)
        places = as_matrices(new, axis)
        wanted = split(target, parts, axis)
        done = []
        for place, part, one, goal in zip(places, parts, measured, wanted, strict=True):
            found, values = self._one(part, one, goal)
            done.append(found)
            place.copy_(values)
            if isinstance(target, ByShare):
                target.shares.reached(int((place == 0).sum()))
        facts = _summed(done, [one.gram for one in measured], len(parts[0]))
        missed = [one.missed for one in measured]
        zeros = int((new == 0).sum())
        return Computed(None if self._store is None else new, (facts, done, missed, zeros))

    def take(self, name: str, computed: Computed) -> None:
        """Record the facts about a tensor and store its new values, or keep them for its block."""
        facts, done, missed, self.zeros[name] = computed.facts
        self.facts[name] = facts
        if self._store is not None and computed.values is not None:
            self.notes.tensor(name, facts, missed, done)
            if self._job.settings.reconstruct and facts.movable_rows:
                self._new[name] = computed.values
            else:
                self._store.put(name, computed.values, asdict(facts))

    def movable(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The new values of a tensor, and which of its kept weights a fit may change."""
        if name not in self._new:
            return None
        values = self._new[name]
        moves = values != 0
        parts = as_matrices(moves, self._job.planned[name].input_axis)
        movable = inside(self.facts[name].movable_rows, sum(map(len, parts)), moves.device)
        for part, rows in zip(parts, movable.split([len(part) for part in parts]), strict=True):
            part &= rows
        return (values, moves) if bool(moves.any()) else None

    def reconstructed(self, name: str, values: torch.Tensor, fit: Fit) -> None:
        """Replace a tensor's values by those that fitting its block gave."""
        import torch

        values = values.cpu()
        facts = replace(
            self.facts[name], steps=fit.steps, block_error_before=fit.before, block_error=fit.after
        )
        if not torch.equal(values, self._new[name]):
            facts = replace(facts, survivors="updated")
        self._new[name], self.facts[name] = values, facts

    def finish(self, block: str) -> None:
        """Store the new values of a block's tensors."""
        assert self._store is not None
        for name, values in self._new.items():
            self._store.put(name, values, asdict(self.facts[name]))
        self._new.clear()
        self._store.finish(block)

    def passed(self, values: Mapping[str, torch.Tensor]) -> None:
        """Count the zeros of tensors that an earlier run pruned towards the budget."""
        for name, value in values.items():
            if isinstance(target := self._targets[name], ByShare):
                target.shares.of_next(value.numel())
                target.shares.reached(int((value == 0).sum()))

    def _one(self, part: torch.Tensor, one: Captured, goal: Goal) -> tuple[Done, torch.Tensor]:
        import torch

        device = one.matrix.weight.device
        try:
            try:
                return self._pruner.prune(part.to(device), one.gram, goal)
            except RuntimeError as error:
                if device.type == "cpu" or not is_out_of_memory(error):
                    raise
            self._tell_full(one)
            if one.gram is not None:
                one.gram.move(torch.device("cpu"))
            return self._pruner.prune(part, one.gram, goal)
        except SingularHessian as error:
            error.message = f"{one.matrix.label}: {error.message}"
            error.args = (error.message,)
            error.hint += f", or use --method {listed(needing(Needs.NORMS))}"
            raise

    def _tell_full(self, one: Captured) -> None:
        """Warn once that a matrix does not fit the device; smaller ones may."""
        if not self._is_full:
            self._is_full = True
            text = "The device is full: matrices that do not fit are pruned on the CPU"
            self._on_event(Note(f"{text}, {one.matrix.label} first.", warning=True))


def _summed(done: Sequence[Done], grams: Sequence[Any], out: int) -> CalibratedFacts:
    errors = [one.error for one in done if one.error is not None]
    before = [one.error_before_refine for one in done if one.error_before_refine is not None]
    raised, damping = max(((one.raised, one.damping) for one in done), default=(0, 0.0))
    pattern = _ranges([one.rows for one in done], out)
    return CalibratedFacts(
        survivors="updated" if any(one.survivors == "updated" for one in done) else "kept",
        tokens=min((0 if gram is None else gram.tokens for gram in grams), default=0),
        skipped=sum(0 if gram is None else gram.skipped for gram in grams),
        error=sum(errors) / len(errors) if errors else None,
        error_before_refine=sum(before) / len(before) if before else None,
        damping=damping,
        raised=raised,
        dead_inputs=sum(one.dead for one in done),
        by_magnitude=sum(one.by_magnitude for one in done),
        pattern_rows=None if pattern == [(0, out * len(done))] else pattern,
        movable_rows=_ranges([() if one.by_magnitude else one.rows for one in done], out),
    )


def _ranges(rows: Sequence[Ranges | None], out: int) -> list[tuple[int, int]]:
    """Row ranges of the matrices of a stack, of ``out`` rows each, numbered across the stack.

    Args:
        rows: of each matrix; None for all.
    """
    each = [((0, out),) if one is None else one for one in rows]
    return list(merged((i * out + a, i * out + b) for i, one in enumerate(each) for a, b in one))


def replaced(resolution: Resolution, store: CalibratedStore) -> Resolution:
    """The resolution with the new values in place of edits."""
    records: dict[str, dict[str, Any]] = {}
    stored = store.written()
    rows = dict(resolution.pattern_rows)
    edits, reasons = dict(resolution.edits), dict(resolution.reasons)
    for name, (tensor, record, digest) in stored.items():
        found = record.pop("pattern_rows")
        del record["movable_rows"]
        rows.pop(name, None)
        reasons.pop(name, None)
        if found == []:
            edits[name] = Copy()
            reasons[name] = "kept dense: its share of the budget is less than a block of rows"
            continue
        records[name] = record
        edits[name] = Replace(tensor, store.reader, digest)
        if found is not None:
            rows[name] = tuple((start, stop) for start, stop in found)
    forecasts = {k: v for k, v in resolution.forecasts.items() if k not in stored}
    return Resolution(
        edits, reasons, resolution.thresholds, forecasts, pattern_rows=rows, calibrated=records
    )


class CalibrationNotes:
    """Collects warnings about tensors, and sums them up at the end.

    Args:
        by_mask: whether a file of masks chose the weights.
    """

    def __init__(self, on_event: OnEvent, *, by_mask: bool) -> None:
        self._on_event, self._by_mask = on_event, by_mask
        self._unreached: list[str] = []
        self._missed: list[str] = []
        self._dead: dict[str, int] = {}

    def tensor(
        self, name: str, facts: CalibratedFacts, missed: Sequence[bool], done: Sequence[Done]
    ) -> None:
        """Record one pruned tensor.

        Args:
            missed: :attr:`Captured.missed` of each matrix. done: facts about each matrix.
        """
        if facts.skipped:
            text = f"{name}: {facts.skipped:,} inputs held NaN or Inf, or were far too large, and"
            self._warn(f"{text} were left out.")
        if facts.raised:
            text = f"{name}: its second moments are singular; damping was raised to"
            self._warn(f"{text} {facts.damping:g}.")
        if over := sum(one.overflowed for one in done):
            text = f"{name}: its dtype cannot hold the new weights of {over:,} rows:"
            self._warn(f"{text} the survivors there keep their values.")
        blind = [one for one, made in zip(missed, done, strict=True) if made.by_magnitude]
        known = sum(blind)
        for count, names in ((known, self._missed), (len(blind) - known, self._unreached)):
            if count:
                whole = count == len(done)
                names.append(name if whole else f"{count} of {len(done)} matrices of {name}")
        if facts.dead_inputs:
            self._dead[name] = facts.dead_inputs

    def end(self) -> None:
        """Send the warnings that sum up several tensors."""
        what = "their survivors are as before" if self._by_mask else "pruned by magnitude"
        if self._unreached:
            text = f"No sample reaches {_some(self._unreached)}: {what}."
            self._warn(f"{text} The manifest says which.")
        if self._missed:
            text = f"The product with {_some(self._missed)} is not recognised: {what}."
            self._warn(f"{text} The manifest says which.")
        if self._dead:
            count = sum(self._dead.values())
            inputs = "One input" if count == 1 else f"{count:,} inputs"
            text = f"{inputs} of {_some(list(self._dead))} never fired on the samples:"
            self._warn(f"{text} weights there cost nothing, and go first, the smallest ones first.")

    def _warn(self, text: str) -> None:
        self._on_event(Note(text, warning=True))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
