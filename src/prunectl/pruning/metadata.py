"""The metadata of an output: side files, index, model card, manifest."""

from __future__ import annotations

import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

from prunectl._version import __version__
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.sidefiles import is_own_file
from prunectl.data.source import without_folders
from prunectl.documents import read_regular
from prunectl.layouts.table import DENSE
from prunectl.methods.table import Method
from prunectl.output.card import CardFacts, model_card, role_rows
from prunectl.output.folder import OutputFolder
from prunectl.output.manifest import Manifest, Totals
from prunectl.output.records import Calibrated, Count, SourceFile, SourceRecord, TensorRecord
from prunectl.output.shards import INDEX_NAME, ShardLayout
from prunectl.output.target import CARD_NAME, MANIFEST_NAME
from prunectl.plan.settings import ROW_BLOCK, Budget
from prunectl.pruning.result import PruneResult, TensorOutcome
from prunectl.tensorspec import DTYPES


def write_metadata(
    sink: OutputFolder,
    checkpoint: Checkpoint,
    result: PruneResult,
    arguments: dict[str, Any],
    layout: ShardLayout,
    command: str,
) -> tuple[str, ...]:
    """Write side files, index, model card and, last, the manifest; returns warnings."""
    files = [sink.write_side_file(name, checkpoint.folder / name) for name in checkpoint.side_files]
    index = layout.index()
    if index is not None:
        files.append(sink.write_bytes(INDEX_NAME, index))
    prunable, overall = _counts(result)
    source, warnings = source_card(checkpoint)
    card = model_card(source, _card_facts(checkpoint, result, arguments, command))
    # Users edit cards, so verify does not check their bytes.
    sink.write_bytes(CARD_NAME, card.encode("utf-8", "surrogateescape"))
    manifest = Manifest(
        tool="prunectl",
        version=__version__,
        source=source_record(checkpoint),
        arguments=arguments,
        totals=Totals(prunable, overall),
        tensors=tuple(_tensor_record(one) for one in result.tensors),
        files=tuple(files),
    )
    sink.write_parts(MANIFEST_NAME, manifest.parts(), manifest.about)
    return warnings


def _counts(result: PruneResult) -> tuple[Count, Count]:
    """Totals over the prunable weights, and over all weights."""
    requested = result.pools[0].requested if len(result.pools) == 1 else None
    return (
        Count.of(
            result.prunable_weights, result.prunable_zeros_before, result.prunable_zeros, requested
        ),
        Count.of(result.weights, result.zeros_before, result.zeros),
    )


def _tensor_record(one: TensorOutcome) -> TensorRecord:
    return TensorRecord(
        name=one.name,
        file=one.file,
        dtype=one.dtype,
        shape=one.shape,
        role=one.role,
        layer=one.layer,
        pattern=one.pattern,
        sparsity=one.requested,
        zeros=one.zeros,
        zeros_before=one.zeros_before,
        # JSON has no Inf, the threshold where Inf itself is pruned.
        threshold=one.threshold if one.threshold != math.inf else None,
        blake3=one.blake3,
        layout=DENSE,
        reason=one.reason or None,
        prunable=one.prunable,
        tied_to=one.tied_to,
        input_axis=one.input_axis,
        stored_bytes=one.numel * DTYPES[one.dtype].bits // 8,
        calibrated=None if one.calibrated is None else Calibrated(**one.calibrated),
        pattern_rows=one.pattern_rows,
    )


def source_record(checkpoint: Checkpoint) -> SourceRecord:
    """The source as a manifest records it."""
    kind: Any = checkpoint.kind
    return SourceRecord(
        model=checkpoint.model,
        kind=kind,
        repo_id=checkpoint.repo_id,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        endpoint=os.environ.get("HF_ENDPOINT") if checkpoint.kind == "hub" else None,
        files=tuple(SourceFile(file.name, file.size, file.sha256) for file in checkpoint.files),
    )


_LARGEST_CARD = 2_000_000
"""Bytes. Some cards hold a megabyte of results."""


