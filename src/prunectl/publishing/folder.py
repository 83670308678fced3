"""Which files of an output are published, and its model card as it goes to the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from prunectl.documents import read_object, read_regular
from prunectl.errors import BadManifest
from prunectl.events import Note, OnEvent
from prunectl.hub.upload import Content
from prunectl.output.card import hub_card
from prunectl.output.manifest import Manifest
from prunectl.output.measured import ResultFile, results_in, weights_of
from prunectl.output.target import CARD_NAME, MANIFEST_NAME

ATTRIBUTES = ".gitattributes"


def local_files(folder: Path, manifest: Manifest) -> dict[str, Content]:
    """The manifest and the files that it lists; :func:`card_of` makes the model card."""
    names = {file.name for file in manifest.files} | {tensor.file for tensor in manifest.tensors}
    return {name: folder / name for name in sorted(names | {MANIFEST_NAME})}


def published_results(folder: Path, manifest: Manifest, on_event: OnEvent) -> list[ResultFile]:
    """Results in the folder that are about its weights; a warning names each that is not."""
    results = results_in(folder, manifest.files)
    read = [result for result in results.values() if isinstance(result, ResultFile)]
    weights = weights_of(folder, manifest)
    for result in read:
        if not result.is_about(weights):
            what = f"{result.name} measures other weights than these: it is not published"
            on_event(Note(what, warning=True))
    return [result for result in read if result.is_about(weights)]


Stamps = dict[str, tuple[int, ...] | None]
"""By file name: values that change when somebody writes to the file; None without a file."""


def stamps(folder: Path, names: Iterable[str]) -> Stamps:
    """Sizes, times and inodes of files."""
    found: Stamps = {}
    for name in names:
        try:
            of = (folder / name).lstat()
        except OSError:
            found[name] = None
        else:
            found[name] = (of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_ino)
    return found


def local_card(folder: Path) -> str:
    """The text of the folder's model card.

    Raises:
        BadManifest: it cannot be read, or is not UTF-8.
    """
    path = folder / CARD_NAME
    try:
        return read_regular(path).decode()
    except OSError as error:
        raise BadManifest(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise BadManifest(path, f"is not UTF-8 ({error})", hint="save it as UTF-8") from None


def card_of(
    text: str, folder: Path, manifest: Manifest, repo_id: str, results: Sequence[ResultFile] = ()
) -> str:
    """The folder's model card as it goes to the Hub.

    Args:
        text: from :func:`local_card`.
        results: measurements to show.
    """
    patterns = {
        # The tag of a pattern promises whole matrices, which N:M kernels need.
        tensor.pattern if tensor.pattern_rows is None else f"{tensor.pattern}-rows"
        for tensor in manifest.tensors
        if tensor.pattern
    }
    measured = [line for result in results for line in ("", *result.lines)][1:]
    return hub_card(text, repo_id, patterns=patterns, library=_library(folder), measured=measured)


def _library(folder: Path) -> str | None:
    """transformers, if the folder has a config that it understands."""
    return "transformers" if "model_type" in read_object(folder / "config.json") else None
