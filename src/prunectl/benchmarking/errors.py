"""Errors of a benchmark, raised on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.errors import PrunectlError, UsageError

if TYPE_CHECKING:
    from prunectl.benchmarking.result import BenchResult


class CannotRun(PrunectlError):
    """A model that cannot be loaded, or whose forward pass fails."""

    def __init__(self, model: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{model}: cannot be run: {why}", hint=hint)
        self.model, self.why = model, why


class NotEnoughMemory(PrunectlError):
    """A model, or every workload, does not fit the device's memory."""

    def __init__(self, model: str, device: str, what: str) -> None:
        super().__init__(
            f"{model}: out of memory on {device}: {what}",
            hint="try a smaller --batch-size or --prompt-tokens, --dtype bfloat16, or --device cpu",
        )
        self.model, self.device, self.what = model, device, what


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after something was measured; ``result`` holds that."""

    def __init__(self, result: BenchResult) -> None:
        super().__init__("interrupted")
        self.result = result


class BadBenchFile(UsageError):
    """A file for --compare that is not a saved result of bench."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(
            f"{path}: {why}", hint="results are written by 'prunectl bench MODEL -o FILE'"
        )
        self.path, self.why = str(path), why


class Slower(PrunectlError):
    """A benchmark that is slower than an older one by more than was allowed."""

    def __init__(self, ratio: float, rows: Sequence[str]) -> None:
        more = f"; and {len(rows) - 3} more" if len(rows) > 3 else ""
        super().__init__(
            f"slower than {ratio:g}x of before: {'; '.join(rows[:3])}{more}",
            hint="measure again on a quiet machine before you look for a cause",
        )
        self.ratio, self.rows = ratio, tuple(rows)
