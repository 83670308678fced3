"""The ``verify`` verb."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prunectl import demo
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import local_path, open_checkpoint
from prunectl.errors import (
    BadCheckpoint,
    ModelNotFound,
    PrunectlError,
    SourceError,
    UnknownArchitecture,
)
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.geometry import Rows
from prunectl.loading.compressed import open_model, stored_layouts
from prunectl.output.manifest import Manifest, read_manifest
from prunectl.output.records import TensorRecord
from prunectl.output.target import MANIFEST_NAME
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.run import Run
from prunectl.pattern import pruned_count
from prunectl.tensorspec import DTYPES, TensorSpec
from prunectl.verification.files import (
    check_calibrated,
    check_files,
    check_index,
    check_source_files,
)
from prunectl.verification.result import CHECKS, NEED_SOURCE, Findings, VerifyReport
from prunectl.verification.weights import Source, check_weights


def verify(
    folder: str | os.PathLike[str],
    *,
    source: Checkpoint | str | os.PathLike[str] | None = "auto",
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    jobs: int | None = None,
    ranks: Ranks = ALONE,
    on_event: OnEvent = ignore_events,
) -> VerifyReport:
    """Re-read an output of ``prune`` or ``export`` and compare it with its manifest and its source.

    Args:
        folder: the output.
        source: the checkpoint that it was made from, open or an argument of
            :func:`open_checkpoint`. ``auto`` opens the one that the manifest names, if it is
            reachable and unchanged; a Hub source is downloaded if it is not cached. None skips
            these checks.
        token, cache_dir: for a source on the Hub.
        trust_remote_code: let the model's own code build its module tree.
        jobs: threads.
        ranks: the processes that share the work; :func:`prunectl.joined_ranks`.
        on_event: receives progress.

    Returns:
        A report; differences are listed in it, not raised.

    Raises:
        BadManifest: there is no readable manifest.
        SourceError: the given source cannot be opened.
    """
    started = time.perf_counter()
    run = Run(jobs, ranks, on_event=on_event)
    path = Path(folder)
    manifest = read_manifest(path)
    findings = Findings()
    check_files(path, manifest, findings)
    check_index(path, manifest, findings)
    if isinstance(source, str | os.PathLike) and source != "auto":
        source = open_checkpoint(source, token=token, cache_dir=cache_dir)
    check_calibrated(manifest, findings, on_event)
    opener = partial(_open_recorded, manifest, token, cache_dir, on_event)
    origin = _find_source(opener, source, findings, on_event)
    zeros = tensors = 0
    output: Checkpoint | SourceError
    try:
        output = open_model(path, trust_remote_code=trust_remote_code)
    except SourceError as error:
        output = error
    _check_ranks(ranks, output, origin)
    if isinstance(output, SourceError):
        findings.add("files", path.name, f"cannot be read as a checkpoint: {output.message}")
        skipped = set(CHECKS) - {"files", "side files", "index"}
        findings.impossible.update(dict.fromkeys(skipped, "the weights cannot be read"))
    else:
        zeros = _check_tensors(output, manifest, origin, findings, run)
        tensors = len(output.tensors)
        _check_loads(output, manifest, findings, on_event)
    if origin is not None:
        check_source_files(path, manifest, origin, findings)
    return VerifyReport(
        path, tensors, zeros, tuple(findings.checks()), tuple(findings.differences),
        time.perf_counter() - started,
    )  # fmt: skip


def _check_ranks(ranks: Ranks, output: Checkpoint | SourceError, origin: Source | None) -> None:
    """Check that all ranks compare the same files."""
    opened = output.message if isinstance(output, SourceError) else output.identity()
    source = origin.checkpoint.identity() if origin else None
    hint = "all need the output and its source, from a shared disk or the Hub"
    ranks.check_same("output and source", (opened, source), hint=hint)


def _find_source(
    open_recorded: Callable[[], Checkpoint],
    source: object,
    findings: Findings,
    on_event: OnEvent,
) -> Source | None:
    why = "left out on request"
    checkpoint = source if isinstance(source, Checkpoint) else None
    if source == "auto":
        try:
            checkpoint = open_recorded()
        except PrunectlError as error:
            why = f"the source is not reachable ({error.message})"
    if checkpoint is None:
        findings.impossible.update(dict.fromkeys(NEED_SOURCE, why))
        if source == "auto":
            on_event(Note(f"checked without the source: {why}", warning=True))
        return None
    return Source(checkpoint, checkpoint.by_any_name)


def _open_recorded(
    manifest: Manifest,
    token: str | None,
    cache_dir: str | os.PathLike[str] | None,
    on_event: OnEvent,
) -> Checkpoint:
    record = manifest.source
    if record.kind in ("folder", "file") and local_path(record.model) is None:
        # a relative path from another folder must not be taken for a Hub id
        raise ModelNotFound(record.model, "no such file or folder")
    if record.kind == "hub" and record.repo_id:
        on_event(Note(f"opening the source {record.repo_id}, from the Hub or its cache"))
        checkpoint = open_checkpoint(
            record.repo_id, revision=record.commit, token=token, cache_dir=cache_dir
        )
    else:
        checkpoint = open_checkpoint(demo.NAME if record.kind == "demo" else record.model)
    recorded = {file.name: file.size for file in record.files}
    present = {file.name: file.size for file in checkpoint.files}
    if recorded != present:
        raise BadCheckpoint(record.model, "its weight files are not the ones that were pruned")
    return checkpoint


def _check_tensors(
    output: Checkpoint,
    manifest: Manifest,
    origin: Source | None,
    findings: Findings,
    run: Run,
) -> int:
    records = {record.name: record for record in manifest.tensors}
    present = {tensor.name for tensor in output.tensors}
    for name in sorted(records.keys() - present):
        findings.add("shapes", name, "is missing")
    for name in sorted(present - records.keys()):
        findings.add("shapes", name, "is not in the manifest")
    if origin is not None:
        # one name of a tied tensor suffices in the output
        names = {t: {t} for t in (tensor.name for tensor in origin.checkpoint.tensors)}
        for alias, owner in origin.checkpoint.aliases.items():
            names[owner].add(alias)
        for owner, spellings in names.items():
            if not spellings & present:
                findings.add("untouched", owner, "is in the source and missing here")
    stored = stored_layouts(output)
    for name in sorted(records.keys() & stored.keys()):
        record, (layout, size) = records[name], stored[name]
        if (record.layout, record.stored_bytes or size) != (layout, size):
            says = f"{record.layout} in {record.stored_bytes or 0:,} bytes"
            detail = f"is {layout} in {size:,} bytes, the manifest states {says}"
            findings.add("layout", name, detail)
    zeros = 0
    for _, found, differences in check_weights(output, records, origin, run):
        findings.differences += differences
        zeros += found.zeros
    _check_totals(manifest, findings)
    return zeros


def _check_totals(manifest: Manifest, findings: Findings) -> None:
    """Compare the manifest's totals with its tensors; tied ones count once."""
    records = [r for r in manifest.tensors if DTYPES[r.dtype].is_float and r.tied_to is None]
    prunable = [record for record in records if record.prunable]
    totals = (("overall", manifest.overall, records), ("prunable", manifest.prunable, prunable))
    for what, count, part in totals:
        found = {
            "weights": (count.weights, sum(math.prod(record.shape) for record in part)),
            "zeros": (count.zeros, sum(record.zeros for record in part)),
            "zeros_before": (count.zeros_before, sum(record.zeros_before for record in part)),
        }
        for member, (total, added) in found.items():
            if total != added:
                detail = f"its {what} {member} are {total:,}, its tensors' are {added:,}"
                findings.add("zeros", MANIFEST_NAME, detail)
    _check_requested(manifest, findings)


