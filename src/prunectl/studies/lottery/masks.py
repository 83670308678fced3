"""The mask of a round: the smallest magnitudes of the trained weights are pruned, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import check_bits, read_masks
from prunectl.checkpoint.torch_tensors import TORCH_NAMES
from prunectl.errors import BadMaskFile, NaNWeights
from prunectl.events import ignore_events
from prunectl.exporting.masks import source_of
from prunectl.magnitude.codes import Codes
from prunectl.magnitude.histogram import Histogram, Spans
from prunectl.magnitude.masks import cut, kept_bits
from prunectl.magnitude.measure import TensorMeasure
from prunectl.magnitude.refine import Refiner
from prunectl.magnitude.select import cut_for, resolve
from prunectl.output.mask_file import MaskEntry, MaskWriter
from prunectl.pattern import pruned_count
from prunectl.tensorspec import DTYPES, DType

if TYPE_CHECKING:
    import torch

_DTYPES = {name: DTYPES[label] for label, name in TORCH_NAMES.items()}


class Trained:
    """The magnitudes of weights in memory, one tensor after another.

    Args:
        tensors: by name, in file order.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._known: dict[str, Histogram] = {}
        for name in tensors:
            measure = TensorMeasure(self.dtype(name))
            measure.update(self.codes(name))
            found = measure.finish()
            if found.facts.nans:
                raise NaNWeights(name, found.facts.nans)
            self._known[name] = found.histogram

    @property
    def names(self) -> Iterable[str]:
        """In file order."""
        return self._tensors.keys()

    @property
    def weights(self) -> int:
        """The number of weights."""
        return sum(one.numel() for one in self._tensors.values())

    def get(self, name: str) -> Histogram:
        """The magnitudes of one tensor, coarse where its dtype is wide."""
        return self._known[name]

    def dtype(self, name: str) -> DType:
        """The dtype of one tensor."""
        return _DTYPES[str(self._tensors[name].dtype).removeprefix("torch.")]

    def codes(self, name: str) -> Codes:
        """Raw bits of one tensor, [n]; a copy."""
        import torch

        own = self._tensors[name].detach().to("cpu", copy=True).contiguous().reshape(-1)
        bits = 8 * own.element_size()
        kind = {16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
        return own.view(kind).numpy().view(f"u{bits // 8}")

    def refine(self, requests: dict[str, Spans]) -> Iterator[tuple[str, Histogram]]:
        """Subdivide bins; see :data:`prunectl.magnitude.select.Refine`."""
        for name, spans in requests.items():
            refiner = Refiner(self.dtype(name), spans)
            refiner.update(self.codes(name))
            fine = refiner.finish()
            self._known[name] = self._known[name].refined(fine)
            yield name, fine


def write_mask(
    path: Path, tensors: Mapping[str, torch.Tensor], sparsity: float, checkpoint: Checkpoint
) -> dict[str, int]:
    """Write the mask of global magnitude pruning to ``sparsity`` of trained weights.

    Exactly floor(s*P + 0.5) weights are pruned, or all zeros where there are more. Zeros, which
    include all weights pruned in earlier rounds, go first; ties go in file order.

    Args:
        path: of the file of masks (docs/masks.md); its folder exists.
        tensors: by name, of the stored shapes, in file order.
        checkpoint: for which the mask is made.

    Returns:
        zeros by tensor name.

    Raises:
        NaNWeights: a weight is NaN. NoSpace, CannotWrite: the file cannot be written.
    """
    trained = Trained(tensors)
    count = pruned_count(sparsity, trained.weights)
    entries = [MaskEntry(name, tuple(one.shape), one.numel()) for name, one in tensors.items()]
    (selected,) = resolve(trained, [count], trained.refine) if count else (None,)
    left = count - selected.below if selected else 0
    zeros: dict[str, int] = {}
    with MaskWriter(path, entries, source_of(checkpoint, None), force=True) as writer:
        for name in tensors:
            codes = trained.codes(name)
            if selected is not None:
                code, has_ties = cut_for(selected, trained.get(name).format)
                _, used = cut(codes, code, left if has_ties else 0)
                left -= used
            codes[codes & codes.dtype.type(trained.get(name).format.mask) == 0] = 0  # -0.0 too
            bits = kept_bits(codes)
            zeros[name] = codes.size - int(np.bitwise_count(bits).sum(dtype=np.int64))
            writer.write(name, 0, bits.data)
        writer.close(zeros)
    return zeros


@dataclass(frozen=True, slots=True)
class Found:
    """A complete file of masks: its zeros, and its BLAKE3 digest."""

    zeros: int
    digest: str


def found_in(path: Path, weights: Mapping[str, int]) -> Found | None:
    """Read a round's file of masks; None if it is missing, damaged, or of other tensors.

    Args:
        weights: the number of weights of each tensor, by name.
    """
    try:
        file = read_masks(path)
        if {name: mask.numel for name, mask in file.masks.items()} != dict(weights):
            return None
        with file.open() as reader:
            digest = check_bits(file, reader, ignore_events)
    except BadMaskFile:
        return None
    return Found(sum(mask.zeros for mask in file.masks.values()), digest)
