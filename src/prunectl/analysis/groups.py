"""Sums over tensors that belong together: a role, a component, a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prunectl.analysis.result import GroupStats, TensorStats
from prunectl.checkpoint.roles import TensorRole
from prunectl.tensorspec import BY_LABEL


def layer_label(tensor: TensorStats | TensorRole) -> str:
    """``stack.layer`` as the model's module tree numbers it, for example ``model.layers.3``."""
    return f"{tensor.stack}.{tensor.layer}" if tensor.stack else str(tensor.layer)


def group(
    tensors: Iterable[TensorStats], key: Callable[[TensorStats], str]
) -> dict[str, GroupStats]:
    """Sums over the measured tensors that share a key, in order of first appearance."""
    members: dict[str, list[TensorStats]] = {}
    for tensor in tensors:
        if tensor.measured:
            members.setdefault(key(tensor), []).append(tensor)
    return {label: _group_stats(part) for label, part in members.items()}


def _group_stats(tensors: Sequence[TensorStats]) -> GroupStats:
    weights = sum(t.numel for t in tensors)
    finite = sum(t.numel - t.nans - t.infs for t in tensors)
    total = sum(t.mean * (t.numel - t.nans - t.infs) for t in tensors)
    norm = sum(t.norm_squared for t in tensors)
    mean = total / finite if finite else 0.0
    largest = [max(abs(t.minimum), abs(t.maximum)) for t in tensors if t.numel > t.nans]
    near: dict[str, int] = {}
    for tensor in tensors:
        _add_counts(near, tensor.near_zero)
    return GroupStats(
        tensors=len(tensors),
        weights=weights,
        prunable_weights=sum(t.numel for t in tensors if t.prunable),
        nbytes=sum(t.numel * BY_LABEL[t.dtype].bits // 8 for t in tensors),
        zeros=sum(t.zeros for t in tensors),
        near_zero=near,
        std=float(max(0.0, norm / finite - mean * mean) ** 0.5) if finite else 0.0,
        largest=max(largest, default=0.0),
        norm_squared=norm,
    )


def _add_counts(into: dict[str, int], counts: Mapping[str, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count
