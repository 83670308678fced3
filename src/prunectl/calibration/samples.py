"""Samples to calibrate on: what a model is fed, one at a time, and a record of where it is from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np

from prunectl.calibration.errors import data_errors
from prunectl.calibration.sequences import Arrays, Request, make_sequences
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import Kind, ModelKind, model_kind_of
from prunectl.data import datasets, images
from prunectl.data.errors import BadData
from prunectl.data.source import DataSource, Samples, SourceKind, parse_source
from prunectl.errors import BadCheckpoint, InvalidOption
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.plan.job import device_of, dtype_of
from prunectl.plan.settings import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_samples(
    source: DataSource,
    checkpoint: Checkpoint,
    model_kind: ModelKind,
    *,
    samples: int = 128,
    sequence_length: int = 2048,
    seed: int = 0,
    on_event: OnEvent = ignore_events,
) -> Samples:
    """Read a source and make samples of it that the model takes.

    - A causal language model gets windows of the text (documents joined by an empty line, no two
      windows overlap, see :func:`windows`), each begun by what its tokenizer begins a text with.
    - An encoder gets single paragraphs (lines, if there are too few), or rows of a dataset, cut to
      the length, as its tokenizer makes them. Pairs are two sequences; one sequence for a sequence
      classifier, which reads them so.
    - An encoder-decoder gets windows for its encoder and the same text, shifted by one, for its
      decoder; of pairs, the first for its encoder and the second for its decoder.
    - A vision model gets images through its own image processor.

    Args:
        samples: how many; there are fewer where the source holds no more, and the notes say so.
        sequence_length: tokens of a sample; capped by what the model takes, which is noted too.
        seed: the same seed draws the same samples; where all is used it changes nothing.

    Raises:
        InvalidOption: a number with no meaning, or a source that is not for this kind of model.
        BadData: the source cannot be read or holds too little.
        BadTokenizer, WrongTokenizer: the model's tokenizer is missing, broken, or not its own.
        MissingLibrary: an optional library is not installed.
        AccessDenied, HubUnreachable: a dataset of the Hub that cannot be had.
    """
    import torch

    for name, value in (("samples", samples), ("sequence-length", sequence_length)):
        if value < 1:
            raise InvalidOption(f"--{name} {value} is not valid: it must be 1 or more")
    if seed < 0:
        raise InvalidOption(f"--seed {seed} is not valid: it must be 0 or more")
    _check_fit(source, model_kind)
    request = Request(source, checkpoint, model_kind, samples, sequence_length, seed, on_event)
    with data_errors():
        made = _images(request) if model_kind.kind is Kind.VISION else make_sequences(request)
        if not made:
            raise BadData(source.name, "no sample can be made of it")
    if len(made) < samples:
        request.notes.append(
            f"{len(made):,} samples instead of {samples:,}: {source.name} gives no more"
        )
    made = [_batch_of_one(one) for one in made]
    inputs = tuple({name: torch.from_numpy(value) for name, value in one.items()} for one in made)
    return Samples(inputs, _record(request, made), tuple(request.notes))


def _check_fit(source: DataSource, model_kind: ModelKind) -> None:
    vision = model_kind.kind is Kind.VISION
    if source.kind in (SourceKind.RANDOM, SourceKind.HF):
        return
    if vision != (source.kind is SourceKind.IMAGES):
        reads = "images" if vision else "text"
        raise InvalidOption(
            f"--calibration {source.kind} is not for this model, which reads {reads}",
            hint="images:FOLDER or hf:DATASET" if vision else "text:FILE or hf:DATASET",
        )
    if source.kind is SourceKind.PAIRS and model_kind.kind is Kind.CAUSAL_LM:
        raise InvalidOption(
            "--calibration pairs is for encoders and encoder-decoders, and this model continues "
            "text",
            hint="text:FILE or hf:DATASET",
        )


# --- images -------------------------------------------------------------------------------------


def _images(request: Request) -> list[Arrays]:
    assert request.model_kind.image is not None
    if request.source.kind is SourceKind.RANDOM:
        shape = (request.samples, 1, *request.model_kind.image)
        return [{"pixel_values": one} for one in request.rng.standard_normal(shape, np.float32)]
    process, note = images.load_processor(request.checkpoint, request.model_kind)
    request.notes += [note] if note else []
    made: list[Arrays] = []
    broken = 0
    for one in _image_files(request):
        image = images.open_image(one, request.model_kind.image[0])
        if image is None:
            broken += 1
            continue
        made.append(process(image))
        if len(made) == request.samples:
            break
    if broken:
        request.notes.append(f"{broken:,} of the images could not be read, and were left out")
        request.facts["broken"] = broken
    if not made:
        raise BadData(request.source.name, f"none of its images can be read ({broken:,} tried)")
    return made


def _image_files(request: Request) -> Iterator[Any]:
    """Paths or bytes of image files, in an order drawn by the seed."""
    if request.source.kind is SourceKind.HF:
        rows = datasets.open_rows(request.source, request.seed, datasets.IMAGE_COLUMNS)
        request.facts |= rows.facts()
        yield from datasets.read_images(rows, request.source)
        return
    found = images.find_images(request.source.files[0])
    request.facts["images"] = len(found)
    for index in request.rng.permutation(len(found)).tolist():
        yield found[index]


# --- the result ---------------------------------------------------------------------------------


def _batch_of_one(sample: Arrays) -> Arrays:
    """As a model takes it: tokens get an axis for the batch, which pixels have."""
    return {
        name: np.ascontiguousarray(value[None] if value.ndim == 1 else value)
        for name, value in sample.items()
    }


def _record(request: Request, made: Sequence[Arrays]) -> dict[str, Any]:
    is_text = request.model_kind.kind is not Kind.VISION
    tokens = {
        "sequence_length": request.length,
        "tokens": sum(one[name].size for one in made for name in one if name.endswith("input_ids")),
    }
    return {
        **request.source.to_json(),
        **request.facts,
        "samples": len(made),
        **(tokens if is_text else {}),
        "seed": request.seed,
        "blake3": digest(made),
    }


def digest(samples: Sequence[Arrays]) -> str:
    """BLAKE3 over samples in order: of each input, in order, its name, shape and values.

    The name is UTF-8 and ends in a zero byte; the shape is its sizes as int64; the values are
    row-major, and all numbers little-endian.
    """
    hasher = blake3.blake3()
    for one in samples:
        for name, value in one.items():
            hasher.update(name.encode() + b"\0")
            hasher.update(np.array(value.shape, "<i8").tobytes())
            hasher.update(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
    return hasher.hexdigest()


# --- the samples of a prune -----------------------------------------------------------------------


def gather_samples(checkpoint: Checkpoint, settings: Calibration, on_event: OnEvent) -> Samples:
    """Read the samples that a model is calibrated on.

    Raises:
        InvalidOption: a device or dtype that is not there, or more samples than memory can hold.
        BadCheckpoint: a config that describes far more weights than there are.
        PrunectlError: see :mod:`prunectl.calibration.errors` and :mod:`prunectl.data.errors`.
    """
    from prunectl.checkpoint.module_tree import (
        build_on_meta,
        model_class,
        quiet_transformers,
        unknown_if_it_fails,
    )

    source = parse_source(settings.source, "--calibration")
    dtype_of(settings, checkpoint)  # what is wrong with it is said before data are fetched
    device_of(settings)
    with unknown_if_it_fails(), quiet_transformers():
        cls, config = model_class(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
        model = build_on_meta(cls, config)
    _check_size(model, checkpoint)
    model_kind = model_kind_of(model, checkpoint.folder)
    if source.kind is SourceKind.RANDOM:  # of all others there are as many as there are
        _check_count(settings, model_kind)
    samples = load_samples(
        source,
        checkpoint,
        model_kind,
        samples=settings.samples,
        sequence_length=settings.sequence_length,
        seed=settings.seed,
        on_event=on_event,
    )
    for text in samples.notes:
        on_event(Note(text))
    return samples


_MOST_MADE_UP = 10**9
"""Weights that a checkpoint may lack, such as a head's: they are made up as zeros."""
_MOST_VALUES = 1 << 28
"""Tokens or pixels that random samples may hold."""


def _check_size(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    asked = sum(parameter.numel() for parameter in model.parameters())
    there = sum(tensor.spec.numel for tensor in checkpoint.tensors)
    if asked > 10 * there + _MOST_MADE_UP:
        raise BadCheckpoint(
            checkpoint.folder / "config.json",
            f"it describes a model of {asked:,} weights, and the files hold {there:,}",
        )


def _check_count(settings: Calibration, model_kind: ModelKind) -> None:
    length = min(settings.sequence_length, model_kind.context or settings.sequence_length)
    if model_kind.image is not None:
        length = math.prod(model_kind.image)
    if settings.samples * length > _MOST_VALUES:
        what = "pixels" if model_kind.image is not None else "tokens"
        raise InvalidOption(
            f"{settings.samples:,} random samples of {length:,} {what} do not fit into memory",
            hint="lower --samples (128 are usual) or --sequence-length",
        )
