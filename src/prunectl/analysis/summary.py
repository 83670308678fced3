"""From measurements to the typed result of ``analyze``; reads no weights."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunectl.analysis.distribution import cuts, magnitudes
from prunectl.analysis.result import (
    SPARSITIES,
    Analysis,
    GroupStats,
    PatternFit,
    PatternSummary,
    SourceFacts,
    TensorStats,
    Threshold,
    layer_label,
)
from prunectl.analysis.sizes import bytes_in_groups, predicted_bytes
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.roles import TensorRole
from prunectl.checkpoint.stored import StoredTensor
from prunectl.magnitude.select import quantiles
from prunectl.measure.measured import Measured
from prunectl.measure.thresholds import QUANTILES, ExactThreshold, Share, shares, tolerances
from prunectl.pattern import NM
from prunectl.plan.prunable import misfit_reason, not_prunable_reason
from prunectl.tensorspec import BY_LABEL

_QUANTILE_NAMES = tuple(f"{q:g}" for q in QUANTILES)


def summarize(
    checkpoint: Checkpoint,
    measured: Measured,
    prunable: Sequence[str],
    targets: Sequence[ExactThreshold],
    patterns: Sequence[NM],
) -> Analysis:
    """Build the analysis from all measurements.

    Args:
        measured: with histograms refined as far as ``targets`` and statistics need.
        prunable: names, in file order.
        targets: thresholds for each of ``SPARSITIES``; empty if nothing is prunable.
        patterns: the N:M patterns to report.
    """
    table = _ThresholdTable(len(targets))
    chosen = set(prunable)
    by_share = shares(measured, prunable, targets)
    tensors = []
    for tensor in checkpoint.tensors:
        role = checkpoint.roles.roles[tensor.name]
        tensor_shares = next(by_share)[1] if tensor.name in chosen else None
        stats = _tensor_stats(tensor, role, measured, tensor_shares, patterns)
        if tensor_shares is not None:
            table.add(stats, tensor_shares)
        tensors.append(stats)
    source = source_facts(checkpoint, tensors)
    thresholds = table.rows(targets)
    octaves: Counter[int] = Counter()
    for stats in tensors:
        if stats.prunable:
            octaves.update(stats.octaves)
    sizes = predicted_bytes(source, tensors, patterns)
    summaries = tuple(
        _pattern_summary(pattern, tensors, source, bytes_in_groups(sizes, pattern))
        for pattern in patterns
    )
    return Analysis(
        source=source,
        tensors=tuple(tensors),
        thresholds=thresholds,
        patterns=summaries,
        roles=group(tensors, lambda t: t.role),
        components=group([t for t in tensors if t.prunable], lambda t: t.component),
        layers=group(_by_depth(tensors), layer_label),
        octaves=dict(sorted(octaves.items())),
        prunable_zeros=sum(t.zeros for t in tensors if t.prunable),
        predicted_bytes=sizes,
        warnings=warnings_for(source, tensors),
        advice=advise(source, thresholds, summaries),
        magnitudes=magnitudes(measured, tensors),
        cuts=cuts(measured, tensors),
    )


def _by_depth(tensors: Sequence[TensorStats]) -> list[TensorStats]:
    """The tensors of blocks in layer order: files have layer 10 before layer 2."""
    inside = [(t.layer, t) for t in tensors if t.layer is not None]
    stacks = list(dict.fromkeys(t.stack for _, t in inside))
    return [t for _, t in sorted(inside, key=lambda one: (stacks.index(one[1].stack), one[0]))]


def source_facts(checkpoint: Checkpoint, tensors: Sequence[TensorStats]) -> SourceFacts:
    """The header of the report."""
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.measured:
            dtypes[tensor.dtype] += tensor.numel
    roles = checkpoint.roles
    architectures = checkpoint.config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    return SourceFacts(
        model=checkpoint.model,
        kind=checkpoint.kind,
        format=checkpoint.format,
        repo_id=checkpoint.repo_id,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        architecture=roles.detail if roles.origin == "modules" else str(named),
        roles_from=roles.origin,
        roles_detail=roles.detail,
        quantization=checkpoint.quantization,
        dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        shards=len(checkpoint.files),
        file_bytes=sum(file.size for file in checkpoint.files),
        tensor_bytes=checkpoint.nbytes,
        tensors=len(tensors),
        weights=sum(t.numel for t in tensors if t.measured),
        prunable_weights=sum(t.numel for t in tensors if t.prunable),
        layers=len({(t.stack, t.layer) for t in tensors if t.layer is not None}),
    )


def _tensor_stats(
    tensor: StoredTensor,
    role: TensorRole,
    measured: Measured,
    tensor_shares: Sequence[Share] | None,
    patterns: Sequence[NM],
) -> TensorStats:
    """Statistics of one tensor; its shares if it is prunable, else None."""
    spec, prunable = tensor.spec, tensor_shares is not None
    reason = "" if prunable else not_prunable_reason(spec, role)
    stats = functools.partial(
        TensorStats, spec.name, spec.dtype.label, spec.shape, spec.numel, str(role.role),
        role.stack, role.layer, role.component, prunable, reason, spec.dtype.is_float,
        sparsity=tuple(share.zeros / spec.numel for share in tensor_shares or ()),
    )  # fmt: skip
    facts = measured.facts.get(spec.name)
    if facts is None or not facts.numel:
        return stats()
    histogram = measured.histograms.get(spec.name)
    near = tolerances(measured, spec.name)
    codes = np.array([histogram.format.floor_code(v) + 1 for v in near.values()], np.uint64)
    counts = histogram.counts_below(codes)
    marks = quantiles(histogram, QUANTILES) if histogram.numel else []
    octaves = histogram.octaves()
    return stats(
        zeros=facts.zeros,
        near_zero={text: int(count) for text, count in zip(near, counts, strict=True)},
        nans=facts.nans,
        infs=facts.infs,
        minimum=facts.minimum,
        maximum=facts.maximum,
        mean=facts.mean,
        std=facts.std,
        norm_squared=facts.norm_squared,
        quantiles=dict(zip(_QUANTILE_NAMES, marks, strict=False)),
        octaves=dict(zip(octaves.exponents.tolist(), octaves.counts.tolist(), strict=True)),
        patterns={str(p): _fit(spec.name, role, tensor, measured, p) for p in patterns if prunable},
    )


def _fit(
    name: str, role: TensorRole, tensor: StoredTensor, measured: Measured, pattern: NM
) -> PatternFit:
    reason = misfit_reason(tensor.spec, role, pattern)
    facts = measured.facts[name]
    if reason:
        return PatternFit(None, facts.zeros, reason)
    stats = measured.patterns[name, str(pattern)]
    kept = 1 - stats.lost_energy / facts.norm_squared if facts.norm_squared else 1.0
    return PatternFit(kept, stats.zeros_after)


@dataclass
class _ThresholdTable:
    """Sums over prunable tensors for every row of the threshold table."""

    size: int
    zeros: list[int] = field(init=False)
    lost: list[float] = field(init=False)
    quota: list[int] = field(init=False)
    by_role: dict[str, list[int]] = field(default_factory=dict)
    by_layer: dict[str, list[int]] = field(default_factory=dict)
    weights: Counter[str] = field(default_factory=Counter)
    norm_squared: float = 0.0

    def __post_init__(self) -> None:
        self.zeros, self.quota = [0] * self.size, [0] * self.size
        self.lost = [0.0] * self.size

    def add(self, stats: TensorStats, tensor_shares: Sequence[Share]) -> None:
        self.norm_squared += stats.norm_squared
        keys = [(self.by_role, f"role {stats.role}", stats.role)]
        if stats.layer is not None:
            label = layer_label(stats)
            keys.append((self.by_layer, f"layer {label}", label))
        for _, counter, _ in keys:
            self.weights[counter] += stats.numel
        for i, share in enumerate(tensor_shares):
            self.zeros[i] += share.zeros
            self.lost[i] += share.lost
            self.quota[i] += share.quota
            for groups, _, label in keys:
                groups.setdefault(label, [0] * self.size)[i] += share.zeros

    def rows(self, targets: Sequence[ExactThreshold]) -> tuple[Threshold, ...]:
        def part(groups: dict[str, list[int]], kind: str, i: int) -> dict[str, float]:
            return {
                label: zeros[i] / self.weights[f"{kind} {label}"] for label, zeros in groups.items()
            }

        return tuple(
            Threshold(
                sparsity=sparsity,
                count=self.zeros[i],
                threshold=target.selected.value if target.selected else 0.0,
                norm_kept=1 - self.lost[i] / self.norm_squared if self.norm_squared else 1.0,
                ties=target.selected.at if target.selected else 0,
                ties_pruned=self.quota[i],
                roles=part(self.by_role, "role", i),
                layers=part(self.by_layer, "layer", i),
            )
            for i, (sparsity, target) in enumerate(zip(SPARSITIES, targets, strict=False))
        )


def _pattern_summary(
    pattern: NM, tensors: Sequence[TensorStats], source: SourceFacts, nbytes: int
) -> PatternSummary:
    text = str(pattern)
    fits = [(t, t.patterns[text]) for t in tensors if t.prunable]
    reasons = Counter(fit.reason for _, fit in fits if fit.reason)
    by_layer: dict[str, tuple[float, float]] = {}
    kept = norm = 0.0
    for tensor, fit in fits:
        tensor_kept = tensor.norm_squared * (1.0 if fit.norm_kept is None else fit.norm_kept)
        kept, norm = kept + tensor_kept, norm + tensor.norm_squared
        if tensor.layer is not None:
            label = layer_label(tensor)
            old = by_layer.get(label, (0.0, 0.0))
            by_layer[label] = (old[0] + tensor_kept, old[1] + tensor.norm_squared)
    zeros = sum(fit.zeros for _, fit in fits)
    eligible = sum(not fit.reason for _, fit in fits)
    return PatternSummary(
        pattern=text,
        norm_kept=kept / norm if norm else 1.0,
        eligible=eligible,
        ineligible=len(fits) - eligible,
        reasons=dict(reasons),
        zeros=zeros,
        sparsity=zeros / source.prunable_weights if source.prunable_weights else 0.0,
        by_layer={
            label: part / whole if whole else 1.0 for label, (part, whole) in by_layer.items()
        },
        bytes_packed=nbytes,
    )


# --- advice ---------------------------------------------------------------------------------------


def advise(
    source: SourceFacts, thresholds: Sequence[Threshold], patterns: Sequence[PatternSummary]
) -> str:
    """Advice on what to try next, from norms alone; it states that norms are not quality."""
    if not thresholds or not source.prunable_weights:
        return (
            "No tensor is a weight matrix of a transformer block; "
            "choose tensors yourself with prune --include."
        )
    if source.quantization:
        return "Quantized weights can be inspected but not pruned; prune the original checkpoint."
    safe = [row for row in thresholds if row.norm_kept >= 0.99]
    row = safe[-1] if safe else thresholds[0]
    text = (
        f"Try --sparsity {row.sparsity:g} first: it keeps {row.norm_kept:.1%} of the squared norm"
    )
    fits = [pattern for pattern in patterns if pattern.eligible]
    if fits:
        best = max(fits, key=lambda pattern: pattern.norm_kept)
        text += f" (--pattern {best.pattern} keeps {best.norm_kept:.1%})"
    return text + ". Norms are a hint, not quality: measure the pruned model on your own data."


def warnings_for(source: SourceFacts, tensors: Sequence[TensorStats]) -> tuple[str, ...]:
    """Warnings of Inf, NaN, fp8 and roles that are guessed."""
    found = []
    if source.roles_from == "headers":
        found.append(
            f"Roles come from tensor names and shapes only ({source.roles_detail}); "
            "check the table by role before pruning."
        )
    if source.quantization:
        found.append(f"The checkpoint is quantized ({source.quantization}): it cannot be pruned.")
    for kind in ("nans", "infs"):
        bad = [t for t in tensors if getattr(t, kind)]
        if bad:
            what = "NaN" if kind == "nans" else "Inf"
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            found.append(f"Tensor '{bad[0].name}'{more} holds {what}.")
    return tuple(found)


# --- groups: a role, a component, a layer ---------------------------------------------------------


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
    near: Counter[str] = Counter()
    for tensor in tensors:
        near.update(tensor.near_zero)
    return GroupStats(
        tensors=len(tensors),
        weights=weights,
        prunable_weights=sum(t.numel for t in tensors if t.prunable),
        nbytes=sum(t.numel * BY_LABEL[t.dtype].bits // 8 for t in tensors),
        zeros=sum(t.zeros for t in tensors),
        near_zero=dict(near),
        std=float(max(0.0, norm / finite - mean * mean) ** 0.5) if finite else 0.0,
        largest=max(largest, default=0.0),
        norm_squared=norm,
    )
