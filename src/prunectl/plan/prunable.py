"""Which tensors may be pruned, and why the others may not: from names, shapes and roles alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.roles import Role, TensorRole
from prunectl.errors import BadManifest, InvalidOption, NothingPrunable, UnsupportedCheckpoint
from prunectl.output.manifest import read_manifest
from prunectl.pattern import Pattern, Unstructured
from prunectl.plan.selectors import check_selector, matches
from prunectl.tensorspec import DTYPES, TensorSpec

NONE_LEFT = "no tensor is a weight matrix of a transformer block, or filters excluded all of them"


def prunable_tensors(
    checkpoint: Checkpoint,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    recorded: Collection[str] = (),
    fp8: bool = False,
) -> dict[str, TensorSpec]:
    """The prunable tensors of a checkpoint by name, in file order. Every command uses this answer.

    These are the weight matrices of linear layers inside the transformer blocks, with what
    selectors add and take. No weights are read.

    Args:
        include, exclude: selectors that add to, and take from, the prunable tensors; exclude wins.
        recorded: the tensors that the manifest counts as prunable (see :func:`recorded_prunable`);
            they replace the roles.
        fp8: count tensors of fp8, which can be analyzed and not pruned.

    Raises:
        InvalidOption: a selector that matches no tensor.
    """
    roles = checkpoint.roles.roles
    specs = [tensor.spec for tensor in checkpoint.tensors]
    options = [*(("--include", s) for s in include), *(("--exclude", s) for s in exclude)]
    check_matches(specs, options)
    found = {}
    for spec in specs:
        seen = spec
        if fp8 and spec.dtype.is_float and not spec.dtype.is_prunable:
            seen = replace(spec, dtype=DTYPES["BF16"])
        if not not_prunable_reason(seen, roles[spec.name], include, exclude, recorded):
            found[spec.name] = spec
    return found


def recorded_prunable(checkpoint: Checkpoint) -> frozenset[str]:
    """The tensors that the checkpoint's manifest counts as prunable.

    In a folder that prunectl wrote, sparsities are shares of these, whatever recipe, masks or
    selectors chose them. Empty without a readable manifest.
    """
    try:
        records = read_manifest(checkpoint.folder).tensors
    except BadManifest:
        return frozenset()
    return frozenset(record.name for record in records if record.prunable)


def require_prunable(
    checkpoint: Checkpoint,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    recorded: Collection[str] = (),
) -> dict[str, TensorSpec]:
    """:func:`prunable_tensors` of a checkpoint that is about to be pruned.

    Raises:
        UnsupportedCheckpoint: the checkpoint is quantized.
        NothingPrunable: there are none. InvalidOption: a selector that matches no tensor.
    """
    refuse_quantized(checkpoint)
    found = prunable_tensors(checkpoint, include, exclude, recorded=recorded)
    if not found:
        raise NothingPrunable(NONE_LEFT)
    return found


def refuse_quantized(
    checkpoint: Checkpoint,
    hint: str = "prune the checkpoint from before quantization, then quantize the result",
) -> None:
    """Raise UnsupportedCheckpoint if the checkpoint is quantized."""
    if checkpoint.quantization:
        what = f"the checkpoint is quantized ({checkpoint.quantization})"
        raise UnsupportedCheckpoint(checkpoint.model, what, hint=hint)


def selected(selectors: Iterable[str], name: str) -> bool:
    return any(matches(selector, name) for selector in selectors)


def check_matches(specs: Sequence[TensorSpec], selectors: Iterable[tuple[str, str]]) -> None:
    """Refuse selectors that match nothing, which are mostly typing mistakes.

    Args:
        selectors: pairs of option and selector.

    Raises:
        InvalidOption: a selector that matches nothing, is empty, or is no regular expression.
    """
    for origin, selector in selectors:
        check_selector(selector)
        if not any(matches(selector, spec.name) for spec in specs):
            raise InvalidOption(
                f"{origin}: '{selector}' matches no tensor",
                hint="see the names with 'prunectl analyze MODEL --all'",
            )


def not_prunable_reason(
    spec: TensorSpec,
    role: TensorRole,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    recorded: Collection[str] = (),
) -> str:
    """Why a tensor is not prunable; '' if it is. Arguments as of :func:`prunable_tensors`."""
    if selected(exclude, spec.name):
        return "excluded"
    if not spec.dtype.is_float:
        return f"{spec.dtype.label} has no magnitudes"
    if not spec.dtype.is_prunable:
        return f"{spec.dtype.label} can be analyzed, not pruned"
    if spec.numel == 0:
        return "empty"
    if selected(include, spec.name):
        return ""
    if recorded:
        return "" if spec.name in recorded else "not prunable by the manifest"
    if role.role is not Role.LINEAR:
        return f"{role.role} is not pruned by default"
    if len(spec.shape) < 2:
        return "not a matrix"
    return ""


def misfit_reason(spec: TensorSpec, role: TensorRole, pattern: Pattern) -> str:
    """Why a prunable tensor cannot take ``pattern``; '' if it can."""
    if isinstance(pattern, Unstructured):
        return ""
    axis = input_axis(spec, role)
    if axis is None:
        return "its input dimension is unknown, which N:M needs"
    length = spec.shape[axis]
    if length < pattern.m:
        return f"input dimension {length} is smaller than {pattern.m}"
    if length % pattern.m:
        return f"input dimension {length} is not divisible by {pattern.m}"
    return ""


def input_axis(spec: TensorSpec, role: TensorRole) -> int | None:
    """The axis of the inputs; for an included tensor of no linear layer: the last of two."""
    if role.input_axis is not None:
        return role.input_axis
    return 1 if len(spec.shape) == 2 else None