def _check_requested(manifest: Manifest, findings: Findings) -> None:
    """Compare the zeros with the requested numbers, where the manifest states them.

    One global threshold gives exactly floor(s*P + 0.5) zeros, or those that were there already;
    scopes tensor and row give as many for each tensor and row. (A recipe's rules may each have
    another scope; their counts are those of the tensors' records.)
    """
    asked, count = manifest.arguments, manifest.prunable
    one_pool = asked.get("pattern") == "unstructured" and not asked.get("rules")
    if one_pool and count.requested != asked.get("sparsity"):
        findings.add("zeros", MANIFEST_NAME, "its arguments and totals name different sparsities")
    if one_pool and asked.get("scope") == "global" and count.requested is not None:
        least = most = max(count.zeros_before, pruned_count(count.requested, count.weights))
        _check_between(MANIFEST_NAME, count.zeros, least, most, findings)
    for record in manifest.tensors:
        if record.sparsity is None or not one_pool:
            continue
        by_row = asked.get("scope") == "row"
        weights = math.prod(record.shape)
        length = Rows.of(record.shape, record.input_axis).length if by_row else weights
        least = pruned_count(record.sparsity, length) * (weights // length if length else 0)
        most = least + record.zeros_before if by_row else max(least, record.zeros_before)
        _check_between(record.name, record.zeros, max(least, record.zeros_before), most, findings)


def _check_between(where: str, zeros: int, least: int, most: int, findings: Findings) -> None:
    if not least <= zeros <= most:
        wanted = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        findings.add("zeros", where, f"{zeros:,} zeros, the arguments give {wanted}")


def _check_loads(
    output: Checkpoint, manifest: Manifest, findings: Findings, on_event: OnEvent
) -> None:
    from prunectl.checkpoint.modules import check_loadable

    check = partial(check_loadable, output.folder, trust_remote_code=output.trust_remote_code)
    try:
        found = check([tensor.spec for tensor in output.tensors])
        unused: set[str] = set()
        if found.unexpected:
            # tensors that the model does not use are often in its source too, such as a pooler
            unused = set(check([_spec_of(record) for record in manifest.tensors]).unexpected)
    except UnknownArchitecture as error:
        findings.impossible["loads"] = error.message
        return
    if found.error:
        what = f"{found.model_class} cannot be loaded: {found.error}"
        findings.add("loads", output.folder.name, what)
    for names, what in (
        (found.missing, "is missing: transformers would initialize it at random"),
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
