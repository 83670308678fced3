"""The ``compare`` verb: two models of one architecture, weight by weight in bounded memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import MaskFile, check_bits, is_mask_file, read_masks
from prunectl.checkpoint.opening import local_path
from prunectl.errors import InvalidOption
from prunectl.events import OnEvent, ignore_events
from prunectl.loading.compressed import open_model
from prunectl.measure.cache import measured_of
from prunectl.measure.model_stats import ModelStats, model_stats
from prunectl.output.target import MANIFEST_NAME
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import Scratch
from prunectl.plan.prunable import recorded_prunable
from prunectl.plan.selectors import matches
from prunectl.plan.settings import PruneSettings
from prunectl.studies.compare.matching import Candidate, Matching, match
from prunectl.studies.compare.operands import (
    MaskOperand,
    Operand,
    WeightOperand,
    exactly,
    overlaps,
)
from prunectl.studies.compare.result import (
    AS_THEY_ARE,
    ComparedModel,
    Comparison,
    MaskPair,
    Overlap,
    findings,
)
from prunectl.studies.errors import NothingToCompare
from prunectl.studies.settings import DEFAULT_SPARSITIES, CompareSettings
from prunectl.studies.sweep.commands import short_names
from prunectl.userdirs import expanded

PRUNED, BY_OTHERS = 0.01, 0.2
"""Least shares of zeros of a checkpoint that is compared by its zeros: one with a manifest, and one
without. A tenth of the weights may be zero in a dense model that was converted from 4 bits."""
PHASE = "comparing masks"

Given = Checkpoint | MaskFile | str | os.PathLike[str]


def compare(
    first: Given,
    second: Given,
    settings: CompareSettings | None = None,
    *,
    by_zeros: bool = True,
    use_cache: bool = True,
    jobs: int | None = None,
    command: str = "",
    on_event: OnEvent = ignore_events,
) -> Comparison:
    """Compare the one-shot pruning masks, and the weights, of two models of one architecture.

    The masks are those that :func:`prunectl.prune` would make for the tensors that both models
    have. The mask of a model that is already pruned is its zeros, that of a file of masks its bits.
    Both are streamed: memory holds a block of each.

    Args:
        first, second: open checkpoints, arguments of :func:`prunectl.open_checkpoint`, compressed
            folders, or files of masks (docs/masks.md).
        by_zeros: whether the zeros of a model that is already pruned are its mask; if false, it is
            pruned like any other.
        use_cache: whether to use and store cached measurements of the models.
        jobs: number of threads; default one per core, eight at most.
        command: recorded in the result.

    Raises:
        NothingToCompare: the two have no prunable tensor in common.
        SourceError, UsageError, BadMaskFile, NaNWeights: a model or a file cannot be used.
    """
    started = time.perf_counter()
    run, settings = Run(jobs, on_event=on_event), settings or CompareSettings()
    with ExitStack() as stack:
        operands = _open(first, stack, use_cache), _open(second, stack, use_cache)
        _assign_selectors(operands, settings)
        _share_prunable(*operands)
        candidates = operands[0].candidates(), operands[1].candidates()
        matching = match(*candidates)
        if not matching.pairs:
            raise NothingToCompare(
                operands[0].name, operands[1].name,
                why="no prunable tensor of one has the name or place, and the shape, of one of the "
                "other",
                hint="both must be of one architecture: see 'prunectl analyze MODEL --all' of each",
            )  # fmt: skip
        pairing = _Pairing(operands, candidates, matching, run)
        stats = pairing.stats(settings, by_zeros=by_zeros)
        masks = pairing.masks(_goals(pairing, settings, stats))
    labels = short_names([operand.name for operand in operands])
    unmatched = matching.only_first, matching.only_second
    compared = [
        ComparedModel(
            operand.name,
            label,
            operand.kind,
            operand.checkpoint.commit if isinstance(operand, WeightOperand) else None,
            one,
            missing,
        )
        for operand, label, one, missing in zip(operands, labels, stats, unmatched, strict=True)
    ]
    result = Comparison(
        first=compared[0],
        second=compared[1],
        tensors=len(matching.pairs),
        weights=pairing.weights,
        renamed=tuple(pair for pair in matching.pairs if pair[0] != pair[1]),
        masks=masks,
        findings=(),
        command=command,
        seconds=time.perf_counter() - started,
    )
    return replace(result, findings=tuple(findings(result)))


@dataclass(frozen=True, slots=True)
class _MaskGoal:
    """A pair of masks to make: its label, its sparsity, and how both operands are pruned.

    ``settings`` is None where both operands have masks already.
    """

    label: str
    sparsity: float | None
    settings: PruneSettings | None


@dataclass(frozen=True, slots=True, eq=False)
class _Pairing:
    """Both operands, with the matching of their tensors."""

    operands: tuple[Operand, Operand]
    candidates: tuple[dict[str, Candidate], dict[str, Candidate]]
    matching: Matching
    run: Run

    @property
    def weights(self) -> int:
        return sum(map(self._numel, self.matching.pairs))

    def _numel(self, pair: tuple[str, str]) -> int:
        return math.prod(self.candidates[0][pair[0]].shape)

    def names(self, at: int) -> list[str]:
        """The compared tensors of one operand, in its own file order."""
        chosen = {pair[at] for pair in self.matching.pairs}
        return [name for name in self.candidates[at] if name in chosen]

    def stats(self, settings: CompareSettings, *, by_zeros: bool) -> list[ModelStats | None]:
        """Measure the weights of each operand (None: a file of masks), and set its ``by_zeros``."""
        found: list[ModelStats | None] = []
        for at, operand in enumerate(self.operands):
            if isinstance(operand, MaskOperand):
                found.append(None)
                continue
            one = model_stats(
                operand.checkpoint,
                operand.measured,
                self.names(at),
                self.run,
                sparsities=settings.sparsities or DEFAULT_SPARSITIES,
                patterns=settings.patterns,
            )
            least = PRUNED if (operand.checkpoint.folder / MANIFEST_NAME).is_file() else BY_OTHERS
            operand.by_zeros = by_zeros and one.zeros >= least * one.weights
            found.append(one)
        return found

    def masks(self, goals: Sequence[_MaskGoal]) -> tuple[MaskPair, ...]:
        """The overlap of both operands' masks for every goal: in all, by component and by layer."""
        per_tensor = list(self._overlaps(goals))
        places = list(map(self._place, self.matching.pairs))
        return tuple(
            MaskPair(
                goal.label,
                goal.sparsity,
                sum(found, Overlap()),
                _summed((component for component, _ in places), found),
                _summed((layer for _, layer in places), found),
            )
            for goal, found in zip(goals, zip(*per_tensor, strict=True), strict=True)
        )

    def _place(self, pair: tuple[str, str]) -> tuple[str, str]:
        """Component and layer of two matched tensors; '' if both operands are files of masks."""
        for operand, name in zip(self.operands, pair, strict=True):
            if isinstance(operand, WeightOperand):
                return operand.place(name)
        return "", ""

    def _overlaps(self, goals: Sequence[_MaskGoal]) -> Iterator[list[Overlap]]:
        """Yield an overlap for each goal, for each pair of tensors in the first's file order."""
        edits = [
            [operand.edits(goal.settings, self.names(at), self.run) for goal in goals]
            for at, operand in enumerate(self.operands)
        ]
        with self.run.phase(PHASE, self.weights) as advance, ExitStack() as stack:
            readers = [stack.enter_context(operand.open()) for operand in self.operands]

            def work(pair: tuple[str, str], scratch: Scratch) -> list[Overlap]:
                first, second = (
                    operand.masks(name, own, reader)
                    for operand, name, own, reader in zip(
                        self.operands, pair, edits, readers, strict=True
                    )
                )
                return overlaps(first, second, self._numel(pair), scratch)

            found = self.run.ordered(self.matching.pairs, work)
            for pair, each in zip(self.matching.pairs, found, strict=True):
                advance(each[0].weights, pair[0])
                yield each


