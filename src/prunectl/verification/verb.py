"""The ``verify`` verb."""

from __future__ import annotations

import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Literal

import blake3

from prunectl.checkpoint.checkpoint import Checkpoint, open_checkpoint
from prunectl.checkpoint.index import read_index
from prunectl.checkpoint.sidefiles import list_folder
from prunectl.errors import (
    BadManifest,
    ModelNotFound,
    PrunectlError,
    SourceError,
    UnknownArchitecture,
)
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.sink.manifest import Manifest, TensorRecord, read_manifest
from prunectl.sink.shards import INDEX_NAME
from prunectl.sink.target import MANIFEST_NAME
from prunectl.tensorspec import DTYPES, TensorSpec
from prunectl.verification.findings import CHECKS, NEED_SOURCE, Findings
from prunectl.verification.result import VerifyReport
from prunectl.verification.weights import Source, check_weights, source_tensors

CARD_NAME = "README.md"


def verify(
    folder: str | os.PathLike[str],
    *,
    source: Checkpoint | Literal["auto"] | None = "auto",
    trust_remote_code: bool = False,
    jobs: int | None = None,
    on_event: OnEvent = ignore_events,
) -> VerifyReport:
    """Re-read an output of ``prune`` and compare it with its manifest and its source.

    Args:
        folder: the output.
        source: the checkpoint it was made from; ``auto`` opens what the manifest names, if it is
            reachable and still the same; None leaves these checks out.
        trust_remote_code: let the model's own code build its module tree.
        jobs: threads.
        on_event: receives progress.

    Returns:
        A report; differences are listed in it, not raised.

    Raises:
        BadManifest: there is no manifest that can be read.
    """
    started = time.perf_counter()
    path = Path(folder)
    manifest = read_manifest(path)
    findings = Findings()
    _check_files(path, manifest, findings)
    _check_index(path, manifest, findings)
    origin = _find_source(manifest, source, findings, on_event)
    zeros = tensors = 0
    try:
        output = open_checkpoint(path, trust_remote_code=trust_remote_code)
    except SourceError as error:
        findings.add("files", path.name, f"cannot be read as a checkpoint: {error.message}")
        skipped = set(CHECKS) - {"files", "side files", "index"}
        findings.impossible.update(dict.fromkeys(skipped, "the weights cannot be read"))
    else:
        zeros = _check_tensors(output, manifest, origin, findings, jobs, on_event)
        tensors = len(output.tensors)
        _check_loads(output, manifest, findings, on_event)
    if origin is not None:
        _check_source_files(path, manifest, origin, findings)
    return VerifyReport(
        path, tensors, zeros, tuple(findings.checks()), tuple(findings.differences),
        time.perf_counter() - started,
    )  # fmt: skip


# --- files ------------------------------------------------------------------------------------


def _check_files(folder: Path, manifest: Manifest, findings: Findings) -> None:
    weights = {tensor.file for tensor in manifest.tensors}
    listed = {file.name for file in manifest.files} | weights
    present = set(_all_files(folder))
    for name in sorted(listed - present):
        findings.add("files", name, "is missing")
    for name in sorted(present - listed - {MANIFEST_NAME, CARD_NAME}):
        findings.add("files", name, "is not in the manifest")
    for file in manifest.files:
        if file.name in present and _digest(folder / file.name) != file.blake3:
            findings.add("side files", file.name, "its bytes differ from those that were written")


def _all_files(folder: Path) -> list[str]:
    """Files of the output; hidden ones at the top too, but not a repository's own folders."""
    return [name for name in list_folder(folder) if not name.startswith(".git/")]


def _digest(path: Path) -> str | None:
    """BLAKE3 of a file; None if it cannot be read, for example a link that leads nowhere."""
    digest = blake3.blake3()
    try:
        digest.update_mmap(path)
    except OSError:
        return None
    return digest.hexdigest()


def _check_source_files(
    folder: Path, manifest: Manifest, origin: Source, findings: Findings
) -> None:
    listed = {file.name for file in manifest.files} - {INDEX_NAME}
    expected = set(origin.checkpoint.side_files)
    for name in sorted(expected - listed):
        findings.add("side files of the source", name, "is in the source, not in the output")
    for name in sorted(listed & expected):
        ours, theirs = folder / name, origin.checkpoint.folder / name
        if ours.is_file() and _digest(ours) != _digest(theirs):
            findings.add("side files of the source", name, "differs from the source's")


def _check_index(folder: Path, manifest: Manifest, findings: Findings) -> None:
    files = {tensor.file for tensor in manifest.tensors}
    path = folder / INDEX_NAME
    if not path.is_file():
        if len(files) > 1:
            findings.add("index", INDEX_NAME, "is missing, and there are several weight files")
        return
    try:
        where = read_index(path)
    except SourceError as error:
        findings.add("index", INDEX_NAME, error.message)
        return
    for tensor in manifest.tensors:
        if where.get(tensor.name) != tensor.file:
            findings.add("index", tensor.name, f"is in {tensor.file}, the index says otherwise")
    for name in sorted(where.keys() - {tensor.name for tensor in manifest.tensors}):
        findings.add("index", name, "is in the index and not in the manifest")


