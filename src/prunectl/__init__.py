"""prunectl: make pre-trained transformer checkpoints smaller and cheaper without a training run.

The public API; importing it loads neither torch nor numpy::

    import prunectl

    checkpoint = prunectl.open_checkpoint("org/name")
    analysis = prunectl.analyze(checkpoint)
    result = prunectl.prune(checkpoint, "out/", prunectl.PruneSettings(sparsity=0.4))
    report = prunectl.verify("out/")
    curve = prunectl.sweep(checkpoint).curves[0]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunectl._version import __version__
from prunectl.loading import hook

if TYPE_CHECKING:
    from prunectl.analysis.result import Analysis
    from prunectl.analysis.verb import analyze
    from prunectl.benchmarking.result import BenchResult
    from prunectl.benchmarking.settings import BenchSettings
    from prunectl.benchmarking.verb import bench
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.checkpoint.opening import open_checkpoint
    from prunectl.comparing.result import Comparison
    from prunectl.comparing.settings import CompareSettings
    from prunectl.comparing.verb import compare
    from prunectl.errors import PrunectlError
    from prunectl.evaluation.result import Evaluation
    from prunectl.evaluation.settings import EvalSettings, Training
    from prunectl.evaluation.verb import evaluate
    from prunectl.exporting.result import ExportResult
    from prunectl.exporting.verb import export
    from prunectl.loading.model import load_model
    from prunectl.loading.weights import Weights, load_state_dict, open_weights
    from prunectl.pattern import NM, Unstructured, parse_pattern
    from prunectl.plan import Plan
    from prunectl.pruning.job import plan_prune
    from prunectl.pruning.result import PruneResult
    from prunectl.pruning.verb import prune
    from prunectl.publishing.result import PushResult
    from prunectl.publishing.verb import push
    from prunectl.ranks.joining import joined_ranks
    from prunectl.ranks.ranks import Ranks
    from prunectl.recipe import load_recipe
    from prunectl.settings import Budget, Calibration, Method, PruneSettings, Rule, Scope
    from prunectl.study.result import SweepResult
    from prunectl.study.settings import SweepSettings
    from prunectl.study.sweep import sweep
    from prunectl.study.tolerance import Tolerance
    from prunectl.tickets.result import LotteryResult
    from prunectl.tickets.settings import LotterySettings
    from prunectl.tickets.verb import lottery
    from prunectl.tracing.result import Trace
    from prunectl.tracing.settings import TraceSettings
    from prunectl.tracing.verb import trace
    from prunectl.verification.result import VerifyReport
    from prunectl.verification.verb import verify

_HOMES = {
    "Analysis": "prunectl.analysis.result",
    "analyze": "prunectl.analysis.verb",
    "BenchResult": "prunectl.benchmarking.result",
    "BenchSettings": "prunectl.benchmarking.settings",
    "bench": "prunectl.benchmarking.verb",
    "Checkpoint": "prunectl.checkpoint.checkpoint",
    "open_checkpoint": "prunectl.checkpoint.opening",
    "Comparison": "prunectl.comparing.result",
    "CompareSettings": "prunectl.comparing.settings",
    "compare": "prunectl.comparing.verb",
    "PrunectlError": "prunectl.errors",
    "Evaluation": "prunectl.evaluation.result",
    "EvalSettings": "prunectl.evaluation.settings",
    "Training": "prunectl.evaluation.settings",
    "evaluate": "prunectl.evaluation.verb",
    "ExportResult": "prunectl.exporting.result",
    "export": "prunectl.exporting.verb",
    "load_model": "prunectl.loading.model",
    "Weights": "prunectl.loading.weights",
    "load_state_dict": "prunectl.loading.weights",
    "open_weights": "prunectl.loading.weights",
    "LotteryResult": "prunectl.tickets.result",
    "LotterySettings": "prunectl.tickets.settings",
    "lottery": "prunectl.tickets.verb",
    "NM": "prunectl.pattern",
    "Unstructured": "prunectl.pattern",
    "parse_pattern": "prunectl.pattern",
    "Plan": "prunectl.plan",
    "Budget": "prunectl.settings",
    "Calibration": "prunectl.settings",
    "Method": "prunectl.settings",
    "PruneSettings": "prunectl.settings",
    "PushResult": "prunectl.publishing.result",
    "push": "prunectl.publishing.verb",
    "Rule": "prunectl.settings",
    "Scope": "prunectl.settings",
    "PruneResult": "prunectl.pruning.result",
    "plan_prune": "prunectl.pruning.job",
    "prune": "prunectl.pruning.verb",
    "Ranks": "prunectl.ranks.ranks",
    "joined_ranks": "prunectl.ranks.joining",
    "load_recipe": "prunectl.recipe",
    "SweepResult": "prunectl.study.result",
    "SweepSettings": "prunectl.study.settings",
    "sweep": "prunectl.study.sweep",
    "Tolerance": "prunectl.study.tolerance",
    "Trace": "prunectl.tracing.result",
    "TraceSettings": "prunectl.tracing.settings",
    "trace": "prunectl.tracing.verb",
    "VerifyReport": "prunectl.verification.result",
    "verify": "prunectl.verification.verb",
}

# transformers learns of compressed folders when it is imported; this imports nothing heavy.
hook.install()

__all__ = [
    "NM",
    "Analysis",
    "BenchResult",
    "BenchSettings",
    "Budget",
    "Calibration",
    "Checkpoint",
    "CompareSettings",
    "Comparison",
    "EvalSettings",
    "Evaluation",
    "ExportResult",
    "LotteryResult",
    "LotterySettings",
    "Method",
    "Plan",
    "PruneResult",
    "PruneSettings",
    "PrunectlError",
    "PushResult",
    "Ranks",
    "Rule",
    "Scope",
    "SweepResult",
    "SweepSettings",
    "Tolerance",
    "Trace",
    "TraceSettings",
    "Training",
    "Unstructured",
    "VerifyReport",
    "Weights",
    "__version__",
    "analyze",
    "bench",
    "compare",
    "evaluate",
    "export",
    "joined_ranks",
    "load_model",
    "load_recipe",
    "load_state_dict",
    "lottery",
    "open_checkpoint",
    "open_weights",
    "parse_pattern",
    "plan_prune",
    "prune",
    "push",
    "sweep",
    "trace",
    "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'prunectl' has no attribute '{name}'")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
