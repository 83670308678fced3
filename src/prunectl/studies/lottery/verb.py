"""The ``lottery`` verb: iterative magnitude pruning with rewinding, beside one-shot pruning.

Each round trains the pre-trained weights under the mask it was given, prunes the smallest of the
*trained* ones, and rewinds the others to what they were before training (Frankle and Carbin, arXiv
1803.03635; Chen et al., arXiv 2007.12223, rewind to pre-trained weights). The score of a round's
ticket is that of the next round's training, so that no training is done twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
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
from prunectl.evaluation.resampling import interval
from prunectl.evaluation.settings import EvalSettings, Training
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.loading.compressed import open_model
from prunectl.pattern import Unstructured, pruned_count
from prunectl.plan.prunable import require_prunable
from prunectl.plan.settings import PruneSettings
from prunectl.studies.compare.result import Overlap
from prunectl.studies.compare.verb import compare
from prunectl.studies.lottery.folder import LotteryFolder
from prunectl.studies.lottery.masks import write_mask
from prunectl.studies.lottery.result import LotteryResult, Round, Scored
from prunectl.studies.lottery.settings import LotterySettings
from prunectl.studies.settings import CompareSettings
from prunectl.studies.sweep.curves import Requested
from prunectl.studies.sweep.measurer import Measurer
from prunectl.studies.sweep.points import Point
from prunectl.to_json import to_json

_ALONE = (
    " That is of one training each: what another seed would change is not in the interval "
    "(--seeds 0,1,2)."
)

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
    """Find a lottery ticket, and tell whether it is better than what one-shot pruning gives.

    Args:
        model: an open checkpoint, or what :func:`prunectl.open_checkpoint` takes.
        output: folder of the masks of all rounds, the scores, and ``lottery.json``. What is there
            of the same search is gone on from: the last round, and of a training the last epoch.
        settings: metric, data, recipe, and how sparse the ticket is to be.
        jobs: threads that read; default one per core, eight at most.
        command: recorded. on_result: receives what is known, after each round.

    Raises:
        OtherLottery: the folder holds another search. OutputConflict: or something else, or
            another process works in it.
        UsageError, SourceError, BadData: as :func:`prunectl.sweep`. CannotWrite: the folder.
    """
    started = time.perf_counter()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InvalidOption(
            "a lottery runs in one process", hint="start it without accelerate launch or torchrun"
        )
    settings = settings or LotterySettings()
    check_device(settings.evaluation.device)
    checkpoint = model if isinstance(model, Checkpoint) else open_model(model)
    for text in checkpoint.notes:
        on_event(Note(text, warning=True))
    folder = LotteryFolder(Path(output))
    evaluation = _kept(settings.evaluation, folder)
    metric = prepare(checkpoint, evaluation, on_event)
    names = _prunable(checkpoint, settings)
    sweep = replace(settings.sweep, evaluation=evaluation)
    found = _empty(checkpoint, metric, names, settings, command)
    with ExitStack() as stack:
        stack.callback(folder.close)
        folder.claim(checkpoint, metric, settings, command)
        measurer = stack.enter_context(
            Measurer(checkpoint, metric, sweep, folder.points(), jobs, on_event)
        )
        search = _Search(measurer, folder, settings, names, jobs, on_event)
        try:
            for number in range(len(settings.steps) + 1):
                found = search.played(number, found)
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


def _kept(evaluation: EvalSettings, folder: LotteryFolder) -> EvalSettings:
    """States of trainings go into the folder, unless they have a place of their own."""
    training = evaluation.training or Training()
    if training.checkpoints is None:
        training = replace(training, checkpoints=folder.training)
    return replace(evaluation, training=training)


def _prunable(checkpoint: Checkpoint, settings: LotterySettings) -> dict[str, int]:
    """Prunable tensors in file order, and their weights."""
    found = require_prunable(checkpoint, settings.include, settings.exclude)
    return {name: spec.numel for name, spec in found.items()}


class _Search:
    """All rounds of all seeds; each training is done when its score or its mask is asked for."""

    def __init__(
        self,
        measurer: Measurer,
        folder: LotteryFolder,
        settings: LotterySettings,
        names: dict[str, int],
        jobs: int | None,
        on_event: OnEvent,
    ) -> None:
        self._measurer, self._folder, self._settings = measurer, folder, settings
        self._names, self._jobs, self._on_event = names, jobs, on_event
        self._tickets: dict[int, dict[int, Point]] = {}

    def played(self, number: int, found: LotteryResult) -> LotteryResult:
        """What is known after a round; round 0 is the dense model."""
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
        """Whether a round leaves nothing to go on from."""
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
            self._on_event(Note(text, warning=True))
        return self._measurer.measure_as(wanted, sparsity, seed, then=keep, again=not is_there)

    def _scored(self, sparsity: float, points: dict[int, Point]) -> Scored:
        asked = Requested(sparsity, points)
        around = interval(self._measurer.redraws.of(asked))
        scores = {str(seed): point.score for seed, point in points.items()}
        known = [one for one in scores.values() if one is not None]
        return Scored(
            score=None if asked.failed else sum(known) / len(known),
            low=around.low if around else None,
            high=around.high if around else None,
            seeds=scores,
            seconds=sum(point.seconds for point in points.values()),
            failed=asked.failed or None,
        )

    def _gain(
        self, sparsity: float, tickets: dict[int, Point], shots: dict[int, Point]
    ) -> tuple[float | None, float | None, float | None]:
        """Ticket over one-shot, and its interval: the same samples and seeds are drawn of both."""
        asked = [Requested(sparsity, points) for points in (tickets, shots)]
        if any(one.failed for one in asked):
            return None, None, None
        sign = 1 if self._measurer.metric.higher_is_better else -1
        first, second = (self._measurer.redraws.of(one) for one in asked)
        around = interval(sign * (first - second))
        means = [_mean(list(points.values())) for points in (tickets, shots)]
        gain = sign * (means[0] - means[1])
        return gain, around.low if around else None, around.high if around else None

    def _overlap(self, path: Path, sparsity: float) -> Overlap:
        """The ticket's mask beside that of one-shot pruning."""
        own = CompareSettings(
            sparsities=(sparsity,),
            include=self._settings.include,
            exclude=self._settings.exclude,
        )
        model = self._measurer.checkpoint  # that it may have zeros is no mask here
        found = compare(model, read_masks(path), own, by_zeros=False, jobs=self._jobs)
        return found.masks[0].overlap


