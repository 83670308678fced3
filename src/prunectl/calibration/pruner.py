"""Pruning a block's tensors once their inputs are known, shared by several processes.

Every process has the statistics of all inputs. One process computes each tensor; all of them copy
the new values into their block, and record the facts in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunectl.calibration.capture import Matrix
from prunectl.errors import NaNWeights, UnsupportedCheckpoint
from prunectl.methods.statistics import Gram
from prunectl.methods.table import DEFAULT
from prunectl.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Captured:
    """A matrix of a block and the statistics of its inputs; None where nothing reached it.

    Attributes:
        missed: whether an operation other than a known product used the matrix.
    """

    matrix: Matrix
    gram: Gram | None
    missed: bool = False


PruneTensor = Callable[[str, Sequence[Captured]], torch.Tensor | None]
"""Takes a tensor's name and its matrices; gives its new values in the stored shape, or None."""


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """The result of pruning one tensor.

    Attributes:
        values: new values on the CPU, of the stored dtype and shape; None changes nothing.
        facts: what :meth:`Pruner.take` records; can be pickled.
    """

    values: torch.Tensor | None
    facts: Any = None


@dataclass(frozen=True, slots=True)
class Fit:
    """What fitting a block did.

    Attributes:
        steps: of Adam.
        before, after: the error on the samples held out; see
            :mod:`prunectl.calibration.reconstruction`.
    """

    steps: int
    before: float
    after: float


class Pruner(ABC):
    """Prunes tensors in two steps; another process may do the first."""

    def in_turn(self, name: str) -> bool:
        """Whether a tensor depends on the results of the tensors before it."""
        return False

    @abstractmethod
    def compute(self, name: str, matrices: Sequence[Captured]) -> Computed:
        """Prune one tensor; called once for each, in one of the processes."""

    def movable(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What :meth:`take` recorded last for a tensor, and what may be changed of it.

        Returns:
            The values in the stored dtype and shape, and a bool mask of that shape, True = may
            change; None if nothing may.
        """
        return None

    def reconstructed(self, name: str, values: torch.Tensor, fit: Fit) -> None:
        """Record the values of a movable tensor after its block was fitted.

        Args:
            values: of the stored dtype and shape, on any device.

        Raises:
            NotImplementedError: the pruner has no movable tensors.
        """
        raise NotImplementedError

    @abstractmethod
    def take(self, name: str, computed: Computed) -> None:
        """Record a result; called in every process, in the order of the tensors."""


class EachAtOnce(Pruner):
    """A pruner whose function does everything at once."""

    def __init__(self, prune_tensor: PruneTensor) -> None:
        self._prune_tensor = prune_tensor

    def compute(self, name: str, matrices: Sequence[Captured]) -> Computed:
        return Computed(self._prune_tensor(name, matrices))

    def take(self, name: str, computed: Computed) -> None:
        """Nothing to record."""


def pruned(
    pruner: Pruner, todo: Mapping[str, Sequence[Captured]], ranks: Ranks
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Prune tensors, each in one of the processes; tensors that go in turn, in the first.

    Args:
        todo: matrices by tensor, in order; the same in every process.

    Yields:
        Every tensor in this order, with its new values or None.
    """
    if ranks.count == 1:
        for name, matrices in todo.items():
            computed = pruner.compute(name, matrices)
            pruner.take(name, computed)
            yield name, computed.values
        return
    own = set(
        ranks.share([one for one in todo if not pruner.in_turn(one)], lambda n: _work(todo[n]))
    )
    if ranks.is_first:
        own |= {one for one in todo if pruner.in_turn(one)}
    made = {name: pruner.compute(name, todo[name]) for name in todo if name in own}
    noted = ((k, (ranks.number, v.facts, v.values is not None)) for k, v in made.items())
    found = dict(ranks.all_gather(noted))
    for name in todo:
        rank, facts, is_new = found[name]
        mine = made.pop(name, None)
        values = ranks.tensor_of(rank, mine.values if mine else None) if is_new else None
        pruner.take(name, Computed(values, facts))
        yield name, values


def _work(matrices: Sequence[Captured]) -> int:
    """Multiplications to prune a tensor, roughly."""
    shapes = [one.matrix.weight.shape for one in matrices]
    return sum(out * inputs * inputs for out, inputs in shapes)


def refuse_odd(name: str, tensor: torch.Tensor) -> None:
    """Refuse weights whose output error is undefined.

    Raises:
        NaNWeights, UnsupportedCheckpoint: NaN, or Inf.
    """
    nans = int(tensor.isnan().sum())
    if nans:
        error = NaNWeights(name, nans)
        error.hint = "the checkpoint is damaged: samples cannot run through the model"
        raise error
    finite = bool(tensor.isfinite().all())
    if not finite or not bool(tensor.float().isfinite().all()):
        what = "numbers beyond the range of float32" if finite else "Inf"
        raise UnsupportedCheckpoint(
            name,
            f"it holds {what}, so its output error is undefined",
            hint=f"--method {DEFAULT} takes it, without --refine and --reconstruct",
        )
