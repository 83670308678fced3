"""What ``--remote`` shows: a model on the Hub by its headers, and the space that it takes here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.cli.analyze_screen import source_rows
from prunectl.cli.tables import columns, facts, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.analysis.remote import DiskNeed, RemoteAnalysis, RemoteFile, RemoteSpace

_MOST_FILES = 12


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
