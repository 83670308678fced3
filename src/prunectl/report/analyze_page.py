"""The report of an analysis: magnitudes, what pruning takes where, N:M losses and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prunectl import numbers
from prunectl._version import __version__
from prunectl.analysis.result import Analysis, SourceFacts, TensorStats
from prunectl.analysis.sizes import stored_as
from prunectl.report.analyze_charts import CUT, heat_map, histograms, norm_curve, pattern_losses
from prunectl.report.page import Bar, Card, Facts, Figure, Page, Section, Slider, Table, render

_START = 0.3
"""The initial sparsity of the slider."""
_ROWS = 1000
"""Most tensors in the table, since browsers are slow with more."""


def analyze_page(analysis: Analysis, command: str = "") -> str:
    """An analysis as one self-contained HTML page.

    Args:
        command: that made the analysis, for the page; it must hold no secrets.

    Raises:
        MissingLibrary: a library that draws is not installed.
    """
    source = analysis.source
    is_path = source.kind in ("folder", "file")
    sections = [_magnitudes(analysis), _cuts(analysis), _patterns(analysis), _sizes(analysis)]
    return render(
        Page(
            title=f"Weights of {Path(source.model).name if is_path else source.model}",
            subtitle=analysis.advice,
            cards=tuple(_cards(analysis)),
            warnings=analysis.warnings,
            sections=(
                *(section for section in sections if section is not None),
                Section("All tensors", tables=(_tensors(analysis),)),
                Section("Where it comes from", facts=tuple(_facts(analysis, command))),
            ),
        )
    )


def _cards(analysis: Analysis) -> Iterator[Card]:
    source = analysis.source
    prunable = source.prunable_weights / source.weights if source.weights else 0.0
    dtypes = ", ".join(source.dtypes)
    yield Card(
        "Parameters",
        numbers.count(source.weights),
        lines=(
            ("prunable", numbers.count(source.prunable_weights)),
            ("share of all", numbers.share(prunable)),
            ("layers", f"{source.layers:,}"),
        ),
    )
    yield Card(
        "Size",
        numbers.size(source.file_bytes),
        lines=(
            ("type", dtypes),
            ("tensors", f"{source.tensors:,}"),
            ("files", f"{source.shards:,} {source.format}"),
        ),
    )
    safe = [row for row in analysis.thresholds if row.norm_kept >= 0.99]
    if safe:
        row = safe[-1]
        yield Card(
            "One threshold",
            f"{row.sparsity:.0%}",
            "sparsity keeps 99% of the norm",
            lines=(
                ("squared norm kept", numbers.share(row.norm_kept, 2)),
                ("weights that go", numbers.count(row.count)),
                ("their magnitude", f"up to {numbers.real(row.threshold)}"),
            ),
        )
    for pattern in [one for one in analysis.patterns if one.eligible][:1]:
        yield Card(
            pattern.pattern,
            numbers.share(pattern.norm_kept),
            "of the squared norm kept",
            lines=(
                ("sparsity", numbers.share(pattern.sparsity)),
                ("tensors that fit", f"{pattern.eligible:,}"),
                ("that do not", f"{pattern.ineligible:,}"),
            ),
        )


def _magnitudes(analysis: Analysis) -> Section:
    charts = histograms(analysis)
    figure = Figure(
        "How magnitudes are spread",
        charts,
        "How many weights lie between a magnitude and its double, counted exactly. Below the "
        "dashed lines are 10%, 50% and 90% of the prunable weights. Matrices and layers are the "
        "prunable ones.",
        choices=("Group", "Scale"),
    )
    head = ("role", "tensors", "weights", "size", "zero", "near zero", "std", "max |w|")
    rows = []
    for label, group in analysis.roles.items():
        near = group.near_zero.get("0.01*std", 0)
        rows.append(
            (
                label,
                f"{group.tensors:,}",
                numbers.count(group.weights),
                numbers.size(group.nbytes),
                numbers.share(group.zeros / group.weights) if group.weights else "",
                numbers.share(near / group.weights) if group.weights else "",
                numbers.real(group.std),
                numbers.real(group.largest),
            )
        )
    table = Table("By role (near zero: |w| at most 0.01 std of its tensor)", head, tuple(rows))
    return Section("Magnitudes", figures=(figure,) if charts else (), tables=(table,))


def _cuts(analysis: Analysis) -> Section | None:
    cuts, weights = analysis.cuts, analysis.source.prunable_weights
    if not cuts.cells:
        return None
    texts = tuple(
        f"{numbers.share(zeros / weights, 2)} of the prunable weights are zero"
        + (
            f": all with |w| below {numbers.real(threshold)}"
            if threshold
            else ", as they are stored"
        )
        + f"; {numbers.share(kept, 2)} of the squared norm stays"
        for threshold, zeros, kept in zip(cuts.thresholds, cuts.zeros, cuts.norm_kept, strict=True)
    )
    start = min(range(len(texts)), key=lambda i: abs(cuts.zeros[i] / weights - _START))
    figures = (
        Figure(
            "Zeros by layer and matrix",
            {(): heat_map(cuts)},
            "One threshold for the whole model takes more from some matrices than from others.",
        ),
        Figure("What stays of the squared norm", {(): norm_curve(cuts, weights)}),
    )
    return Section(
        "Global magnitude pruning",
        "Move the slider: what prune makes of the model at this sparsity, without data or training "
        "(unstructured, one threshold). The counts are exact.",
        slider=Slider("Sparsity", CUT, texts, start),
        figures=figures,
        tables=(_thresholds(analysis),),
    )


def _thresholds(analysis: Analysis) -> Table:
    head = ("sparsity", "threshold", "zeros", "norm kept", "layers, least", "most")
    rows = tuple(
        (
            f"{row.sparsity:.0%}",
            numbers.real(row.threshold),
            f"{row.count:,}",
            numbers.share(row.norm_kept, 2),
            numbers.share(min(row.layers.values())) if row.layers else "",
            numbers.share(max(row.layers.values())) if row.layers else "",
        )
        for row in analysis.thresholds
    )
    return Table("Thresholds for each 5%", head, rows, left=(), folded=True)


def _patterns(analysis: Analysis) -> Section | None:
    if not analysis.patterns:
        return None
    charts = pattern_losses(analysis)
    figure = Figure(
        "What each tensor loses",
        charts,
        "The share of a tensor's squared norm that is pruned if it takes the pattern.",
        choices=("Pattern",),
    )
    reasons = [
        f"{row.pattern}: {numbers.plural(count, 'tensor')} left dense, {reason}."
        for row in analysis.patterns
        for reason, count in row.reasons.items()
    ]
    head = ("pattern", "sparsity", "norm kept", "tensors that fit", "that do not")
    rows = tuple(
        (
            row.pattern,
            numbers.share(row.sparsity),
            numbers.share(row.norm_kept, 2),
            f"{row.eligible:,}",
            f"{row.ineligible:,}",
        )
        for row in analysis.patterns
    )
    text = " ".join(["N weights kept of every M along the inputs.", *reasons])
    table = Table("By pattern", head, rows)
    return Section("N:M patterns", text, figures=(figure,) if charts else (), tables=(table,))


def _sizes(analysis: Analysis) -> Section | None:
    sizes, dense = analysis.predicted_bytes, analysis.source.tensor_bytes
    if not sizes or not dense:
        return None
    largest = max(sizes.values())
    rows = tuple(
        (
            stored_as(id_),
            Bar(numbers.size(nbytes), round(nbytes / largest, 4)),
            numbers.share(nbytes / dense),
        )
        for id_, nbytes in sizes.items()
    )
    table = Table("Size of all tensors, by layout", ("stored as", "size", "of dense"), rows, (0, 1))
    return Section(
        "Sizes", "Predicted from the histograms; prunectl export makes it real.", tables=(table,)
    )


def _tensors(analysis: Analysis) -> Table:
    pattern = analysis.patterns[0].pattern if analysis.patterns else None
    shown = analysis.tensors[:_ROWS]
    head = ("tensor", "role", "dtype", "shape", "zero", "std", "max |w|",
            *([f"{pattern} keeps"] if pattern else []))  # fmt: skip
    count = numbers.plural(len(analysis.tensors), "tensor")
    caption = count if len(shown) == len(analysis.tensors) else f"The first {_ROWS:,} of {count}"
    rows = tuple(tuple(_tensor_cells(tensor, pattern)) for tensor in shown)
    return Table(caption, head, rows, left=(0, 1, 2), folded=True)


def _tensor_cells(tensor: TensorStats, pattern: str | None) -> Iterator[str]:
    measured = tensor.measured and tensor.numel > 0
    yield tensor.name
    yield tensor.role
    yield tensor.dtype
    yield "x".join(map(str, tensor.shape)) or "scalar"
    yield numbers.share(tensor.zeros / tensor.numel) if measured else ""
    yield numbers.real(tensor.std) if measured else ""
    yield numbers.real(max(abs(tensor.minimum), abs(tensor.maximum))) if measured else ""
    if pattern:
        fit = tensor.patterns.get(pattern)
        yield "" if fit is None or fit.norm_kept is None else numbers.share(fit.norm_kept, 2)


def _facts(analysis: Analysis, command: str) -> Iterator[Facts]:
    source = analysis.source
    how = "kept from an earlier run" if analysis.from_cache else "read from all weights"
    run = [
        ("command", command),
        ("prunectl", __version__),
        ("numbers", f"{how}, {numbers.duration(analysis.seconds)}"),
    ]
    yield Facts("Run", _given(run), code=("command",))
    yield Facts("Checkpoint", _given(_source_rows(source)))


def _source_rows(source: SourceFacts) -> list[tuple[str, str]]:
    roles = {"modules": "the model's own modules", "headers": "names and shapes only"}
    return [
        ("model", source.model),
        ("revision", source.revision or ""),
        ("commit", source.commit or ""),
        ("architecture", source.architecture),
        ("quantized", source.quantization),
        ("types", ", ".join(f"{k}: {numbers.count(v)}" for k, v in source.dtypes.items())),
        ("bytes", f"{source.file_bytes:,} in {numbers.plural(source.shards, 'file')}, "
                  f"{source.format}"),
        ("roles from", f"{roles.get(source.roles_from, source.roles_from)}"
                       + (f" ({source.roles_detail})" if source.roles_detail else "")),
    ]  # fmt: skip


def _given(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(row for row in rows if row[1])
