"""Calibrated methods on a checkpoint's tensors: from a plan to new weights, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.calibration.capture import as_matrices
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.errors import NaNWeights, UnsupportedCheckpoint
from prunectl.events import Note, OnEvent
from prunectl.methods.pruned import Pruned
from prunectl.pruning.calibrated_store import CalibratedStore
from prunectl.pruning.edits import Copy, Edit, Replace
from prunectl.pruning.job import Job
from prunectl.pruning.outputs import OutputTensor
from prunectl.pruning.resolve import Resolution
from prunectl.pruning.targets import Masked, TensorTarget, split
from prunectl.pruning.transform import write_tensor
from prunectl.settings import Calibration, Method
from prunectl.streaming import Scratch

if TYPE_CHECKING:
    import torch

    from prunectl.calibration.engine import Measured


@dataclass(frozen=True, slots=True)
class CalibratedFacts:
    """What calibration did to one tensor; means over the matrices of a stack.

    Attributes:
        survivors: ``kept`` bit for bit, or ``updated``.
        tokens: inputs that were seen, the fewest of any of its matrices.
        skipped: inputs left out since they held NaN or Inf.
        error: squared output error relative to the squared output, on the calibration's inputs,
            of the weights as stored; None where only the inputs' norms were gathered.
        error_before_refine: the same before the survivors were fitted; None where they were not.
        damping: the largest used. raised: how often it had to be raised tenfold.
        dead_inputs: inputs that never fired.
        by_magnitude: matrices that no input reached, so that magnitudes decided.
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