def _summed(labels: Iterable[str], overlaps: Sequence[Overlap]) -> dict[str, Overlap]:
    """Add up the overlaps of tensors by label; those with label '' are left out."""
    groups: dict[str, Overlap] = {}
    for label, overlap in zip(labels, overlaps, strict=True):
        if label:
            groups[label] = groups.get(label, Overlap()) + overlap
    return groups


def _goals(
    pairing: _Pairing, settings: CompareSettings, stats: Sequence[ModelStats | None]
) -> list[_MaskGoal]:
    """The masks to make: as requested, else as sparse as an operand that is already pruned."""
    pruned = [at for at, operand in enumerate(pairing.operands) if operand.kind != "weights"]
    if len(pruned) == 2:
        if settings.sparsities or settings.patterns:
            pairing.run.note(
                "both already have masks: the sparsities and patterns are ignored",
                warning=True,
            )
        return [_MaskGoal(AS_THEY_ARE, None, None)]
    sparsities: Sequence[float] = settings.sparsities
    if not sparsities and not (pruned and settings.patterns):
        sparsities = [_own_sparsity(pairing, pruned[0], stats)] if pruned else DEFAULT_SPARSITIES
    return [
        *(_MaskGoal(f"{100 * s:.4g}%", s, settings.prune(s)) for s in sparsities),
        *(_MaskGoal(str(one), None, settings.prune(None, one)) for one in settings.patterns),
    ]


