"""The ``lottery`` verb: iterative magnitude pruning with rewinding, compared with one-shot pruning.

Each round trains the pre-trained weights under the mask of the round before, prunes the smallest of
the *trained* weights, and rewinds the others to their values before training (Frankle and Carbin,
arXiv 1803.03635; Chen et al., arXiv 2007.12223, rewind to pre-trained weights). The score of a
round's ticket is that of the next round's training, so that no training is done twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from prunectl.benchmarking.machine import machine_of
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import read_masks
from prunectl.device import check_device, choose_device
from prunectl.errors import InvalidOption
from prunectl.evaluation.loaded_model import LoadedModel
from prunectl.evaluation.metric import MAJORITY, Metric, prepare
from prunectl.evaluation.settings import EvalSettings, Training
from prunectl.events import OnEvent, ignore_events
from prunectl.loading.compressed import open_model
from prunectl.parallel.run import Run
from prunectl.pattern import Unstructured, pruned_count
from prunectl.plan.prunable import require_prunable
from prunectl.plan.settings import PruneSettings
from prunectl.studies.compare.result import Overlap
from prunectl.studies.compare.verb import compare
from prunectl.studies.lottery.folder import LotteryFolder
from prunectl.studies.lottery.masks import write_mask
from prunectl.studies.lottery.result import LotteryResult, Round, Scored, verdict
from prunectl.studies.lottery.settings import LotterySettings
from prunectl.studies.settings import CompareSettings
from prunectl.studies.sweep.curves import Requested, ends
from prunectl.studies.sweep.measurer import Measurer
from prunectl.studies.sweep.points import Point
from prunectl.to_json import to_json

OnResult = Callable[[LotteryResult], None]


def lottery(
    model: Checkpoint | str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: LotterySettings | None = None,
    *,
    jobs: int | None = None,
    command: str = "",
    on_event: OnEvent = ignore_events,
    on_result: OnResult | None = None,
) -> LotteryResult:
    """Find a lottery ticket, and measure whether it is better than one-shot pruning.

    Args:
        model: an open checkpoint, or what :func:`prunectl.open_checkpoint` takes.
        output: folder for the masks of all rounds, the scores, and ``lottery.json``. An unfinished
            search in it is resumed after its last round, and a training after its last epoch.
        settings: metric, data, recipe, and the sparsity of the ticket.
        jobs: threads that read; default one per core, eight at most.
        command: recorded in the result. on_result: receives the result so far, after each round.

    Raises:
        OtherLottery: the folder holds another search.
        OutputConflict: it holds other files, or another process works in it.
        UsageError, SourceError, BadData: as :func:`prunectl.sweep`.
        CannotWrite: the folder cannot be written.
    """
    started = time.perf_counter()
    run = Run(jobs, on_event=on_event)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InvalidOption(
            "a lottery runs in one process", hint="start it without accelerate launch or torchrun"
        )
    settings = settings or LotterySettings()
    check_device(settings.evaluation.device)
    checkpoint = run.opened(model, open_model)
    folder = LotteryFolder(Path(output))
    evaluation = _with_states_in(folder, settings.evaluation)
    metric = prepare(checkpoint, evaluation, on_event)
    prunable = require_prunable(checkpoint, settings.include, settings.exclude)
    names = {name: spec.numel for name, spec in prunable.items()}  # in file order
    sweep = replace(settings.sweep, evaluation=evaluation)
    found = _empty(checkpoint, metric, names, settings, command)
    with ExitStack() as stack:
        stack.callback(folder.close)
        folder.claim(checkpoint, metric, settings, command)
        measurer = stack.enter_context(Measurer(checkpoint, metric, sweep, folder.points(), run))
        search = _Search(measurer, folder, settings, names, run)
        try:
            for number in range(len(settings.steps) + 1):
                found = search.round(number, found)
                found = replace(found, seconds=time.perf_counter() - started)
                folder.write(found)
                if on_result is not None:
                    on_result(found)
                if search.failed(number):
                    break
        except KeyboardInterrupt:
            if found.dense.score is None:
                raise
            found = replace(found, interrupted=True)
    return found


def _with_states_in(folder: LotteryFolder, evaluation: EvalSettings) -> EvalSettings:
    """Keep states of trainings in the folder, unless the user named another place."""
    training = evaluation.training or Training()
    if training.checkpoints is None:
        training = replace(training, checkpoints=folder.training)
    return replace(evaluation, training=training)


class _Search:
    """All rounds of all seeds; a training runs when its score or its mask is needed."""

    def __init__(
        self,
        measurer: Measurer,
        folder: LotteryFolder,
        settings: LotterySettings,
        names: dict[str, int],
        run: Run,
    ) -> None:
        self._measurer, self._folder, self._settings = measurer, folder, settings
        self._names, self._run = names, run
        self._tickets: dict[int, dict[int, Point]] = {}

    def round(self, number: int, found: LotteryResult) -> LotteryResult:
        """The result after a round; round 0 is the dense model."""
        settings = self._settings
        tickets = {seed: self._ticket(number, seed) for seed in settings.seeds}
        self._tickets[number] = tickets
        if not number:
            majority = tickets[settings.seeds[0]].parts.get(MAJORITY)
            return replace(found, dense=self._scored(0.0, tickets), majority=majority)
        sparsity = settings.steps[number - 1]
        measure = self._measurer.measure
        shots = {seed: measure(Unstructured(), sparsity, seed) for seed in settings.seeds}
        paths = {seed: self._folder.mask(seed, number) for seed in settings.seeds}
        gain = self._gain(sparsity, tickets, shots)
        done = Round(
            number=number,
            sparsity=sparsity,
            ticket=self._scored(sparsity, tickets),
            one_shot=self._scored(sparsity, shots),
            gain=gain[0],
            gain_low=gain[1],
            gain_high=gain[2],
            overlaps={str(seed): self._overlap(path, sparsity) for seed, path in paths.items()
                      if path.exists()},
            masks={str(seed): self._folder.named(path) for seed, path in paths.items()},
        )  # fmt: skip
        found = replace(found, rounds=(*found.rounds, done), trainings=number)
        return replace(found, verdict=verdict(found))

    def failed(self, number: int) -> bool:
        """Whether a round failed, so that the next one has no mask."""
        return any(point.failed for point in self._tickets[number].values())

    def _ticket(self, number: int, seed: int) -> Point:
        """The score of a round's ticket; its training makes the mask of the next one."""
        steps = self._settings.steps
        wanted = PruneSettings(mask=self._folder.mask(seed, number)) if number else None
        sparsity = steps[number - 1] if number else 0.0
        if number == len(steps):
            return self._measurer.measure_as(wanted, sparsity, seed)
        following = self._folder.mask(seed, number + 1)

        def keep(loaded: LoadedModel) -> None:
            tensors = loaded.weights(self._names)
            write_mask(following, tensors, steps[number], self._measurer.checkpoint)
            self._folder.record(seed, number + 1, self._names)

        count = pruned_count(steps[number], sum(self._names.values()))
        is_there = self._folder.has_mask(seed, number + 1, self._names, count)
        if following.exists() and not is_there:
            name = self._folder.named(following)
            text = f"{name} is not the mask that was made, or is damaged: it is made again"
            self._run.note(text, warning=True)
        return self._measurer.measure_as(wanted, sparsity, seed, then=keep, again=not is_there)

    def _scored(self, sparsity: float, points: dict[int, Point]) -> Scored:
        asked = Requested(sparsity, points)
        low, high = ends(self._measurer.redraws.of(asked))
        scores = {str(seed): point.score for seed, point in points.items()}
        return Scored(
            score=None if asked.failed else asked.mean,
            low=low,
            high=high,
            seeds=scores,
            seconds=asked.seconds,
            failed=asked.failed or None,
        )

    def _gain(
        self, sparsity: float, tickets: dict[int, Point], shots: dict[int, Point]
    ) -> tuple[float | None, float | None, float | None]:
        """Ticket over one-shot, and its interval; the draws are the same for both."""
        ticket, shot = Requested(sparsity, tickets), Requested(sparsity, shots)
        if ticket.failed or shot.failed:
            return None, None, None
        sign = 1 if self._measurer.metric.higher_is_better else -1
        redraws = self._measurer.redraws
        low, high = ends(sign * (redraws.of(ticket) - redraws.of(shot)))
        return sign * (ticket.mean - shot.mean), low, high

    def _overlap(self, path: Path, sparsity: float) -> Overlap:
        """The ticket's mask compared with that of one-shot pruning."""
        own = CompareSettings(
            sparsities=(sparsity,),
            include=self._settings.include,
            exclude=self._settings.exclude,
        )
        # Zeros that the model has from the start are no mask here.
        model = self._measurer.checkpoint
        found = compare(model, read_masks(path), own, by_zeros=False, jobs=self._run.jobs)
        return found.masks[0].overlap


def _empty(
    checkpoint: Checkpoint,
    metric: Metric,
    names: dict[str, int],
    settings: LotterySettings,
    command: str,
) -> LotteryResult:
    """A result before the first training."""
    return LotteryResult(
        model=checkpoint.model,
        revision=checkpoint.commit,
        weights=sum(names.values()),
        metric=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        samples=metric.samples,
        record=metric.record,
        settings={
            "sparsity": settings.sparsity,
            "rounds": len(settings.steps),
            "rate": settings.rate,
            "seeds": list(settings.seeds),
            "include": list(settings.include),
            "exclude": list(settings.exclude),
        },
        machine=to_json(machine_of(choose_device(settings.evaluation.device))),
        dense=Scored(None, None, None, {}, 0.0),
        majority=None,
        rounds=(),
        planned=settings.steps,
        trainings=0,
        verdict="",
        command=command,
        seconds=0.0,
    )
