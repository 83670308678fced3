"""What is gathered of the inputs of a block's matrices; those with the same input share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from prunectl.calibration.capture import Matrix
from prunectl.methods.statistics import Gram

Key = tuple[Matrix, ...]
"""The matrices that one product multiplies by: one, or those that are fused into one weight."""

Place = tuple[str, int | None]
"""A matrix as every process calls it: its tensor, and which one of a stack it is."""

Product = tuple[Place, ...]


class NotShared(Exception):
    """Two weights had the same input for one sample and do not have it for another."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one process has seen, in words that the others understand.

    Attributes:
        leaders: by product, in the order of their first use, the one whose moments it shares.
        moments: by product that has moments, (inputs, tokens, skipped, whether they are paired).
        missed: see :class:`Statistics`.
    """

    leaders: dict[Product, Product]
    moments: dict[Product, tuple[int, int, int, bool]]
    missed: list[Place]


def agree(everyone: Iterable[Seen]) -> bool:
    """Whether a product shares moments with the same one wherever it was seen."""
    leaders: dict[Product, Product] = {}
    return all(
        leaders.setdefault(product, leader) == leader
        for seen in everyone
        for product, leader in seen.leaders.items()
    )


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
        shared: whether products may share moments.
        gathers: whether moments are gathered; False only learns what is used in which order.
        paired: whether :meth:`seen_dense` gets the dense model's inputs, to pair with these.
        tokens: of the block's input that is being computed with.
    """

    def __init__(
        self,
        *,
        full: bool,
        device: torch.device,
        shared: bool = True,
        gathers: bool = True,
        paired: bool = False,
        tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        self._full, self._device, self.paired = full, device, paired
        self._shared, self.gathers = shared, gathers
        self._grams: dict[Key, Gram] = {}
        self._recent: list[tuple[torch.Tensor, Key]] = []
        self._dense: dict[Key, list[torch.Tensor]] = {}
        self._tokens = tokens
        self.leader: dict[Key, Key] = {}
        self.order: list[Key] = []
        self._key_of: dict[Matrix, Key] = {}
        self.missed: set[Matrix] = set()

    def next_sample(self) -> None:
        """Forget the tensors of the last one."""
        self._recent.clear()
        self._dense.clear()

    def seen_dense(self, key: Key, x: torch.Tensor) -> None:
        """Note the inputs of a product in the dense model, before those of the pruned one."""
        self._dense.setdefault(key, []).append(x.clone())  # the model may write into it

    def seen(self, key: Key, x: torch.Tensor) -> None:
        """Add ``x`` [..., in], unless it was added already by a product that shares it.

        Raises:
            NotShared: what was shared before is not shared here.
        """
        twin = next((other for held, other in reversed(self._recent) if held is x), None)
        if key not in self.leader:
            self._lead(key, twin if twin is not None and self._shared else key)
        leader = self.leader[key]
        if leader != key:
            if twin != leader:
                raise NotShared
            return
        self._recent.append((x, key))  # kept alive: no other tensor can be mistaken for it
        if self.gathers:
            if key not in self._grams:
                self._grams[key] = Gram(
                    x.shape[-1], full=self._full, device=self._device, paired=self.paired
                )
            self._grams[key].add(x, self._pair_of(key, x))

    def _pair_of(self, key: Key, x: torch.Tensor) -> torch.Tensor | None:
        """The dense model's inputs in place of ``x``.

        None for an expert that gets some of the tokens, as a matrix without further axes: in the
        dense model these are others, even if they are as many.
        """
        dense = self._dense.get(key)
        pair = dense.pop(0) if dense else None
        if pair is None or pair.shape != x.shape or (x.ndim < 3 and len(x) != self._tokens()):
            return None
        return pair

    def of(self, matrix: Matrix) -> Gram | None:
        """The moments of a matrix's inputs; None where nothing reached it."""
        key = self._key_of.get(matrix)
        return None if key is None else self._grams.get(self.leader[key])

    # --- several processes ----------------------------------------------------------------------

    def tally(self) -> Seen:
        """What was seen here."""
        return Seen(
            {_product(key): _product(self.leader[key]) for key in self.order},
            {
                _product(k): (g.inputs, g.tokens, g.skipped, g.is_paired)
                for k, g in self._grams.items()
            },
            [_place(one) for one in self.missed],
        )

    def unite(
        self,
        everyone: Sequence[Seen],
        matrices: Iterable[Matrix],
        all_reduce: Callable[[torch.Tensor], object],
    ) -> None:
        """Make these the statistics of several processes; called in all of them at once.

        Args:
            everyone: what each of them has seen, in one order; they :func:`agree`.
            matrices: those that were watched.
            all_reduce: see :meth:`Gram.unite`.
        """
        own = {_place(one): one for one in matrices}
        leaders = {k: v for seen in everyone for k, v in seen.leaders.items()}
        self.order.clear()
        for product, leader in leaders.items():
            self._lead(_key(own, product), _key(own, leader))
        for product in leaders:
            found = [seen.moments[product] for seen in everyone if product in seen.moments]
            if found:
                inputs, tokens, skipped, paired = zip(*found, strict=True)
                key = _key(own, product)
                if key not in self._grams:
                    self._grams[key] = self._empty(inputs[0])
                if not all(paired):
                    self._grams[key].unpair()
                self._grams[key].unite(all_reduce, tokens=sum(tokens), skipped=sum(skipped))
        self.missed = {own[place] for seen in everyone for place in seen.missed}

    def _lead(self, key: Key, leader: Key) -> None:
        self.leader[key] = leader
        self.order.append(key)
        self._key_of.update(dict.fromkeys(key, key))

    def _empty(self, inputs: int) -> Gram:
        """Moments of inputs that were seen elsewhere only; the device may have no room for them."""
        try:
            return Gram(inputs, full=self._full, device=self._device, paired=self.paired)
        except torch.OutOfMemoryError:
            return Gram(inputs, full=self._full, device="cpu", paired=self.paired)


def _place(matrix: Matrix) -> Place:
    return matrix.name, matrix.index


def _product(key: Key) -> Product:
    return tuple(map(_place, key))


def _key(own: dict[Place, Matrix], product: Product) -> Key:
    return tuple(own[place] for place in product)
