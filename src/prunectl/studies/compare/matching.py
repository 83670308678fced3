"""Which tensor of one checkpoint is which of another, where names differ between them.

Names differ by a prefix (``bert.encoder.layer.0`` and ``encoder.layer.0``), or by the whole stack
that a block is in. Rules go from strict to loose, and a looser one only sees what the stricter ones
left; each takes a pair only where both are the only ones of their kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from prunectl.checkpoint.roles import TensorRole

_PREFIX = 3
"""Parts that a name may have more at its front."""

Key = Callable[[str, "Candidate"], Hashable]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that may have a twin: its shape, and its place where that is known."""

    shape: tuple[int, ...]
    role: TensorRole | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """Twins, and what has none.

    Attributes:
        pairs: names on both sides, in the order of the first.
        only_first, only_second: the other names, and why they have no twin.
    """

    pairs: tuple[tuple[str, str], ...]
    only_first: dict[str, str]
    only_second: dict[str, str]


def match(first: Mapping[str, Candidate], second: Mapping[str, Candidate]) -> Matching:
    """Find the twins of the tensors of ``first``. Pure.

    Twins have equal shapes; a pair of equal names and other shapes is none, and neither of the two
    is matched with a third one.
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
    """The names by their keys; those that share one are left out, as are keys of None."""
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
