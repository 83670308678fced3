"""The folder of a search: the masks of all rounds, points, states of trainings, and the result."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.documents import read_object
from prunectl.errors import CannotWrite, OutputConflict
from prunectl.evaluation.metric import Metric
from prunectl.output.osfiles import real_path, replace_file
from prunectl.studies.errors import OtherLottery
from prunectl.studies.lottery.masks import found_in
from prunectl.studies.lottery.result import LotteryResult
from prunectl.studies.lottery.settings import LotterySettings
from prunectl.studies.sweep.points import Points, key_of

RESULT, POINTS = "lottery.json", "points.jsonl"
MASKS = "masks.json"
"""The BLAKE3 digest of each file of masks: a damaged or foreign file is no ticket."""
OURS = {RESULT, POINTS, MASKS, "masks", "training"}


class LotteryFolder:
    """Where a search keeps what it has found.

    Attributes:
        path: the folder. training: states of unfinished trainings.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.training = path, path / "training"
        self._key = ""
        self._fd: int | None = None

    def claim(
        self, checkpoint: Checkpoint, metric: Metric, settings: LotterySettings, command: str
    ) -> None:
        """Create the folder, or check that it belongs to this search.

        The folder is locked until :meth:`close`. A search may have more seeds than before; all
        else that decides the masks must be the same.

        Raises:
            OtherLottery: it belongs to another search. CannotWrite: it cannot be created.
            OutputConflict: it is not empty, in the model's own folder, or in use.
        """
        self._key = key_of({
            "source": checkpoint.identity(),
            "metric": metric.record,
            "steps": list(settings.steps),
            "include": list(settings.include),
            "exclude": list(settings.exclude),
        })  # fmt: skip
        try:
            self._refuse_others(checkpoint)
            (self.path / "masks").mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise CannotWrite(self.path, error.strerror or type(error).__name__) from None
        if not (self.path / RESULT).exists() and not (self.path / POINTS).exists():
            self._write({"key": self._key, "command": command})
        elif (known := self._known_key()) != self._key:
            raise OtherLottery(self.path, is_known=known is not None)

    def close(self) -> None:
        """Unlock the folder."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _refuse_others(self, checkpoint: Checkpoint) -> None:
        """Refuse the model's own folder, and folders that hold other files."""
        source, place = checkpoint.folder.resolve(), real_path(self.path)
        if checkpoint.kind == "folder" and place.is_relative_to(source):
            raise OutputConflict(self.path, "lies in the model's folder, which is never changed")
        found = {one.name for one in self.path.iterdir()} if self.path.is_dir() else set()
        if not {RESULT, POINTS} & found and any(not one.startswith(".") for one in found - OURS):
            raise OutputConflict(self.path, "is not empty, and no lottery's folder")

    def _lock(self) -> None:
        """Lock the folder: two searches would overwrite each other's states of trainings."""
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputConflict(self.path, "another prunectl is working in it now") from None
        except OSError:  # some cluster file systems have no locks
            return

    def points(self) -> Points:
        """The known scores."""
        return Points(self.path / POINTS)

    def mask(self, seed: int, number: int) -> Path:
        """The file of masks that a round of a seed makes."""
        return self.path / "masks" / f"seed-{seed}-round-{number:02}.safetensors"

    def has_mask(self, seed: int, number: int, weights: Mapping[str, int], zeros: int) -> bool:
        """Whether the mask of a round exists, is complete, and is the one that was made.

        Args:
            weights: of each prunable tensor.
            zeros: the zeros that a mask without a recorded digest must have; a crash may come
                before the digest is recorded.
        """
        path = self.mask(seed, number)
        found = found_in(path, weights)
        if found is None:
            return False
        known = read_object(self.path / MASKS).get(path.name)
        if known is None and found.zeros == zeros:
            self.record(seed, number, weights)
            return True
        return known == found.digest

    def record(self, seed: int, number: int, weights: Mapping[str, int]) -> None:
        """Record the digest of a mask; if it changed, delete the masks of later rounds."""
        path = self.mask(seed, number)
        found = found_in(path, weights)
        digest = found.digest if found else None
        known = read_object(self.path / MASKS)
        if known.get(path.name, digest) != digest:
            later = number + 1
            while (stale := self.mask(seed, later)).is_file():
                stale.unlink(missing_ok=True)
                known.pop(stale.name, None)
                later += 1
        self._write({**known, path.name: digest}, MASKS)

    def named(self, path: Path) -> str:
        """The path of a file, relative to the folder."""
        return path.relative_to(self.path).as_posix()

    def write(self, result: LotteryResult) -> None:
        """Replace the result by a newer one."""
        self._write({"key": self._key, **result.to_json()})

    def _write(self, document: dict[str, Any], name: str = RESULT) -> None:
        replace_file(self.path / name, (json.dumps(document, indent=2) + "\n").encode())

    def _known_key(self) -> str | None:
        key = read_object(self.path / RESULT).get("key")
        return key if isinstance(key, str) else None