def _mean(points: Sequence[Point]) -> float:
    return sum(point.score for point in points if point.score is not None) / len(points)


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


def verdict(result: LotteryResult) -> str:
    """Whether the last round's ticket is worth its trainings."""
    last = result.rounds[-1]
    at = f"At {100 * last.sparsity:.4g}% sparsity"
    if last.gain is None:
        why = last.ticket.failed or last.one_shot.failed
        return f"{at} the two cannot be compared: {why}."
    if result.majority is not None and (result.dense.score or 0.0) <= result.majority:
        return (
            "The dense model is no better than always giving the most frequent answer, so that "
            "neither mask says anything: train longer, or on more."
        )
    cost = f"{result.trainings} training{'s' * (result.trainings != 1)}"
    by = f"{abs(last.gain):.4g}"
    if last.gain_low is None or last.gain_high is None:
        return (
            f"{at} the ticket's score differs by {last.gain:+.4g}; how sure that is is not known."
        )
    sure = f"95%: {last.gain_low:+.4g} to {last.gain_high:+.4g}"
    alone = "" if len(last.ticket.seeds) > 1 else _ALONE
    if last.gain_low > 0:
        return f"{at} the ticket is better by {by} ({sure}), for {cost}.{alone}"
    if last.gain_high < 0:
        lost = f"{cost} {'is' if result.trainings == 1 else 'are'} lost"
        return f"{at} one-shot pruning, which is free, is better by {by} ({sure}); {lost}.{alone}"
    return f"{at} no difference can be told: {last.gain:+.4g} ({sure}), after {cost}."