def source_card(checkpoint: Checkpoint) -> tuple[str | None, tuple[str, ...]]:
    """The text of the source's model card, or None; and warnings.

    The card is copied into outputs, so it must not be a link to a file elsewhere.
    """
    path = checkpoint.folder / CARD_NAME
    try:
        if not is_own_file(checkpoint.folder, path):
            return None, ()
        size = path.stat().st_size
        if size > _LARGEST_CARD:
            why = f"it has {size:,} bytes, and a model card at most {_LARGEST_CARD:,} here"
            return None, (f"left out: {CARD_NAME}, the source's text: {why}",)
        data = read_regular(path)
    except OSError:
        return None, ()
    try:
        return data.decode(), ()
    except UnicodeDecodeError as error:
        why = f"{CARD_NAME} of the source is not UTF-8 (byte {error.start:,}): its bytes are kept"
        advice = "save the output's as UTF-8 before you push it"
        return data.decode("utf-8", "surrogateescape"), (f"{why}; {advice}",)


_AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForImageClassification": "AutoModelForImageClassification",
}


def auto_class_of(checkpoint: Checkpoint) -> str:
    """The transformers class that loads the model, for the card's example."""
    architectures = checkpoint.config.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return next((auto for end, auto in _AUTO_CLASSES.items() if named.endswith(end)), "AutoModel")


def method_in_words(arguments: dict[str, Any]) -> str:
    """How weights were chosen and whether the kept ones were changed, for the card."""
    known = {str(method): method.spec.card for method in Method}
    known["mask"] = "pruning by a file of masks"
    words = known.get(str(arguments.get("method")), "pruning")
    data = arguments.get("calibration")
    if isinstance(data, dict) and isinstance(data.get("samples"), int):
        words += f", calibrated on {data['samples']:,} samples of {data.get('kind')}"
    if arguments.get("refine"):
        words += ", with the kept weights fitted to the layers' outputs"
    if arguments.get("reconstruct"):
        words += ", with the kept weights fitted by gradient steps to the dense model's outputs"
    return words


def pattern_and_scope(arguments: dict[str, Any]) -> tuple[str, str]:
    """The pattern's unit and the scope, for the card; '' for masks and for whole N:M."""
    if any(not rule.get("skip") for rule in arguments.get("rules") or ()):
        return "by recipe", ""
    pattern = str(arguments.get("pattern") or "")
    if pattern == "unstructured":
        return pattern, str(arguments.get("scope") or "")
    if arguments.get("budget") == Budget.ROWS:
        return f"{pattern} in blocks of {ROW_BLOCK} rows", ""
    return pattern, ""


def for_others(command: str) -> str:
    """The command without the folders of the user's machine in it."""
    try:
        words = shlex.split(command)
    except ValueError:  # free text, not a command line
        return command
    short = []
    for before, word in zip(["", *words], words, strict=False):
        option, value = _OPTION.fullmatch(word).groups()  # type: ignore[union-attr]  # fits all
        is_output = (option or before).rstrip("=") in ("-o", "--output")  # it may not exist yet
        short.append(f"{option or ''}{Path(value).name if is_output else without_folders(value)}")
    return command if short == words else shlex.join(short)


_OPTION = re.compile(r"(--[\w-]+=|-\w(?=[/~]))?(.*)", re.DOTALL)
"""The name of an option that has its value in the same word, and the value, or the whole word."""


def _card_facts(
    checkpoint: Checkpoint, result: PruneResult, arguments: dict[str, Any], command: str
) -> CardFacts:
    prunable, overall = _counts(result)
    pattern, scope = pattern_and_scope(arguments)
    return CardFacts(
        # The card is public: keep only the last part of a local path.
        model=checkpoint.repo_id or Path(checkpoint.model).resolve().name,
        version=__version__,
        method=method_in_words(arguments),
        pattern=pattern,
        scope=scope,
        prunable=prunable,
        overall=overall,
        roles=role_rows(result.tensors),
        command=for_others(command) or "prunectl.prune(...)",
        repo_id=checkpoint.repo_id,
        commit=checkpoint.commit,
        auto_class=auto_class_of(checkpoint),
    )
