"""What is gathered of the inputs of a block's matrices; those with the same input share it."""

from __future__ import annotations

import torch

from prunectl.calibration.capture import Matrix
from prunectl.methods.statistics import Gram

Key = tuple[Matrix, ...]
"""The matrices that one product multiplies by: one, or those that are fused into one weight."""


class NotShared(Exception):
    """Two weights had the same input for one sample and do not have it for another."""


class Statistics:
    """Second moments by matrix.

    Query, key and value get the very same tensor, and one set of moments for the three is a third
    of the work and memory. That they do is seen at the first sample, and checked at every other.

    Attributes:
        order: the products in the order of their first use.
        leader: by product, the one whose moments it shares; itself where it shares none.
        missed: matrices that something was computed with that is not known as a product.

    Args:
        full: whole second moments; False gathers their diagonals only.
        device: where they are kept.
        shared: whether products may share moments.
        only: leaders that are gathered; None is all.
    """

    def __init__(
        self,
        *,
        full: bool,
        device: torch.device,
        shared: bool = True,
        only: set[Key] | None = None,
    ) -> None:
        self._full, self._device = full, device
        self._shared, self._only = shared, only
        self._grams: dict[Key, Gram] = {}
        self._recent: list[tuple[torch.Tensor, Key]] = []
        self.leader: dict[Key, Key] = {}
        self.order: list[Key] = []
        self._key_of: dict[Matrix, Key] = {}
        self.missed: set[Matrix] = set()

    def next_sample(self) -> None:
        """Forget the tensors of the last one."""
        self._recent.clear()

    def seen(self, key: Key, x: torch.Tensor) -> None:
        """Add ``x`` [..., in], unless it was added already by a product that shares it.

        Raises:
            NotShared: what was shared before is not shared here.
        """
        twin = next((other for held, other in reversed(self._recent) if held is x), None)
        if key not in self.leader:
            self.leader[key] = twin if twin is not None and self._shared else key
            self.order.append(key)
            self._key_of.update(dict.fromkeys(key, key))
        leader = self.leader[key]
        if leader != key:
            if twin != leader:
                raise NotShared
            return
        self._recent.append((x, key))  # kept alive: no other tensor can be mistaken for it
        if self._only is None or key in self._only:
            if key not in self._grams:
                self._grams[key] = Gram(x.shape[-1], full=self._full, device=self._device)
            self._grams[key].add(x)

    def of(self, matrix: Matrix) -> Gram | None:
        """The moments of a matrix's inputs; None where nothing reached it."""
        key = self._key_of.get(matrix)
        return None if key is None else self._grams.get(self.leader[key])
