"""The metadata of an export: side files, index, model card, manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from prunectl._version import __version__
from prunectl.exporting.job import Job
from prunectl.exporting.result import ExportResult
from prunectl.exporting.writing import Stored
from prunectl.output.card import CardFacts, earlier_commands, model_card, role_rows
from prunectl.output.config_json import CONFIG_NAME, is_markable, mark, unmark
from prunectl.output.folder import OutputFolder
from prunectl.output.manifest import SCHEMA_VERSION, Manifest, Totals
from prunectl.output.parts import PARTS_INDEX, parts_index
from prunectl.output.records import Count, FileRecord, TensorRecord
from prunectl.output.shards import INDEX_NAME
from prunectl.output.target import CARD_NAME, MANIFEST_NAME
from prunectl.plan.prunable import input_axis, prunable_tensors
from prunectl.pruning.metadata import (
    auto_class_of,
    for_others,
    method_in_words,
    pattern_and_scope,
    source_card,
    source_record,
)
from prunectl.tensorspec import DTYPES
from prunectl.userdirs import expanded


def write_metadata(
    sink: OutputFolder, job: Job, result: ExportResult, stored: Mapping[str, Stored]
) -> tuple[str, ...]:
    """Write side files, index, model card and, last, the manifest; return warnings."""
    weights = PARTS_INDEX if result.shards > 1 else result.tensors[0].file
    files, warnings = _side_files(sink, job, weights)
    index = _index(job, result, stored)
    if index is not None:
        files.append(sink.write_bytes(INDEX_NAME if job.dense else PARTS_INDEX, index))
    manifest = replace(
        job.manifest or _fresh_manifest(job, result),
        version=__version__,
        tensors=_records(job, result),
        files=tuple(files),
        export=job.arguments,
        schema=SCHEMA_VERSION,
    )
    source, notes = source_card(job.checkpoint)
    # the card states how the weights were pruned, and not only that they were exported
    earlier = earlier_commands(source) if job.manifest else ()
    text = model_card(source, _card_facts(job, result, manifest, earlier))
    sink.write_bytes(CARD_NAME, text.encode("utf-8", "surrogateescape"))
    sink.write_parts(MANIFEST_NAME, manifest.parts(), manifest.about)
    return warnings + notes


def _side_files(
    sink: OutputFolder, job: Job, weights: str
) -> tuple[list[FileRecord], tuple[str, ...]]:
    """Copy side files; config.json names our loader if the folder is compressed."""
    files, warnings = [], []
    for name in job.checkpoint.side_files:
        path = job.checkpoint.folder / name
        if name != CONFIG_NAME:
            files.append(sink.write_side_file(name, path))
            continue
        config = unmark(path.read_bytes())
        if not job.dense and is_markable(config):
            config = mark(config, weights)
        elif not job.dense:
            warnings.append(_no_loader(f"{CONFIG_NAME} is not a JSON object"))
        files.append(sink.write_bytes(name, config))
    if not job.dense and CONFIG_NAME not in job.checkpoint.side_files:
        warnings.append(_no_loader(f"there is no {CONFIG_NAME}"))
    return files, tuple(warnings)


def _no_loader(why: str) -> str:
    return f"{why}: transformers cannot load this folder; prunectl.load_state_dict can."


def _index(job: Job, result: ExportResult, stored: Mapping[str, Stored]) -> bytes | None:
    if job.dense:
        return job.dense.index()
    if result.shards < 2:
        return None
    where = {
        name: tensor.file for tensor in result.tensors for name in stored[tensor.name].stored_names
    }
    return parts_index(where, sum(tensor.stored_bytes for tensor in result.tensors))


def _records(job: Job, result: ExportResult) -> tuple[TensorRecord, ...]:
    """A record of every tensor: the source's own, with the changes of this export."""
    known = {record.name: record for record in job.manifest.tensors} if job.manifest else {}
    fresh = {} if job.manifest else _fresh_records(job, result)
    return tuple(
        replace(
            known.get(tensor.name) or fresh[tensor.name],
            file=tensor.file,
            layout=tensor.layout,
            stored_bytes=tensor.stored_bytes,
            blake3=tensor.blake3,
        )
        for tensor in result.tensors
    )


def _fresh_records(job: Job, result: ExportResult) -> dict[str, TensorRecord]:
    """Records of a checkpoint that prunectl did not write: nothing is recorded as pruned."""
    names = prunable_tensors(job.checkpoint)
    records: dict[str, TensorRecord] = {}
    first: dict[str, str] = {}
    for tensor in result.tensors:
        source = job.outputs[tensor.name].source
        role = job.checkpoint.roles.roles[source.name]
        owner = first.setdefault(source.name, tensor.name)
        prunable = source.name in names
        is_float = DTYPES[tensor.dtype].is_float
        records[tensor.name] = TensorRecord(
            name=tensor.name,
            file=tensor.file,
            dtype=tensor.dtype,
            shape=tensor.shape,
            role=str(role.role),
            layer=role.layer,
            pattern=None,
            sparsity=None,
            zeros=tensor.zeros if is_float else 0,
            zeros_before=tensor.zeros if is_float else 0,
            threshold=None,
            blake3=tensor.blake3,
            layout=tensor.layout,
            reason="exported as it was",
            prunable=prunable,
            tied_to=None if owner == tensor.name else owner,
            input_axis=input_axis(source.spec, role) if prunable else None,
        )
    return records


def _fresh_manifest(job: Job, result: ExportResult) -> Manifest:
    records = list(_fresh_records(job, result).values())
    return Manifest(
        tool="prunectl",
        version=__version__,
        source=source_record(job.checkpoint),
        arguments={"method": None},
        totals=Totals(_count([one for one in records if one.prunable]), _count(records)),
        tensors=(),
        files=(),
    )


def _count(records: Iterable[TensorRecord]) -> Count:
    """Totals of float tensors; tied tensors count once."""
    own = [r for r in records if r.tied_to is None and DTYPES[r.dtype].is_float]
    return Count.of(
        sum(record.numel for record in own),
        sum(record.zeros_before for record in own),
        sum(record.zeros for record in own),
    )


def _card_facts(
    job: Job, result: ExportResult, manifest: Manifest, earlier: tuple[str, ...]
) -> CardFacts:
    source = manifest.source
    arguments = manifest.arguments
    pattern, scope = pattern_and_scope(arguments)
    return CardFacts(
        # of a local path only the last component, since the card is made to be shared
        model=source.repo_id or _last_part(source.model),
        version=__version__,
        method=_method(arguments),
        pattern=pattern,
        scope=scope,
        prunable=manifest.prunable,
        overall=manifest.overall,
        roles=role_rows(manifest.tensors),
        command="\n".join((*earlier, for_others(job.command) or "prunectl.export(...)")),
        repo_id=source.repo_id,
        commit=source.commit,
        auto_class=auto_class_of(job.checkpoint),
        layout="" if job.dense else result.layout,
        dense_bytes=result.dense_bytes,
        stored_bytes=result.nbytes,
    )


def _last_part(path: str) -> str:
    """Resolve a path, which may be broken or circular."""
    return os.path.basename(os.path.realpath(expanded(path)))  # noqa: PTH119


def _method(arguments: dict[str, Any]) -> str:
    name = arguments.get("method")
    if name in (None, "mask"):
        return "a given mask" if name else ""
    return method_in_words(arguments)
