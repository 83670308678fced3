"""lm-evaluation-harness without its own bars, logs and warnings: its progress becomes events."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted, ignore_events

_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
_PHASE = "harness"


class _Bar:
    """As much of a bar of tqdm as the harness uses."""

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        on_event: OnEvent,
        **options: Any,
    ) -> None:
        self._iterable, self._on_event, self._open = iterable, on_event, True
        if total is None:
            total = len(iterable) if hasattr(iterable, "__len__") else 0  # type: ignore[arg-type]
        on_event(PhaseStarted(_PHASE, total, "requests"))

    def __iter__(self) -> Iterator[Any]:
        for one in self._iterable or ():
            yield one
            self.update(1)
        self.close()

    def update(self, count: int = 1) -> None:
        self._on_event(Advanced(_PHASE, count))

    def close(self) -> None:
        if self._open:
            self._on_event(PhaseDone(_PHASE))
        self._open = False


@contextmanager
def quiet_harness(on_event: OnEvent = ignore_events) -> Iterator[None]:
    """Inside of it, the harness shows nothing, and ``on_event`` hears how far it is."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with quiet_transformers():
        modules = _modules()
        before = [module.tqdm for module in modules]
        for module in modules:
            module.tqdm = lambda *rest, **options: _Bar(*rest, **options, on_event=on_event)
        try:
            yield
        finally:
            for module, bar in zip(modules, before, strict=True):
                module.tqdm = bar
            logger.setLevel(level)


def _modules() -> list[Any]:
    try:
        return [importlib.import_module(name) for name in _WITH_BARS]
    except ImportError:  # whoever needs it will say so
        return []
