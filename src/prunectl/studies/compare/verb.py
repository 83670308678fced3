"""The ``compare`` verb: two models of one architecture, weight by weight and in bounded memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from prunectl.analysis.distribution import kind_of
from prunectl.analysis.result import layer_label
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import MaskFile, check_bits, is_mask_file, read_masks
from prunectl.checkpoint.opening import local_path
from prunectl.errors import InvalidOption
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted, ignore_events
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
    Edits,
    MaskSide,
    Side,
    Sums,
    WeightSide,
    exactly,
    overlaps,
)
from prunectl.studies.compare.result import (
    AS_THEY_ARE,
    ComparedSide,
    Comparison,
    MaskPair,
    Overlap,
    findings,
)
from prunectl.studies.errors import no_sparsity, nothing_in_common
from prunectl.studies.settings import DEFAULT_SPARSITIES, CompareSettings
from prunectl.studies.sweep.commands import short_names
from prunectl.userdirs import expanded

PRUNED, BY_OTHERS = 0.01, 0.2
"""Shares of zeros from which a checkpoint is compared by them: with a manifest, and without one,
where a tenth may come from 4 bits that were made wide again."""
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
    """Compare what one-shot pruning takes from two models of one architecture, and their weights.

    Masks are those that :func:`prunectl.prune` would make, over the tensors that both have. A model
    that is pruned already is compared by its zeros, a file of masks by its bits.
    Both are streamed: memory holds a block of each.

    Args:
        first, second: open checkpoints, or what :func:`prunectl.open_checkpoint` takes, compressed
            folders too; or files of masks (docs/masks.md).
        by_zeros: take the zeros of a model that is pruned already as its mask; if false, prune it
            as any other.
        use_cache: reuse, and keep, measurements of these very sources.
        jobs: threads; default one per core, eight at most.
        command: recorded.

    Raises:
        NothingToCompare: the two have no prunable tensor in common.
        SourceError, UsageError, BadMaskFile, NaNWeights: one of them cannot be used.
    """
    started = time.perf_counter()
    settings = settings or CompareSettings()
    with ExitStack() as stack:
        sides = _open(first, stack, use_cache), _open(second, stack, use_cache)
        _choose(sides, settings)
        _take_what_masks_mean(*sides)
        candidates = sides[0].candidates(), sides[1].candidates()
        found = match(*candidates)
        if not found.pairs:
            raise nothing_in_common(sides[0].name, sides[1].name)
        run = _Run(sides, candidates, found, settings, by_zeros, jobs, on_event)
        stats = run.stats()
        masks = run.masks(stats)
    labels = short_names([side.name for side in sides])
    compared = [
        _side(side, label, one, left)
        for side, label, one, left in zip(
            sides, labels, stats, (found.only_first, found.only_second), strict=True
        )
    ]
    result = Comparison(
        first=compared[0],
        second=compared[1],
        tensors=len(found.pairs),
        weights=run.weights,
        renamed=tuple(pair for pair in found.pairs if pair[0] != pair[1]),
        masks=masks,
        findings=(),
        command=command,
        seconds=time.perf_counter() - started,
    )
    return replace(result, findings=tuple(findings(result)))


@dataclass(frozen=True, slots=True)
class _Target:
    """One pair of masks: its label and sparsity, and what makes masks of weights.

    ``settings`` is None where both sides have masks of their own.
    """

    label: str
    sparsity: float | None
    settings: PruneSettings | None


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Both sides, which of their tensors are twins, and how to go through them."""

    sides: tuple[Side, Side]
    candidates: tuple[dict[str, Candidate], dict[str, Candidate]]
    matching: Matching
    settings: CompareSettings
    by_zeros: bool
    jobs: int | None
    on_event: OnEvent

    @property
    def weights(self) -> int:
        return sum(map(self._numel, self.matching.pairs))

    def _numel(self, pair: tuple[str, str]) -> int:
        return math.prod(self.candidates[0][pair[0]].shape)

    def names(self, at: int) -> list[str]:
        """The compared tensors of one side, in its own file order."""
        chosen = {pair[at] for pair in self.matching.pairs}
        return [name for name in self.candidates[at] if name in chosen]

    def stats(self) -> tuple[ModelStats | None, ModelStats | None]:
        """Numbers on the weights of each side; and whether it is its zeros that count."""
        found: list[ModelStats | None] = []
        for at, side in enumerate(self.sides):
            if isinstance(side, MaskSide):
                found.append(None)
                continue
            one = model_stats(
                side.checkpoint,
                side.measured,
                self.names(at),
                sparsities=self.settings.sparsities or DEFAULT_SPARSITIES,
                patterns=self.settings.patterns,
                run=Run(self.jobs, on_event=self.on_event),
            )
            least = PRUNED if (side.checkpoint.folder / MANIFEST_NAME).is_file() else BY_OTHERS
            side.by_zeros = self.by_zeros and one.zeros >= least * one.weights
            found.append(one)
        return found[0], found[1]

    def masks(self, stats: Sequence[ModelStats | None]) -> tuple[MaskPair, ...]:
        """The masks of both at every target, counted."""
        targets = self._targets(stats)
        edits: list[list[Edits]] = [[], []]
        for at, side in enumerate(self.sides):
            names = self.names(at)
            if isinstance(side, WeightSide):
                edits[at] = [
                    side.edits(target.settings, names, jobs=self.jobs, on_event=self.on_event)
                    for target in targets
                ]
            else:
                edits[at] = [{} for _ in targets]
        sums = [Sums() for _ in targets]
        for pair, found in self._overlaps(edits):
            place = self._place(pair)
            for one, overlap in zip(sums, found, strict=True):
                one.add(*place, overlap)
        return tuple(
            MaskPair(target.label, target.sparsity, one.whole, one.components, one.layers)
            for target, one in zip(targets, sums, strict=True)
        )

    def _targets(self, stats: Sequence[ModelStats | None]) -> list[_Target]:
        settings = self.settings
        own = [at for at, side in enumerate(self.sides) if side.kind != "weights"]
        if len(own) == 2:
            if settings.sparsities or settings.patterns:
                text = "both sides have masks of their own: no others are made"
                self.on_event(Note(text, warning=True))
            return [_Target(AS_THEY_ARE, None, None)]
        sparsities: Sequence[float] = settings.sparsities
        if not sparsities and not (own and settings.patterns):
            sparsities = [self._own_sparsity(own[0], stats)] if own else DEFAULT_SPARSITIES
        return [
            *(_Target(f"{100 * s:.4g}%", s, settings.prune(s)) for s in sparsities),
            *(_Target(str(one), None, settings.prune(None, one)) for one in settings.patterns),
        ]

    def _own_sparsity(self, at: int, stats: Sequence[ModelStats | None]) -> float:
        """The share of zeros that one side brings."""
        side, one = self.sides[at], stats[at]
        if one is not None:
            zeros = one.zeros
        else:
            assert isinstance(side, MaskSide)
            zeros = sum(side.file.masks[name].zeros for name in self.names(at))
        if not 0 < zeros < self.weights:
            raise no_sparsity(self.sides[0].name, self.sides[1].name, side.name)
        return zeros / self.weights

    def _place(self, pair: tuple[str, str]) -> tuple[str, str]:
        """Component and layer of two twins, by the side that knows them."""
        for side, own in zip(self.sides, pair, strict=True):
            if isinstance(side, WeightSide):
                role = side.checkpoint.roles.roles[own]
                layer = "" if role.layer is None else layer_label(role)
                return kind_of(role.component or own), layer
        return "", ""

    def _overlaps(
        self, edits: Sequence[Sequence[Edits]]
    ) -> Iterator[tuple[tuple[str, str], list[Overlap]]]:
        """Per pair of tensors, in the order of the first side: the masks at each target."""
        self.on_event(PhaseStarted(PHASE, self.weights))
        with ExitStack() as stack:
            readers = [stack.enter_context(side.open()) for side in self.sides]

            def work(pair: tuple[str, str], scratch: Scratch) -> list[Overlap]:
                both = [
                    side.masks(name, own, reader)
                    for side, name, own, reader in zip(
                        self.sides, pair, edits, readers, strict=True
                    )
                ]
                return overlaps(both[0], both[1], self._numel(pair), scratch)

            found = Run(self.jobs).ordered(self.matching.pairs, work)
            for pair, each in zip(self.matching.pairs, found, strict=True):
                self.on_event(Advanced(PHASE, each[0].weights, pair[0]))
                yield pair, each
        self.on_event(PhaseDone(PHASE))


