"""An analysis as people read it, of the weights, or of a model on the Hub by its headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.analysis.sizes import stored_as
from prunectl.cli.histogram import histogram_cells, histogram_rows
from prunectl.cli.tables import columns, facts, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.analysis.remote import DiskNeed, RemoteAnalysis, RemoteFile, RemoteSpace
    from prunectl.analysis.result import Analysis, GroupStats, SourceFacts, TensorStats, Threshold

REFERENCE = 0.5
"""The sparsity at which layers and tensors are compared."""
_ENDS, _MANY = 3, 14
_MOST_FILES = 12
_MOST_PATTERNS = 3
"""N:M columns in the table by layer: more do not fit into 80 columns."""


def analysis_screen(
    analysis: Analysis, *, everything: bool = False, verbose: bool = False
) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: every layer, threshold and tensor. verbose: also where the roles come from.
    """
    yield heading(analysis.source.model)
    yield facts(source_rows(analysis.source, verbose=verbose))
    yield from _histogram(analysis)
    yield heading("By role (near zero: |w| <= 0.01 std of its tensor)")
    yield columns(
        ("role", "tensors", "weights", "size", "zero", "near zero", "std", "max |w|"),
        [(role, *_group_cells(group)) for role, group in analysis.roles.items()],
    )
    yield from _layers(analysis, everything=everything)
    yield from _thresholds(analysis, everything=everything)
    yield from _patterns(analysis)
    yield from _bytes(analysis)
    if everything:
        yield from _tensors(analysis)
    if analysis.advice:
        yield sentence(f"Next: {analysis.advice}")


def source_rows(source: SourceFacts, *, verbose: bool) -> list[tuple[str, str]]:
    """What a checkpoint is, in words and their values."""
    prunable = source.prunable_weights / source.weights if source.weights else 0.0
    dtypes = sorted(source.dtypes.items(), key=lambda item: -item[1])
    dtype = dtypes[0][0] if len(dtypes) == 1 else ", ".join(
        f"{label} ({numbers.share(weights / max(source.weights, 1))})" for label, weights in dtypes
    )  # fmt: skip
    files = numbers.plural(source.shards, f"{source.format} file")
    hub = [source.repo_id or "", source.revision and f"at {source.revision}"]
    hub += [source.commit and f"(commit {source.commit[:12]})"]
    roles = {"modules": "the model's own modules", "headers": "names and shapes only"}
    return [
        ("architecture", source.architecture),
        ("parameters", f"{numbers.count(source.weights)}, {numbers.count(source.prunable_weights)} "
                       f"prunable ({numbers.share(prunable)})"),
        ("layers", str(source.layers) if source.layers else ""),
        ("dtype", dtype),
        ("size", f"{numbers.size(source.file_bytes)} in {files}, "
                 f"{numbers.plural(source.tensors, 'tensor')}"),
        ("source", " ".join(part for part in hub if part) if source.repo_id else ""),
        ("quantized", source.quantization),
        ("roles from", roles.get(source.roles_from, source.roles_from)
         + (f" ({source.roles_detail})" if verbose and source.roles_detail else "")),
    ]  # fmt: skip


def _histogram(analysis: Analysis) -> Iterator[RenderableType]:
    tenths = [
        (row.sparsity, row.threshold)
        for row in analysis.thresholds
        if round(row.sparsity * 100) % 10 == 0
    ]
    rows = histogram_rows(analysis.octaves, analysis.prunable_zeros, tenths)
    if not rows:
        return
    yield heading("Magnitudes of the prunable weights, from each |w| to twice that")
    yield columns(
        ("|w|", "", "share", "up to here", "threshold of"),
        histogram_cells(rows),
        left=(0, 1, 4),
    )


def _group_cells(group: GroupStats) -> tuple[str, ...]:
    near = group.near_zero.get("0.01*std")
    return (
        numbers.count(group.tensors),
        numbers.count(group.weights),
        numbers.size(group.nbytes),
        numbers.share(group.zeros / group.weights) if group.weights else "",
        numbers.share(near / group.weights) if near is not None and group.weights else "",
        numbers.real(group.std),
        numbers.real(group.largest),
    )


def _at(analysis: Analysis, sparsity: float) -> Threshold | None:
    return next((t for t in analysis.thresholds if abs(t.sparsity - sparsity) < 1e-9), None)


