"""Resources of a command, chosen once where it begins: threads, ranks, device, listener."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import InvalidOption
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted, ignore_events
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.streaming import Scratch, batches, default_jobs, run_ordered

if TYPE_CHECKING:
    from prunectl.magnitude.on_device import OnDevice

Item = TypeVar("Item")
Result = TypeVar("Result")

Advance = Callable[[int, str], None]
"""Reports bytes as done, and the tensor or file that they belong to."""

MAX_JOBS = 256


@dataclass(frozen=True, slots=True)
class Run:
    """The threads, ranks, device and listener of one command.

    Attributes:
        jobs: threads; None is one per core, eight at most.
        ranks: the processes that share the work.
        device: the CUDA device for magnitudes of large tensors; None is the CPU.
        on_event: receives progress.

    Raises:
        InvalidOption: ``jobs`` is out of range.
    """

    jobs: int | None = None
    ranks: Ranks = ALONE
    device: OnDevice | None = None
    on_event: OnEvent = ignore_events

    def __post_init__(self) -> None:
        if self.jobs is not None and not 1 <= self.jobs <= MAX_JOBS:
            raise InvalidOption(f"jobs: {self.jobs} is not 1 to {MAX_JOBS}", hint="leave it out")

    def note(self, text: str, *, warning: bool = False) -> None:
        """Report a sentence to the user."""
        self.on_event(Note(text, warning))

    def opened(
        self, model: Checkpoint | str | os.PathLike[str], opener: Callable[[str], Checkpoint]
    ) -> Checkpoint:
        """Open a model, unless it is open, and report the notes on it."""
        checkpoint = model if isinstance(model, Checkpoint) else opener(os.fspath(model))
        for text in checkpoint.notes:
            self.note(text, warning=True)
        return checkpoint

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Report a step of ``total`` bytes."""
        self.on_event(PhaseStarted(name, total))
        yield lambda count, item: self.on_event(Advanced(name, count, item))
        self.on_event(PhaseDone(name))

    def ordered(
        self, items: Iterable[Item], work: Callable[[Item, Scratch], Result]
    ) -> Iterator[Result]:
        """Apply ``work`` to every item in threads; yield the results in the order of the items."""
        return run_ordered(items, work, self.jobs or default_jobs(), self.device)

    def tensors(
        self,
        tensors: Iterable[StoredTensor],
        work: Callable[[StoredTensor, Scratch], Result],
    ) -> Iterator[tuple[StoredTensor, Result]]:
        """:meth:`ordered` over tensors, small ones in batches; yields tensors and their results."""

        def work_batch(
            batch: list[StoredTensor], scratch: Scratch
        ) -> list[tuple[StoredTensor, Result]]:
            return [(tensor, work(tensor, scratch)) for tensor in batch]

        for done in self.ordered(batches(tensors), work_batch):
            yield from done

    def shared_tensors(
        self,
        phase: str,
        tensors: Sequence[StoredTensor],
        work: Callable[[StoredTensor, Scratch], Result],
    ) -> Iterator[tuple[StoredTensor, Result]]:
        """:meth:`tensors` as a phase; each rank works on consecutive tensors.

        The phase advances with this rank's own part. The results follow all at once.

        Yields:
            All tensors with their results, in the order of ``tensors``, on every rank. Results must
            pickle.
        """
        own = self.ranks.part(tensors)
        with self.phase(phase, sum(tensor.spec.nbytes for tensor in own)) as advance:

            def done() -> Iterator[Result]:
                for tensor, result in self.tensors(own, work):
                    advance(tensor.spec.nbytes, tensor.name)
                    yield result

            yield from zip(tensors, self.ranks.all_gather(done()), strict=True)

    @contextmanager
    def on_device(self, wanted: str, *, tells_unused: bool = True) -> Iterator[Run]:
        """This run with the requested CUDA device.

        ``auto`` is the CPU: its kernels keep up with disks, and a device would add a transfer in
        both directions. At the end, a note reports a device that was full or unused.

        Args:
            wanted: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            tells_unused: whether to report an unused device; False where it has other work too.

        Raises:
            InvalidOption: no such device.
        """
        if wanted in ("auto", "cpu"):  # do not import torch, which takes a second
            yield self
            return
        from prunectl.device import choose_device
        from prunectl.magnitude.on_device import OnDevice

        place = choose_device(wanted)
        device = OnDevice(place) if place.type == "cuda" else None
        yield replace(self, device=device)
        if device is not None and device.was_full:
            self.note(f"{place} was full: the CPU processed the tensors that did not fit")
        if device is not None and not device.was_used and tells_unused:
            self.note(
                f"{place} was not used: it has no part in masks, cached measurements, "
                "tensors of up to 1 MiB, or measuring fp32"
            )


PLAIN_RUN = Run()
"""One process, one thread per core, on the CPU, without a listener."""
