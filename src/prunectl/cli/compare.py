"""``prunectl compare``: which weights two models would lose, and whose weights are smaller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.command_line import ARGV, recorded_command, visible
from prunectl.cli.output import Output
from prunectl.cli.tables import columns, facts, heading, sentence
from prunectl.errors import InvalidOption
from prunectl.option import OUTPUT, Fields, Option
from prunectl.studies.settings import CompareSettings
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.checkpoint.mask_file import MaskFile
    from prunectl.measure.model_stats import ModelStats
    from prunectl.studies.compare.result import ComparedModel, Comparison, MaskPair, Overlap

EXAMPLES = (
    "prunectl compare org/name ./my-model",
    "prunectl compare org/name org/name@v1.0 --sparsity 0.5 --pattern 2:4",
    "prunectl compare ./my-model masks.safetensors --all",
    "prunectl compare org/name ./my-model --json | jq '.masks[].jaccard'",
)


def compare(
    context: typer.Context,
    first: Annotated[
        str,
        Option(
            "Hub id (org/name or org/name@revision), folder (dense, pruned or exported), weights "
            "file, demo, or a file of masks.",
            "FIRST",
            is_argument=True,
        ),
    ],
    second: Annotated[str, Option("What it is compared with.", "SECOND", is_argument=True)],
    settings: CompareSettings,
    saved: Annotated[options.Saved, Fields(only=("output", "html"))],
    access: options.Access,
    out: Output,
    everything: Annotated[
        bool,
        Option("Show every layer, and every tensor without a twin.", heading=OUTPUT, name="--all"),
    ] = False,
    no_cache: options.NoCache = False,
    jobs: options.Jobs = None,
) -> None:
    """Compare the masks and the weights of two models of one architecture.

    Masks are those that prune would make; each number is shown with its chance level. A side
    that is pruned already is compared by its zeros.
    """
    from prunectl.report.compare_page import compare_page
    from prunectl.studies.compare.verb import compare

    saved.check()
    one, other = (_side(given, access, out) for given in (first, second))
    for side in (one, other):
        options.keep_source(side, saved.named)
    with out.progress() as on_event:
        result = compare(
            one,
            other,
            settings,
            use_cache=not no_cache,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
        )
    document = result.to_json()
    saved.save(out, document, html=lambda: compare_page(document))
    out.data(document)
    out.show(*compare_screen(result, everything=everything))


def _side(given: str, access: options.Access, out: Output) -> Checkpoint | MaskFile:
    from prunectl.checkpoint.mask_file import read_masks
    from prunectl.studies.compare.verb import is_mask_path

    if not given.strip():
        raise InvalidOption("a model's name is empty", hint="give two models, folders or masks")
    path = expanded(given)
    if is_mask_path(path):
        return read_masks(path)
    checkpoint = access.open(given, out, compressed=True)
    options.warn_of(checkpoint, out)
    return checkpoint


_FEW = 3
"""Tensors without a twin that are named."""
_KINDS = {"weights": "", "zeros": ", by its zeros", "masks": ", a file of masks"}


def compare_screen(result: Comparison, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    labels = [side.label for side in result.models]
    yield heading(" and ".join(labels))
    yield facts(_compared(result, everything=everything))
    yield heading("Masks, and what chance alone would give")
    yield columns(
        ("sparsity", "pruned", "", "Jaccard", "chance", "cosine", "chance", "kappa"),
        [_mask_cells(pair) for pair in result.masks],
    )
    known = [pair for pair in result.masks if pair.sparsity is not None] or list(result.masks)
    yield from _groups(known[-1], everything=everything)
    yield from _weights(result)
    for text in result.findings:
        yield sentence(visible(text))


def _compared(result: Comparison, *, everything: bool) -> list[tuple[str, str]]:
    rows = [
        (
            "compared",
            f"{numbers.plural(result.tensors, 'matrix')}, "
            f"{numbers.plural(result.weights, 'weight')}",
        )
    ]
    rows += [(visible(side.label) + _KINDS[side.kind], side.model) for side in result.models
             if side.model != side.label or side.kind != "weights"]  # fmt: skip
    if result.renamed:
        one, other = result.renamed[0]
        rows.append(("renamed", f"{len(result.renamed):,}, such as {one} and {other}"))
    for side in result.models:
        names = list(side.unmatched)
        shown = names if everything else names[:_FEW]
        more = f", and {len(names) - len(shown):,} more (--all)" if len(names) > len(shown) else ""
        listed = "; ".join(f"{name} ({side.unmatched[name]})" for name in shown)
        rows.append((f"only in {visible(side.label)}", listed + more if names else ""))
    return rows


def _mask_cells(pair: MaskPair) -> tuple[str, ...]:
    one = pair.overlap
    return (
        pair.target if pair.sparsity is None else numbers.share(pair.sparsity),
        _share(one.first, one.weights),
        "" if one.first == one.second else _share(one.second, one.weights),
        *_alike(one),
    )


def _alike(one: Overlap) -> tuple[str, ...]:
    return (
        _number(one.jaccard),
        _number(one.jaccard_chance_by_tensor),
        _number(one.cosine),
        _number(one.cosine_chance_by_tensor),
        _number(one.kappa),
    )


def _groups(pair: MaskPair, *, everything: bool) -> Iterator[RenderableType]:
    """By component and, where there are few or all are wanted, by layer."""
    groups = [("component", pair.components), ("layer", pair.layers)]
    for title, group in groups:
        if len(group) < 2:
            continue
        names = list(group)
        cut = not everything and len(names) > 2 * _FEW + 1 and title == "layer"
        shown = [*names[:_FEW], "", *names[-_FEW:]] if cut else names
        yield heading(f"{pair.at.capitalize()}, by {title}")
        yield columns(
            (title, "weights", "pruned", "", "Jaccard", "chance", "cosine", "chance", "kappa"),
            [_group_cells(name, group[name]) if name else ("...",) for name in shown],
        )


def _group_cells(name: str, one: Overlap) -> tuple[str, ...]:
    return (
        name,
        numbers.count(one.weights),
        _share(one.first, one.weights),
        "" if one.first == one.second else _share(one.second, one.weights),
        *_alike(one),
    )


def _weights(result: Comparison) -> Iterator[RenderableType]:
    """Numbers on the weights, side by side."""
    known = [side for side in result.models if side.stats is not None]
    if not known:
        return
    yield heading("Weights that are compared")
    columns_of = [_weight_rows(side) for side in known]
    rows = [
        (name, *(column.get(name, "") for column in columns_of))
        for name in dict.fromkeys(name for column in columns_of for name in column)
    ]
    yield columns(("", *(visible(side.label) for side in known)), rows)


def _weight_rows(side: ComparedModel) -> dict[str, str]:
    stats = side.stats
    assert stats is not None
    rows = {
        "zero": _share(stats.zeros, stats.weights),
        "std": numbers.real(stats.std),
        "max |w|": numbers.real(stats.largest),
    }
    rows |= {f"|w| <= {limit}": f"{n:,}" for limit, n in stats.near_zero.items()}
    rows |= {
        f"{float(q):.0%} of |w| below": _of_std(value, stats)
        for q, value in stats.quantiles.items()
    }
    rows |= {
        f"norm kept at {numbers.share(float(s))}": numbers.share(kept, 2)
        for s, kept in stats.norm_kept.items()
    }
    rows |= {
        f"norm kept by {pattern}": numbers.share(kept, 2)
        for pattern, kept in stats.patterns.items()
    }
    return rows


def _of_std(value: float, stats: ModelStats) -> str:
    of = f" ({value / stats.std:.3f} std)" if stats.std else ""
    return f"{numbers.real(value)}{of}"


def _share(part: int, whole: int) -> str:
    return numbers.share(part / whole) if whole else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
