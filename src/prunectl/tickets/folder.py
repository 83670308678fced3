"""The folder of a search: masks of all rounds, points, states of trainings, and the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import CannotWrite
from prunectl.evaluation.metric import Metric
from prunectl.study.points import Points, key_of
from prunectl.tickets.errors import OtherLottery
from prunectl.tickets.masks import found_in
from prunectl.tickets.result import LotteryResult
from prunectl.tickets.settings import LotterySettings

RESULT = "lottery.json"
MASKS = "masks.json"
"""BLAKE3 of each file of masks, by its name: what was damaged or put there is no ticket."""
_LARGEST = 1 << 26


class LotteryFolder:
    """Where a search keeps what it has found.

    Attributes:
        path: the folder. training: states of trainings that are not done.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.training = path, path / "training"
        self._key = ""

    def claim(
        self, checkpoint: Checkpoint, metric: Metric, settings: LotterySettings, command: str
    ) -> None:
        """Make the folder, or find that it is of this very search.

        Seeds may be added to it; all else that decides the masks must be the same.

        Raises:
            OtherLottery: it is of another. CannotWrite: it cannot be made.
        """
        self._key = key_of({
            "source": checkpoint.identity(),
            "metric": metric.record,
            "steps": list(settings.steps),
            "include": list(settings.include),
            "exclude": list(settings.exclude),
        })  # fmt: skip
        try:
            (self.path / "masks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(self.path, error.strerror or type(error).__name__) from None
        if not (self.path / RESULT).exists() and not (self.path / "points.jsonl").exists():
            self._write({"key": self._key, "command": command})
        elif self._known_key() != self._key:
            raise OtherLottery(self.path)

    def points(self) -> Points:
        """The scores that are known."""
        return Points(self.path / "points.jsonl")

    def mask(self, seed: int, number: int) -> Path:
        """The file of masks that a round of a seed leaves."""
        return self.path / "masks" / f"seed-{seed}-round-{number:02}.safetensors"

    def has_mask(self, seed: int, number: int, weights: Mapping[str, int], zeros: int) -> bool:
        """Whether the mask that a round leaves is there, whole, and the one that was made.

        Args:
            weights: of each prunable tensor. zeros: what a mask that is not on record (a crash came
                between) must have.
        """
        path = self.mask(seed, number)
        found = found_in(path, weights)
        if found is None:
            return False
        known = self._read(MASKS).get(path.name)
        if known is None and found.zeros == zeros:
            self.record(seed, number, weights)
            return True
        return known == found.digest

    def record(self, seed: int, number: int, weights: Mapping[str, int]) -> None:
        """Note what the mask is that was made; masks that a former one led to are of no use."""
        path = self.mask(seed, number)
        found = found_in(path, weights)
        digest = found.digest if found else None
        known = self._read(MASKS)
        if known.get(path.name, digest) != digest:
            later = number + 1
            while (stale := self.mask(seed, later)).is_file():
                stale.unlink(missing_ok=True)
                known.pop(stale.name, None)
                later += 1
        self._write({**known, path.name: digest}, MASKS)

    def named(self, path: Path) -> str:
        """A file's name in the folder."""
        return path.relative_to(self.path).as_posix()

    def write(self, result: LotteryResult) -> None:
        """Keep what is known, in place of what was known before."""
        self._write({"key": self._key, **result.to_json()})

    def _write(self, document: dict[str, Any], name: str = RESULT) -> None:
        target = self.path / name
        hidden = target.with_name(f".{name}.{os.getpid()}")
        try:
            hidden.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            hidden.replace(target)
        except OSError as error:
            raise CannotWrite(target, error.strerror or type(error).__name__) from None

    def _known_key(self) -> str | None:
        key = self._read(RESULT).get("key")
        return key if isinstance(key, str) else None

    def _read(self, name: str) -> dict[str, Any]:
        """A document; {} where there is none that can be read."""
        path = self.path / name
        try:
            if not path.is_file() or path.stat().st_size > _LARGEST:
                return {}
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