def _layers(analysis: Analysis, *, everything: bool) -> Iterator[RenderableType]:
    if not analysis.layers:
        return
    reference = _at(analysis, REFERENCE)
    pruned = reference.layers if reference else {}
    names = list(analysis.layers)
    shown = names if everything else _condensed(names, pruned)
    patterns = [pattern for pattern in analysis.patterns if pattern.eligible][:_MOST_PATTERNS]
    has_zeros = any(group.zeros for group in analysis.layers.values())
    stacks = {name.rpartition(".")[0] for name in names}
    one_stack = stacks.pop() if len(stacks) == 1 else ""
    rows: list[tuple[str, ...]] = []
    previous = -1
    for name in shown:
        index = names.index(name)
        if index > previous + 1:
            rows.append(("...",) + ("",) * (5 + has_zeros + len(patterns)))
        previous = index
        kept = [pattern.by_layer.get(name) for pattern in patterns]
        rows.append(
            (
                name.removeprefix(f"{one_stack}.") if one_stack else name,
                numbers.count(analysis.layers[name].prunable_weights),
                numbers.share(pruned[name]) if name in pruned else "",
                *("" if value is None else numbers.share(value) for value in kept),
                *_layer_cells(analysis, name, has_zeros=has_zeros),
            )
        )
    which = f" of {one_stack}" if one_stack else ""
    yield heading(f"By layer{which} (at {REFERENCE:.0%}: its zeros with one threshold for all)")
    yield columns(
        (
            *("layer", "prunable", f"at {REFERENCE:.0%}"),
            *(p.pattern if len(patterns) > 2 else f"{p.pattern} keeps" for p in patterns),
            *("std", "max |w|", *(["zero"] if has_zeros else []), "norm share"),
        ),
        rows,
    )
    if len(shown) < len(names):
        yield f"  {len(names) - len(shown)} of {len(names)} layers are left out; --all shows them"
    if any(group.prunable_weights < group.weights for group in analysis.layers.values()):
        first = "std, max |w|, zero" if has_zeros else "std, max |w|"
        yield f"  {first}, norm share: of all tensors; the others: of prunable ones"


def _layer_cells(analysis: Analysis, name: str, *, has_zeros: bool) -> Iterator[str]:
    """What is known of all tensors of a layer, norms and biases too."""
    group = analysis.layers[name]
    norm = sum(layer.norm_squared for layer in analysis.layers.values())
    yield numbers.real(group.std)
    yield numbers.real(group.largest)
    if has_zeros:
        yield numbers.share(group.zeros / group.weights) if group.weights else ""
    yield numbers.share(group.norm_squared / norm) if norm else ""


def _condensed(names: list[str], pruned: dict[str, float]) -> list[str]:
    """The first and last layers and the two that the threshold hits most and least."""
    if len(names) <= _MANY:
        return names
    chosen = {*names[:_ENDS], *names[-_ENDS:]}
    if pruned:
        chosen |= {max(pruned, key=pruned.__getitem__), min(pruned, key=pruned.__getitem__)}
    return [name for name in names if name in chosen]


def _thresholds(analysis: Analysis, *, everything: bool) -> Iterator[RenderableType]:
    shown = [
        row for row in analysis.thresholds if everything or round(row.sparsity * 100) % 10 == 0
    ]
    if not shown:
        return
    yield heading("One threshold for all prunable weights (unstructured, global)")
    yield columns(
        ("sparsity", "threshold", "zeros", "norm kept", "layers, least", "most"),
        [
            (
                f"{row.sparsity:.0%}",
                numbers.real(row.threshold),
                numbers.count(row.count),
                numbers.share(row.norm_kept, 2),
                numbers.share(min(row.layers.values())) if row.layers else "",
                numbers.share(max(row.layers.values())) if row.layers else "",
            )
            for row in shown
        ],
        left=(),
    )


def _patterns(analysis: Analysis) -> Iterator[RenderableType]:
    if not analysis.patterns:
        return
    yield heading("N kept of every M weights along the inputs")
    yield columns(
        ("pattern", "sparsity", "norm kept", "tensors that fit", "that do not"),
        [
            (
                row.pattern,
                numbers.share(row.sparsity),
                numbers.share(row.norm_kept, 2),
                numbers.count(row.eligible),
                numbers.count(row.ineligible),
            )
            for row in analysis.patterns
        ],
    )
    for row in analysis.patterns:
        for reason, tensors in row.reasons.items():
            yield f"  {row.pattern}: {numbers.plural(tensors, 'tensor')} left dense: {reason}"


