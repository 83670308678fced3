"""Who prunes a block's tensors once their inputs are known, and how several processes share that.

Every one of them has the inputs' statistics of all. So each tensor is computed by one of them, and
all put the new values into their copy of the block, and take note of the facts in one order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunectl.calibration.capture import Matrix
from prunectl.methods.statistics import Gram
from prunectl.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Captured:
    """A matrix of a block, and what was seen of its inputs; None where nothing reached it.

    Attributes:
        missed: whether something was computed with it that is not known as a product.
    """

    matrix: Matrix
    gram: Gram | None
    missed: bool = False


PruneTensor = Callable[[str, Sequence[Captured]], torch.Tensor | None]
"""Takes a tensor's name and its matrices; gives its new values in the stored shape, or None."""


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What was made of a tensor.

    Attributes:
        values: the new ones, on the CPU, of the stored dtype and shape; None changes nothing.
        facts: what else is to be known of it; can be pickled.
    """

    values: torch.Tensor | None
    facts: Any = None


class Pruner(ABC):
    """Prunes tensors in two steps, of which the first may be done by another process."""

    def in_turn(self, name: str) -> bool:
        """Whether a tensor depends on what was computed of those before it."""
        return False

    @abstractmethod
    def compute(self, name: str, matrices: Sequence[Captured]) -> Computed:
        """What becomes of a tensor: called once for each, in some process."""

    @abstractmethod
    def take(self, name: str, computed: Computed) -> None:
        """Take note of it: called once for each in every process, in the order of the tensors."""


class EachAtOnce(Pruner):
    """A function that does all there is to do."""

    def __init__(self, prune_tensor: PruneTensor) -> None:
        self._prune_tensor = prune_tensor

    def compute(self, name: str, matrices: Sequence[Captured]) -> Computed:
        return Computed(self._prune_tensor(name, matrices))

    def take(self, name: str, computed: Computed) -> None:
        """Nothing is left to do."""


def pruned(
    pruner: Pruner, todo: Mapping[str, Sequence[Captured]], ranks: Ranks
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Have tensors pruned, each by one of the processes; what is in turn, by the first.

    Args:
        todo: tensors with their matrices, in order; the same in every process.

    Yields:
        in this order, every tensor with its new values, or None.
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
    """About what it takes to prune a tensor, in multiplications."""
    shapes = [one.matrix.weight.shape for one in matrices]
    return sum(out * inputs * inputs for out, inputs in shapes)
