"""Errors of a comparison."""

from __future__ import annotations

from prunectl.errors import UsageError


class NothingToCompare(UsageError):
    """Two models that have no prunable tensor in common, or masks that remove nothing or all."""

    def __init__(self, first: str, second: str, *, why: str, hint: str) -> None:
        super().__init__(f"{first} and {second} cannot be compared: {why}", hint=hint)
        self.first, self.second, self.why = first, second, why


def nothing_in_common(first: str, second: str) -> NothingToCompare:
    """No two tensors are twins."""
    return NothingToCompare(
        first,
        second,
        why="no prunable tensor of one has the name or place, and the shape, of one of the other",
        hint="both must be of one architecture: see 'prunectl analyze MODEL --all' of each",
    )


def no_sparsity(first: str, second: str, masked: str) -> NothingToCompare:
    """One side brings a mask of its own that says nothing."""
    return NothingToCompare(
        first,
        second,
        why=f"{masked} prunes none, or all, of the weights that both have",
        hint="give a --sparsity",
    )