def _bytes(analysis: Analysis) -> Iterator[RenderableType]:
    sizes = analysis.predicted_bytes
    if not sizes:
        return
    dense = analysis.source.tensor_bytes
    yield heading("Size of all tensors, by layout (predicted; prunectl export makes it real)")
    yield columns(
        ("stored as", "size", "of dense"),
        [
            (stored_as(id_), numbers.size(nbytes), numbers.share(nbytes / dense) if dense else "")
            for id_, nbytes in sizes.items()
        ],
    )


def _tensors(analysis: Analysis) -> Iterator[RenderableType]:
    yield heading("By tensor")
    index = next(
        (i for i, t in enumerate(analysis.thresholds) if abs(t.sparsity - REFERENCE) < 1e-9), None
    )
    yield columns(
        ("tensor", "role", "dtype", "shape", "zero", "std", f"at {REFERENCE:.0%}"),
        [_tensor_cells(tensor, index) for tensor in analysis.tensors],
        left=(0, 1),
    )


def _tensor_cells(tensor: TensorStats, index: int | None) -> tuple[str, ...]:
    is_pruned = index is not None and index < len(tensor.sparsity)
    return (
        tensor.name,
        tensor.role,
        tensor.dtype,
        "x".join(map(str, tensor.shape)) or "scalar",
        numbers.share(tensor.zeros / tensor.numel) if tensor.measured and tensor.numel else "",
        numbers.real(tensor.std) if tensor.measured else "",
        numbers.share(tensor.sparsity[index]) if index is not None and is_pruned else "",
    )


def remote_screen(
    analysis: RemoteAnalysis, *, everything: bool = False, verbose: bool = False
) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: every tensor and every file. verbose: also where the roles come from.
    """
    yield heading(analysis.model)
    if analysis.source is None:
        yield facts(
            [
                ("source", f"{analysis.repo_id} (commit {analysis.commit[:12]})"),
                ("format", "pickle: tensors cannot be listed without a download"),
            ]
        )
    else:
        yield facts(source_rows(analysis.source, verbose=verbose))
        yield heading("By role")
        yield columns(
            ("role", "tensors", "weights", "prunable", "size"),
            [
                (role, *map(numbers.count, (group.tensors, group.weights, group.prunable_weights)),
                 numbers.size(group.nbytes))
                for role, group in analysis.roles.items()
            ],
        )  # fmt: skip
    yield from space_screen(analysis.space, everything=everything)
    if everything and analysis.tensors:
        yield heading("By tensor")
        yield columns(
            ("tensor", "role", "dtype", "shape", "not pruned"),
            [
                (t.name, t.role, t.dtype, "x".join(map(str, t.shape)) or "scalar", t.reason)
                for t in analysis.tensors
            ],
            left=(0, 1, 4),
        )
    yield sentence("No weights were read: headers, sizes and config.json only.")


def space_screen(
    space: RemoteSpace, *, everything: bool = False, more: str = "--all"
) -> Iterator[RenderableType]:
    """Files on the Hub, and what a download and an output take here.

    Args:
        everything: every file. more: the option that asks for them.
    """
    weights = [file for file in space.files if file.weights]
    others = [file for file in space.files if not file.weights]
    shown = weights if everything or len(weights) <= _MOST_FILES else weights[:_MOST_FILES]
    rows = [_file_cells(file.name, [file]) for file in (*shown, *(others if everything else ()))]
    if len(shown) < len(weights):
        rest = weights[len(shown) :]
        rows.append(_file_cells(f"{len(rest)} more ({more} shows them)", rest))
    if others and not everything:
        rows.append(_file_cells(f"{numbers.plural(len(others), 'file')} without weights", others))
    yield heading("Files on the Hub")
    yield columns(("file", "size", "in the cache"), rows, left=(0, 2))
    yield heading("Space")
    yield facts(
        [
            ("on the Hub", numbers.size(space.hub_bytes)),
            ("to download", numbers.size(space.download_bytes)),
            ("output", f"{numbers.size(space.output_bytes)} as a dense checkpoint"),
            *((" and ".join(disk.purposes), _disk(disk)) for disk in space.disks),
        ]
    )


def _file_cells(name: str, files: Sequence[RemoteFile]) -> tuple[str, ...]:
    cached = sum(file.cached for file in files)
    here = "yes" if cached == len(files) else "some" if cached else ""
    return name, numbers.size(sum(file.nbytes for file in files)), here


def _disk(disk: DiskNeed) -> str:
    where = " and ".join(dict.fromkeys(disk.folders))
    verdict = "fits" if disk.fits else "does not fit"
    return (
        f"{numbers.size(disk.needed)} needed, {numbers.size(disk.free)} free: {verdict} ({where})"
    )
