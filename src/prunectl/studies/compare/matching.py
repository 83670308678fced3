"""Twins: which tensor of one checkpoint is which tensor of another, where their names differ.

Names differ by a prefix (``bert.encoder.layer.0`` and ``encoder.layer.0``), or by the whole stack
of a block. Rules go from strict to loose; each rule sees only the tensors that stricter rules left,
and takes a pair only where both are the only ones with their key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from prunectl.checkpoint.roles import TensorRole

_PREFIX = 3
"""Most parts of a prefix that only one of two names has."""

Key = Callable[[str, "Candidate"], Hashable]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that may have a twin: its shape, and its role if that is known."""

    shape: tuple[int, ...]
    role: TensorRole | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """Twins, and the tensors without a twin.

    Attributes:
        pairs: the names in both checkpoints, in the order of the first.
        only_first, only_second: names without a twin, and the reasons.
    """

    pairs: tuple[tuple[str, str], ...]
    only_first: dict[str, str]
    only_second: dict[str, str]


def match(first: Mapping[str, Candidate], second: Mapping[str, Candidate]) -> Matching:
    """Find the twins of the tensors of ``first``. Pure.

    Twins have equal shapes. Tensors with equal names and different shapes have no twins at all.
    """
    twins: dict[str, str] = {}
    reasons: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name in first.keys() & second.keys():
        shapes = [list(first[name].shape), list(second[name].shape)]
        if shapes[0] == shapes[1]:
            twins[name] = name
        else:
            reasons[0][name] = f"its shape is {shapes[0]}, and {shapes[1]} on the other side"
            reasons[1][name] = f"its shape is {shapes[1]}, and {shapes[0]} on the other side"
    for one, other in _RULES:
        taken = set(twins.values())
        left = {n: c for n, c in first.items() if n not in twins and n not in reasons[0]}
        right = {n: c for n, c in second.items() if n not in taken and n not in reasons[1]}
        theirs = _unique(right, other)
        for key, name in _unique(left, one).items():
            if key in theirs and left[name].shape == right[theirs[key]].shape:
                twins[name] = theirs[key]
    taken = set(twins.values())
    missing = "the other side has none like it"
    return Matching(
        tuple((name, twins[name]) for name in first if name in twins),
        {n: reasons[0].get(n, missing) for n in first if n not in twins},
        {n: reasons[1].get(n, missing) for n in second if n not in taken},
    )


def _unique(candidates: Mapping[str, Candidate], key: Key) -> dict[Hashable, str]:
    """The names by their keys, without names that share a key and without keys of None."""
    found: dict[Hashable, str] = {}
    twice: set[Hashable] = set()
    for name, candidate in candidates.items():
        value = key(name, candidate)
        if value is None or value in found:
            twice.add(value)
        else:
            found[value] = name
    return {value: name for value, name in found.items() if value not in twice}


def _whole(name: str, _: Candidate) -> Hashable:
    return name


def _without(parts: int) -> Key:
    def key(name: str, _: Candidate) -> Hashable:
        split = name.split(".", parts)
        return split[-1] if len(split) > parts else None

    return key


def _place(stack: bool) -> Key:
    def key(name: str, candidate: Candidate) -> Hashable:
        role = candidate.role
        if role is None or role.layer is None:
            return None
        ending = name.rpartition(".")[2]
        return (*role.stack.split(".")[-2:] * stack, role.layer, role.component, ending)

    return key


_RULES: tuple[tuple[Key, Key], ...] = (
    *((_without(parts), _whole) for parts in range(1, _PREFIX + 1)),
    *((_whole, _without(parts)) for parts in range(1, _PREFIX + 1)),
    (_place(True), _place(True)),
    (_place(False), _place(False)),
)