def _open(one: Given, stack: ExitStack, use_cache: bool) -> Side:
    if not isinstance(one, Checkpoint | MaskFile) and is_mask_path(one):
        one = read_masks(expanded(one))
    if isinstance(one, MaskFile):
        side = MaskSide(one)
        with side.open() as reader:
            check_bits(one, reader, ignore_events)
        return side
    checkpoint = one if isinstance(one, Checkpoint) else open_model(one)
    measured = stack.enter_context(measured_of(checkpoint, use_cache=use_cache))
    return WeightSide(checkpoint, measured, recorded=recorded_prunable(checkpoint))


def _choose(sides: Sequence[Side], settings: CompareSettings) -> None:
    """Give each side the selectors that mean a tensor of it: names may differ between the two.

    Raises:
        InvalidOption: one means no tensor of either.
    """
    known: set[str] = set()
    for side in sides:
        names = side.file.masks if isinstance(side, MaskSide) else side.checkpoint.by_name
        include, exclude = (
            tuple(one for one in given if any(matches(one, name) for name in names))
            for given in (settings.include, settings.exclude)
        )
        if isinstance(side, MaskSide):  # has masks of what it has masks of
            side.exclude = exclude
        else:
            side.include, side.exclude = include, exclude
        known |= {*include, *exclude}
    for selector in (*settings.include, *settings.exclude):
        if selector not in known:
            raise InvalidOption(
                f"--include, --exclude: '{selector}' matches no tensor of either",
                hint="see the names with 'prunectl analyze MODEL --all'",
            )


def is_mask_path(given: str | os.PathLike[str]) -> bool:
    """Whether a model's name is that of a file of masks."""
    path = local_path(os.fspath(given))
    return path is not None and path.is_file() and is_mask_file(path)


def _take_what_masks_mean(first: Side, second: Side) -> None:
    """What one side's masks, or its manifest, are about counts as prunable on the other too."""
    for side, other in ((first, second), (second, first)):
        if not isinstance(side, WeightSide):
            continue
        if isinstance(other, MaskSide):
            named = [name for name in other.file.masks if name in side.checkpoint.by_name]
            side.include = (*side.include, *exactly(named))
        elif not side.recorded:
            side.recorded = other.recorded & side.checkpoint.by_name.keys()


def _side(
    side: Side, label: str, stats: ModelStats | None, unmatched: dict[str, str]
) -> ComparedSide:
    commit = side.checkpoint.commit if isinstance(side, WeightSide) else None
    return ComparedSide(side.name, label, side.kind, commit, stats, unmatched)
