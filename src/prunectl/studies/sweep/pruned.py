"""A model in memory, pruned one way after another from the dense copy on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor, torch_dtype
from prunectl.evaluation.loaded_model import LoadedModel
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted
from prunectl.measure.measured import Measured
from prunectl.parallel.run import Run
from prunectl.plan.job import plan_job
from prunectl.plan.plan import TensorPlan
from prunectl.plan.settings import PruneSettings
from prunectl.pruning.resolve import resolved
from prunectl.pruning.verb import DEFAULT_SHARD_SIZE
from prunectl.tensorspec import TensorSpec
from prunectl.transform.edits import Copy, Edit, Replace
from prunectl.transform.writing import edited

PHASE = "pruning in memory"


@dataclass(frozen=True, slots=True)
class Zeros:
    """What a model holds after it was pruned.

    Attributes:
        zeros, weights: of the prunable weights. parameters: all numbers in the files.
    """

    zeros: int
    weights: int
    parameters: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def overall(self) -> float:
        return self.zeros / self.parameters if self.parameters else 0.0


class PrunedModel:
    """Puts into a loaded model what ``prune`` would write, bit for bit.

    Only tensors whose edit is another than before are read and put in again: masks of rising
    sparsity are nested, and N:M budgets add one matrix after the other.

    Args:
        prunable: the tensors that are pruned.
        measured: what is known of the weights; receives more, and is not closed. None is the cache.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        reader: TensorReader,
        prunable: Collection[TensorSpec],
        measured: Measured | None = None,
    ) -> None:
        self.loaded, self._prunable, self._measured = loaded, prunable, measured
        self._reader = reader
        self._edits: dict[str, Edit] = {}
        self._zeros: dict[str, int] = {}

    def apply(
        self, settings: PruneSettings | None, *, jobs: int | None, on_event: OnEvent
    ) -> Zeros:
        """Prune the model in memory as ``prune`` would; None makes it dense again.

        Raises:
            PrunectlError: as :func:`prunectl.prune`.
        """
        checkpoint = self.loaded.checkpoint
        if settings is None:
            self._put({}, {}, on_event)
            return self._zeros_now()
        with tempfile.TemporaryDirectory(prefix="prunectl-sweep-") as folder:
            job = plan_job(checkpoint, Path(folder) / "out", settings, DEFAULT_SHARD_SIZE, "")
            with resolved(
                job, Run(jobs, on_event=on_event), use_cache=True, measured=self._measured
            ) as (job, resolution):
                self._put(resolution.edits, job.planned, on_event)
        return self._zeros_now()

    def _zeros_now(self) -> Zeros:
        return Zeros(
            sum(self._count(spec.name) for spec in self._prunable),
            sum(spec.numel for spec in self._prunable),
            sum(tensor.spec.numel for tensor in self.loaded.checkpoint.tensors),
        )

    def _put(
        self, edits: Mapping[str, Edit], planned: Mapping[str, TensorPlan], on_event: OnEvent
    ) -> None:
        """Bring the model to ``edits``; what is not among them becomes dense again."""
        stored = self.loaded.checkpoint.by_name
        wanted = {name: edits.get(name, Copy()) for name in {**self._edits, **edits}}
        changed = {
            name: edit
            for name, edit in wanted.items()
            if edit != self._edits.get(name, Copy()) or isinstance(edit, Replace)
        }
        on_event(PhaseStarted(PHASE, sum(stored[name].spec.nbytes for name in changed)))
        for name, edit in changed.items():
            axis = planned[name].input_axis if name in planned else None
            values = edited(stored[name], edit, axis, self._reader, prunable=True)
            tensor = as_tensor(values, stored[name])
            self.loaded.put(name, tensor)
            self._edits[name] = edit
            self._zeros[name] = tensor.numel() - int(tensor.count_nonzero())
            on_event(Advanced(PHASE, stored[name].spec.nbytes, name))
        on_event(PhaseDone(PHASE))

    def _count(self, name: str) -> int:
        if name not in self._zeros:
            stored = read_tensor(self._reader, self.loaded.checkpoint.by_name[name])
            self._zeros[name] = stored.numel() - int(stored.count_nonzero())
        return self._zeros[name]


def as_tensor(data: object, stored: StoredTensor) -> torch.Tensor:
    """Bytes of a whole tensor as a torch tensor of its dtype and shape, without a copy."""
    flat = torch.frombuffer(data, dtype=torch_dtype(stored.spec))
    return flat.reshape(stored.spec.shape)