# --- weights ----------------------------------------------------------------------------------


def _find_source(
    manifest: Manifest,
    source: Checkpoint | Literal["auto"] | None,
    findings: Findings,
    on_event: OnEvent,
) -> Source | None:
    why = "left out as asked"
    checkpoint = source if isinstance(source, Checkpoint) else None
    if source == "auto":
        try:
            checkpoint = _open_recorded(manifest)
        except PrunectlError as error:
            why = f"the source is not reachable ({error.message})"
    if checkpoint is None:
        findings.impossible.update(dict.fromkeys(NEED_SOURCE, why))
        if source == "auto":
            on_event(Note(f"checked without the source: {why}"))
        return None
    return Source(checkpoint, source_tensors(checkpoint))


def _open_recorded(manifest: Manifest) -> Checkpoint:
    record = manifest.source
    if record.kind != "hub" and not Path(record.model).expanduser().exists():
        # A relative path seen from another folder must not be taken for a Hub id.
        raise ModelNotFound(record.model, "no such file or folder")
    checkpoint = (
        open_checkpoint(record.repo_id, revision=record.commit)
        if record.kind == "hub" and record.repo_id
        else open_checkpoint(record.model)
    )
    recorded = {file.name: file.size for file in record.files}
    present = {file.name: file.size for file in checkpoint.files}
    if recorded != present:
        raise BadManifest(record.model, "its weight files are not the ones that were pruned")
    return checkpoint


def _check_tensors(
    output: Checkpoint,
    manifest: Manifest,
    origin: Source | None,
    findings: Findings,
    jobs: int | None,
    on_event: OnEvent,
) -> int:
    records = {record.name: record for record in manifest.tensors}
    present = {tensor.name for tensor in output.tensors}
    for name in sorted(records.keys() - present):
        findings.add("shapes", name, "is missing")
    for name in sorted(present - records.keys()):
        findings.add("shapes", name, "is not in the manifest")
    if origin is not None:
        # A further name of a tied tensor need not be written; every tensor must be, under one name.
        names = {t: {t} for t in (tensor.name for tensor in origin.checkpoint.tensors)}
        for alias, owner in origin.checkpoint.aliases.items():
            names[owner].add(alias)
        for owner, spellings in names.items():
            if not spellings & present:
                findings.add("untouched", owner, "is in the source and missing here")
    zeros = overall = 0
    for record, found, differences in check_weights(
        output, records, origin, jobs=jobs, on_event=on_event
    ):
        findings.differences += differences
        zeros += found.zeros if record.pattern else 0
        overall += found.zeros
    _check_totals(manifest, findings)
    return overall


def _check_totals(manifest: Manifest, findings: Findings) -> None:
    """Compare the manifest's totals with its tensors.

    A tied tensor that was written under two names counts once; which ones are tied is not recorded,
    so tensors of equal bytes count once or each.
    """
    records = [record for record in manifest.tensors if DTYPES[record.dtype].is_float]
    unique = {record.blake3: record for record in records}.values()
    for what, count in (("overall", manifest.overall), ("prunable", manifest.prunable)):
        least = [one for one in unique if what == "overall" or one.pattern]
        for field_name, total in (("weights", count.weights), ("zeros", count.zeros)):
            low = sum(_count_of(record, field_name) for record in least)
            high = sum(_count_of(record, field_name) for record in records)
            if not low <= total <= high:
                findings.add(
                    "zeros",
                    MANIFEST_NAME,
                    f"its {what} {field_name} are {total:,}, its tensors' are {low:,} to {high:,}",
                )


def _count_of(record: TensorRecord, what: str) -> int:
    return record.zeros if what == "zeros" else math.prod(record.shape)


def _check_loads(
    output: Checkpoint, manifest: Manifest, findings: Findings, on_event: OnEvent
) -> None:
    from prunectl.checkpoint.modules import check_loadable

    check = partial(check_loadable, output.folder, trust_remote_code=output.trust_remote_code)
    try:
        found = check([tensor.spec for tensor in output.tensors])
        unused: set[str] = set()
        if found.unexpected:
            # What the model has no use for is often in its source too: a pooler, a second head.
            unused = set(check([_spec_of(record) for record in manifest.tensors]).unexpected)
    except UnknownArchitecture as error:
        findings.impossible["loads"] = error.message
        return
    if found.error:
        what = f"{found.model_class} cannot be loaded: {found.error}"
        findings.add("loads", output.folder.name, what)
    for names, what in (
        (found.missing, "is missing: transformers would make it up at random"),
        (sorted({*found.unexpected} - unused), "is not part of the model"),
        (found.mismatched, "has another shape than the model"),
    ):
        for name in names:
            findings.add("loads", name, f"{what} ({found.model_class})")
    if unused:
        some = ", ".join(sorted(unused)[:3])
        on_event(Note(f"{found.model_class} has no use for {len(unused)} tensors: {some}"))


def _spec_of(record: TensorRecord) -> TensorSpec:
    return TensorSpec(record.name, DTYPES[record.dtype], record.shape)
