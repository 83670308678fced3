"""The files of an output: listed, present, unchanged, and identical to the source's."""

from __future__ import annotations

import os
from pathlib import Path

import blake3

from prunectl.checkpoint.index import read_index
from prunectl.documents import read_regular
from prunectl.errors import SourceError
from prunectl.events import Note, OnEvent
from prunectl.methods.table import UPDATING
from prunectl.output.config_json import CONFIG_NAME, unmark
from prunectl.output.manifest import Manifest
from prunectl.output.measured import ResultFile, results_in
from prunectl.output.parts import PARTS_INDEX, PARTS_SUFFIX
from prunectl.output.records import FileRecord
from prunectl.output.shards import INDEX_NAME
from prunectl.output.target import CARD_NAME, MANIFEST_NAME
from prunectl.verification.result import Findings
from prunectl.verification.weights import Source

_GROWS = ".gitattributes"


def check_files(folder: Path, manifest: Manifest, findings: Findings) -> None:
    weights = {tensor.file for tensor in manifest.tensors}
    listed = {file.name for file in manifest.files} | weights
    present = set(_all_files(folder))
    for name in sorted((listed | {CARD_NAME}) - present):
        findings.add("files", name, "is missing")
    for name in sorted(present):
        if (folder / name).is_symlink():
            findings.add("files", name, "is a link; an output must hold its own files")
        elif not (folder / name).is_file():
            findings.add("files", name, "is not a regular file")
    # results of measurements are added to an output later
    results = results_in(folder, manifest.files)
    known = {name for name, result in results.items() if isinstance(result, ResultFile)}
    for name in sorted(present - listed - known - {MANIFEST_NAME, CARD_NAME}):
        why = f", nor a readable result: {results[name]}" if name in results else ""
        findings.add("files", name, f"is not in the manifest{why}")
    for file in manifest.files:
        if file.name in present - known and not _is_written(folder / file.name, file):
            findings.add("side files", file.name, "its bytes changed since it was written")


def _all_files(folder: Path) -> list[str]:
    """All files of the output, including hidden ones, but not the folders of git and hf."""
    found = []
    for base, folders, files in os.walk(folder):
        if Path(base) == folder:
            folders[:] = [name for name in folders if name not in (".git", ".cache")]
        found += [(Path(base) / name).relative_to(folder).as_posix() for name in files]
    return found


def _is_written(path: Path, file: FileRecord) -> bool:
    """Whether a side file has the bytes that were written.

    The Hub appends a line to .gitattributes for each large file without a rule.
    """
    return _digest(path, file.size if file.name == _GROWS else None) == file.blake3


def _digest(path: Path, first: int | None = None) -> str | None:
    """BLAKE3 of a file, or of its ``first`` bytes; None if it cannot be read."""
    if not path.is_file():  # reading a pipe would never end
        return None
    digest = blake3.blake3()
    try:
        if first is None:
            digest.update_mmap(path)
        else:
            with path.open("rb") as file:
                digest.update(file.read(first))
    except OSError:
        return None
    return digest.hexdigest()


def check_source_files(
    folder: Path, manifest: Manifest, origin: Source, findings: Findings
) -> None:
    listed = {file.name for file in manifest.files} - {INDEX_NAME, PARTS_INDEX}
    expected = set(origin.checkpoint.side_files)
    results = results_in(folder, manifest.files).keys()
    later = results_in(origin.checkpoint.folder, ()).keys()
    for name in sorted(expected - listed - later):
        findings.add("side files of the source", name, "is in the source, not in the output")
    for name in sorted((listed & expected) - results):
        ours, theirs = folder / name, origin.checkpoint.folder / name
        length = theirs.stat().st_size if name == _GROWS and theirs.is_file() else None
        is_same = _digest(ours, length) == _digest(theirs) or _is_marked(ours, theirs)
        if ours.is_file() and not is_same:
            findings.add("side files of the source", name, "differs from the source's")


def _is_marked(ours: Path, theirs: Path) -> bool:
    """Whether a config.json is the source's, except for the member that names our loader."""
    if ours.name != CONFIG_NAME:
        return False
    try:
        return unmark(read_regular(ours)) == read_regular(theirs)
    except OSError:
        return False


def check_index(folder: Path, manifest: Manifest, findings: Findings) -> None:
    files = {tensor.file for tensor in manifest.tensors}
    compressed = any(name.endswith(PARTS_SUFFIX) for name in files)
    path = folder / (PARTS_INDEX if compressed else INDEX_NAME)
    if not path.is_file():
        if len(files) > 1:
            findings.add("index", path.name, "is missing, and there are several weight files")
        return
    try:
        where = read_index(path)
    except SourceError as error:
        findings.add("index", path.name, error.message)
        return
    if compressed:  # its entries are parts, which opening compares with the headers
        for name in sorted(set(where.values()) ^ files):
            findings.add("index", name, "is in only one of the index and the manifest")
        return
    for tensor in manifest.tensors:
        if where.get(tensor.name) != tensor.file:
            findings.add("index", tensor.name, f"is in {tensor.file}; the index differs")
    for name in sorted(where.keys() - {tensor.name for tensor in manifest.tensors}):
        findings.add("index", name, "is in the index and not in the manifest")


# --- the calibration that a manifest records ------------------------------------------------------


def check_calibrated(manifest: Manifest, findings: Findings, on_event: OnEvent) -> None:
    """Look for contradictions in the records of tensors whose kept weights were changed.

    Only the samples could show how far outputs are from the dense ones. A stated output error above
    that of a matrix of zeros is a warning, not a difference.
    """
    updated = [record for record in manifest.tensors if record.is_updated]
    if not updated:
        del findings.sentences["calibrated"]
        return
    findings.sentences["survivors"] = (
        "where calibration changed no weights, survivors are bit-identical to the source"
    )
    asked = manifest.arguments
    if not asked.get("calibration"):
        findings.add("calibrated", MANIFEST_NAME, "weights were changed without a calibration")
    elif not (asked.get("refine") or asked.get("reconstruct") or asked.get("method") in UPDATING):
        detail = f"weights were changed, but method {asked.get('method')} changes none"
        findings.add("calibrated", MANIFEST_NAME, detail)
    for record in updated:
        if record.by_magnitude >= max(record.matrices, 1):
            detail = "its weights were changed, but no sample reached it"
            findings.add("calibrated", record.name, detail)
    errors = {
        record.name: record.calibrated.error
        for record in updated
        if record.calibrated is not None and record.calibrated.error is not None
    }
    worse = [name for name, error in errors.items() if error > 1]
    if worse:
        worst = max(worse, key=errors.__getitem__)
        more = f", and {len(worse) - 1:,} more" if len(worse) > 1 else ""
        text = (
            f"{worst}{more}: by the manifest, outputs are further from the dense ones than zeros "
            f"would be (output error {errors[worst]:.0%})"
        )
        on_event(Note(text, warning=True))
