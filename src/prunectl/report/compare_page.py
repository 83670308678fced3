"""The report of a comparison: how alike two models' masks are, and their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunectl import numbers
from prunectl.report.charts import Line, lines_chart, worded
from prunectl.report.page import (
    Bar,
    Facts,
    Figure,
    Page,
    Section,
    Table,
    as_shown,
    finding_cards,
    render,
    run_facts,
)

_HEIGHT = 320
_MEASURES = {
    "Jaccard": ("jaccard", "jaccard_chance_by_tensor"),
    "cosine": ("cosine", "cosine_chance_by_tensor"),
    "kappa": ("kappa", None),
}


def compare_page(document: dict[str, Any]) -> str:
    """A comparison as one self-contained HTML page.

    Args:
        document: the comparison's JSON, schema ``prunectl.comparison/1``.

    Raises:
        MissingLibrary: a library that draws is not installed.
    """
    document = as_shown(document)
    labels = [str(model["label"]) for model in document["models"]]
    compared = document["compared"]
    return render(
        Page(
            title=" and ".join(labels),
            subtitle=f"{numbers.plural(compared['tensors'], 'matrix')} with "
            f"{numbers.plural(compared['weights'], 'weight')} of each are compared",
            cards=finding_cards(document),
            sections=(
                Section("Masks", figures=tuple(_figures(document)), tables=(_masks(document),)),
                Section("By component and layer", tables=tuple(_groups(document))),
                Section("Weights", tables=tuple(_weights(document))),
                Section("How it was measured", facts=tuple(_facts(document))),
            ),
        )
    )  # fmt: skip


def _figures(document: dict[str, Any]) -> Iterator[Figure]:
    """Measures against the sparsity, each with its level of chance, if there are several pairs."""
    pairs = [pair for pair in document["masks"] if pair["sparsity"] is not None]
    if len(pairs) < 2:
        return
    charts: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, (field, chance) in _MEASURES.items():
        lines = [_line("both masks", pairs, field, is_chance=False)]
        if chance is not None:
            lines.append(_line("chance", pairs, chance, is_chance=True))
        charts[(name,)] = lines_chart(
            lines,
            x_title="Sparsity",
            y_title=name,
            x_format="~%",
            y_format="~g",
            height=_HEIGHT,
        )
    yield Figure(
        title="How alike the masks are",
        text="Dashed: the level of chance, where each tensor keeps its share of zeros. Kappa is 0 "
        "at chance and 1 for equal masks.",
        label="Likeness of both masks against sparsity.",
        choices=("Measure",),
        charts=charts,
    )


def _line(label: str, pairs: list[dict[str, Any]], field: str, *, is_chance: bool) -> Line:
    return Line(
        label,
        tuple((pair["sparsity"], pair[field]) for pair in pairs),
        tuple(_number(pair[field]) for pair in pairs),
        is_chance=is_chance,
    )


_HEAD = ("pruned", "pruned", "Jaccard", "chance", "cosine", "chance", "kappa")


def _masks(document: dict[str, Any]) -> Table:
    return Table(
        caption="At each target: the shares that each prunes, and measures",
        head=("target", *_HEAD),
        rows=tuple((str(pair["target"]), *_cells(pair)) for pair in document["masks"]),
    )


def _groups(document: dict[str, Any]) -> Iterator[Table]:
    for pair in document["masks"]:
        for title in ("components", "layers"):
            group: Mapping[str, Any] = pair[title]
            if len(group) > 1:
                yield Table(
                    caption=f"{pair['target']}, by {title.removesuffix('s')}",
                    head=(title.removesuffix("s"), "weights", *_HEAD),
                    rows=tuple(
                        (name, numbers.count(one["weights"]), *_cells(one))
                        for name, one in group.items()
                    ),
                    folded=True,
                )


def _cells(one: Mapping[str, Any]) -> tuple[str | Bar, ...]:
    shares = [part / one["weights"] if one["weights"] else 0.0 for part in one["pruned"]]
    kappa = one["kappa"]
    return (
        *(numbers.share(share) for share in shares),
        _number(one["jaccard"]),
        _number(one["jaccard_chance_by_tensor"]),
        _number(one["cosine"]),
        _number(one["cosine_chance_by_tensor"]),
        "" if kappa is None else Bar(f"{kappa:.3f}", min(1.0, max(0.0, kappa))),
    )


def _weights(document: dict[str, Any]) -> Iterator[Table]:
    known = [model for model in document["models"] if model["stats"] is not None]
    if not known:
        return
    columns = [dict(_numbers_of(model["stats"])) for model in known]
    names = list(dict.fromkeys(name for column in columns for name in column))
    yield Table(
        caption="The weights that are compared",
        head=("", *(str(model["label"]) for model in known)),
        rows=tuple((name, *(column.get(name, "") for column in columns)) for name in names),
    )


def _numbers_of(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "weights", f"{stats['weights']:,}"
    yield "zeros", f"{stats['zeros']:,}"
    yield "standard deviation", worded(stats["std"], numbers.real)
    yield "largest |w|", worded(stats["largest"], numbers.real)
    for limit, count in stats["near_zero"].items():
        yield f"|w| <= {limit}", f"{count:,}"
    for quantile, value in stats["quantiles"].items():
        yield f"{float(quantile):.0%} of |w| are below", worded(value, numbers.real)
    for sparsity, kept in stats["norm_kept"].items():
        yield f"squared norm kept at {float(sparsity):.4g}", worded(kept, _percent)
    for pattern, kept in stats["patterns"].items():
        yield f"squared norm kept by {pattern}", worded(kept, _percent)


def _facts(document: dict[str, Any]) -> Iterator[Facts]:
    kinds = [
        (str(one["label"]), f"{one['model']}, by its {one['kind']}") for one in document["models"]
    ]
    yield run_facts(document, *kinds)
    for model in document["models"]:
        if model["unmatched"]:
            unmatched = tuple((str(k), str(v)) for k, v in model["unmatched"].items())
            yield Facts(f"Only in {model['label']}", unmatched)


def _percent(value: float) -> str:
    return numbers.share(value, 2)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