def _own_sparsity(pairing: _Pairing, at: int, stats: Sequence[ModelStats | None]) -> float:
    """The share of zeros, over the compared tensors, of an operand that is already pruned."""
    operand, one = pairing.operands[at], stats[at]
    if isinstance(operand, MaskOperand):
        zeros = sum(operand.file.masks[name].zeros for name in pairing.names(at))
    else:
        assert one is not None
        zeros = one.zeros
    if not 0 < zeros < pairing.weights:
        first, second = (one.name for one in pairing.operands)
        why = f"{operand.name} prunes none, or all, of the weights that both have"
        raise NothingToCompare(first, second, why=why, hint="give a --sparsity")
    return zeros / pairing.weights


def _open(one: Given, stack: ExitStack, use_cache: bool) -> Operand:
    """Open an operand; ``stack`` closes its measurements."""
    if not isinstance(one, Checkpoint | MaskFile) and is_mask_path(one):
        one = read_masks(expanded(one))
    if isinstance(one, MaskFile):
        with one.open() as reader:
            check_bits(one, reader, ignore_events)
        return MaskOperand(one)
    checkpoint = one if isinstance(one, Checkpoint) else open_model(one)
    measured = stack.enter_context(measured_of(checkpoint, use_cache=use_cache))
    return WeightOperand(checkpoint, measured, recorded=recorded_prunable(checkpoint))


def _assign_selectors(operands: Sequence[Operand], settings: CompareSettings) -> None:
    """Give each operand the selectors that match its tensors: names may differ between the two."""
    known: set[str] = set()
    for operand in operands:
        operand.include, operand.exclude = (
            tuple(one for one in given if any(matches(one, name) for name in operand.tensors))
            for given in (settings.include, settings.exclude)
        )
        known |= {*operand.include, *operand.exclude}
    for selector in (*settings.include, *settings.exclude):
        if selector not in known:
            raise InvalidOption(
                f"--include, --exclude: '{selector}' matches no tensor of either model",
                hint="see the names with 'prunectl analyze MODEL --all'",
            )


def is_mask_path(given: str | os.PathLike[str]) -> bool:
    """Whether the argument for a model is the path of a file of masks."""
    path = local_path(os.fspath(given))
    return path is not None and path.is_file() and is_mask_file(path)


def _share_prunable(first: Operand, second: Operand) -> None:
    """Make prunable, in each model, the tensors that the other's masks or manifest list."""
    for operand, other in ((first, second), (second, first)):
        if not isinstance(operand, WeightOperand):
            continue
        if isinstance(other, MaskOperand):
            named = [name for name in other.file.masks if name in operand.checkpoint.by_name]
            operand.include = (*operand.include, *exactly(named))
        elif not operand.recorded:
            operand.recorded = other.recorded & operand.checkpoint.by_name.keys()