class Calibrator:
    """Prunes tensors as the engine comes to them.

    Args:
        job, targets: what is asked for, and of which tensor.
        reader: of the source.
        store: takes the new values; None only measures the errors (nothing is changed).
        full: whether whole second moments are gathered.
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
        self._calibration: Calibration = job.settings.calibration
        self._method, self._refine = job.settings.method, job.settings.refine
        self._stored = {tensor.name: tensor for tensor in job.checkpoint.tensors}
        self._on_event, self._full = on_event, full
        self.facts: dict[str, CalibratedFacts] = {}

    def __call__(self, name: str, measured: Sequence[Measured]) -> torch.Tensor | None:
        """The new values of a tensor, in its own dtype and shape."""
        import torch

        source = read_tensor(self._reader, self._stored[name])
        _refuse_odd(name, source)
        target, axis = self._targets[name], self._job.planned[name].input_axis
        new = source.clone()
        parts = as_matrices(source, axis)
        places = as_matrices(new, axis)
        wanted = split(target, parts, axis)
        done = []
        for place, part, one, goal in zip(places, parts, measured, wanted, strict=True):
            found = self._one(part, one, goal)
            done.append(found)
            if found.survivors == "kept":
                place.copy_(torch.where(found.mask.cpu(), part, torch.zeros_like(part)))
            else:
                # + 0.0: what is rounded to zero is a plain zero, whatever its sign was.
                place.copy_(found.weight.cpu().to(part.dtype) + 0.0)
        self.facts[name] = _summed(done, [one.gram for one in measured])
        if self._store is None:
            return None
        self._tell(name, self.facts[name])
        self._store.put(name, new, asdict(self.facts[name]))
        return new

    def _one(self, part: torch.Tensor, one: Measured, goal: Any) -> _Done:
        import torch

        device = one.matrix.weight.device
        try:
            return self._prune(part.to(device, torch.float32), one, goal, part.dtype)
        except torch.OutOfMemoryError:
            if device.type == "cpu":
                raise
            text = f"The device is full: {one.matrix.label} is pruned on the CPU."
            self._on_event(Note(text, warning=True))
            return self._prune(part.float(), one, goal, part.dtype)

    def _prune(self, weight: torch.Tensor, one: Measured, goal: Any, dtype: torch.dtype) -> _Done:
        """One matrix [out, in] in fp32."""
        from prunectl.methods.loss import output_error
        from prunectl.methods.magnitude import magnitude
        from prunectl.methods.refine import refine

        gram = one.gram if one.gram is not None and one.gram.tokens else None
        if isinstance(goal, Masked):
            pruned = Pruned(weight * goal.mask.to(weight.device), goal.mask.to(weight.device))
        elif gram is None:
            pruned = magnitude(weight, goal)
        else:
            pruned = self._by_method(weight, gram, goal)
        updated = self._method in (Method.SPARSEGPT, Method.ADMM) and gram is not None
        if gram is None or not self._full:
            return _Done(pruned, pruned.weight, pruned.mask, "kept", None, None, gram is None)
        hessian = gram.hessian().to(weight.device)
        before = output_error(weight, pruned.weight, hessian)
        final = pruned.weight
        if self._refine:
            final = refine(weight, final, pruned.mask, hessian, damping=self._calibration.damping)
            updated = True
        error = output_error(weight, final.to(dtype).float(), hessian)
        return _Done(
            pruned, final, pruned.mask, "updated" if updated else "kept", error,
            before if self._refine else None, False,
        )  # fmt: skip

    def _by_method(self, weight: torch.Tensor, gram: Any, goal: Any) -> Pruned:
        from prunectl.methods.magnitude import magnitude
        from prunectl.methods.sparsegpt import sparsegpt
        from prunectl.methods.wanda import wanda

        damping = self._calibration.damping
        if self._method is Method.MAGNITUDE:
            return magnitude(weight, goal)
        if self._method is Method.WANDA:
            return wanda(weight, gram.norms().to(weight.device), goal)
        hessian = gram.hessian().to(weight.device)
        if self._method is Method.SPARSEGPT:
            return sparsegpt(weight, hessian, goal, damping=damping)
        from prunectl.methods.admm import admm

        return admm(weight, hessian, goal, damping=damping)

    def _tell(self, name: str, facts: CalibratedFacts) -> None:
        """What a user should know of a tensor, by name."""
        if facts.by_magnitude:
            many = "" if facts.by_magnitude == 1 else f" ({facts.by_magnitude} matrices of it)"
            self._on_event(
                Note(f"No sample reaches {name}{many}: magnitudes decided there.", warning=True)
            )
        if facts.skipped:
            text = f"{name}: {facts.skipped:,} inputs held NaN or Inf and were left out."
            self._on_event(Note(text, warning=True))
        if facts.raised:
            text = f"{name}: its second moments are singular; damping was raised to"
            self._on_event(Note(f"{text} {facts.damping:g}.", warning=True))


@dataclass(frozen=True, slots=True)
class _Done:
    pruned: Pruned
    weight: torch.Tensor
    mask: torch.Tensor
    survivors: str
    error: float | None
    error_before_refine: float | None
    by_magnitude: bool


def needs_full(method: Method, refine: bool) -> bool:
    """Whether a method needs whole second moments of the inputs, and not their norms only."""
    return refine or method in (Method.SPARSEGPT, Method.ADMM)


def _summed(done: Sequence[_Done], grams: Sequence[Any]) -> CalibratedFacts:
    errors = [one.error for one in done if one.error is not None]
    before = [one.error_before_refine for one in done if one.error_before_refine is not None]
    return CalibratedFacts(
        survivors="updated" if any(one.survivors == "updated" for one in done) else "kept",
        tokens=min((0 if gram is None else gram.tokens for gram in grams), default=0),
        skipped=sum(0 if gram is None else gram.skipped for gram in grams),
        error=sum(errors) / len(errors) if errors else None,
        error_before_refine=sum(before) / len(before) if before else None,
        damping=max((one.pruned.damping for one in done), default=0.0),
        raised=max((one.pruned.raised for one in done), default=0),
        dead_inputs=sum(one.pruned.dead for one in done),
        by_magnitude=sum(one.by_magnitude for one in done),
    )


def _refuse_odd(name: str, tensor: torch.Tensor) -> None:
    nans = int(tensor.isnan().sum())
    if nans:
        raise NaNWeights(name, nans)
    if not bool(tensor.isfinite().all()):
        raise UnsupportedCheckpoint(
            name, "it holds Inf, which has no output error", hint="--method magnitude takes it"
        )


def masks_of(job: Job, edits: Mapping[str, Edit], reader: TensorReader) -> dict[str, TensorTarget]:
    """What magnitudes, or a file of masks, leave of each tensor: a mask to fit the survivors to."""
    return {
        name: _ByEdit(job, name, edit, reader)
        for name, edit in edits.items()
        if not isinstance(edit, Copy)
    }


class _ByEdit:
    """The mask that an edit gives, found when it is asked for: one tensor is in memory."""

    def __init__(self, job: Job, name: str, edit: Edit, reader: TensorReader) -> None:
        self._job, self._name, self._edit, self._reader = job, name, edit, reader

    def mask(self) -> torch.Tensor:
        """bool, of the tensor's shape."""
        import threading

        import torch

        stored = next(t for t in self._job.checkpoint.tensors if t.name == self._name)
        out = np.empty(stored.spec.nbytes, np.uint8)

        def write(offset: int, data: memoryview) -> None:
            out[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

        planned = self._job.planned[self._name]
        write_tensor(
            OutputTensor(stored.spec, stored), self._edit, planned.input_axis, self._reader, write,
            Scratch(threading.Event()), prunable=planned.mask is None,
        )  # fmt: skip
        uint = np.dtype(f"u{stored.spec.dtype.bits // 8}")
        return torch.from_numpy(out.view(uint) != 0).reshape(stored.spec.shape)


def replaced(resolution: Resolution, store: CalibratedStore) -> Resolution:
    """The resolution with the new values in the place of edits."""
    records = store.records()
    edits: dict[str, Edit] = {
        **resolution.edits,
        **{name: Replace(store.tensor(name), store.reader) for name in records},
    }
    forecasts = {k: v for k, v in resolution.forecasts.items() if k not in records}
    return replace(resolution, edits=edits, forecasts=forecasts, calibrated=records)
