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

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from prunectl._version import __version__ as __version__
from prunectl.loading import hook

if TYPE_CHECKING:
    # The one list of public names; each is imported when it is first used.
    from prunectl.analysis.remote import RemoteAnalysis as RemoteAnalysis
    from prunectl.analysis.remote import RemoteSpace as RemoteSpace
    from prunectl.analysis.remote import analyze_remote as analyze_remote
    from prunectl.analysis.remote import remote_space as remote_space
    from prunectl.analysis.result import Analysis as Analysis
    from prunectl.analysis.verb import analyze as analyze
    from prunectl.benchmarking.compare import bench_csv as bench_csv
    from prunectl.benchmarking.compare import compare_bench as compare_bench
    from prunectl.benchmarking.compare import read_bench as read_bench
    from prunectl.benchmarking.environment import Environment as Environment
    from prunectl.benchmarking.environment import environment as environment
    from prunectl.benchmarking.generating import Generation as Generation
    from prunectl.benchmarking.generating import generate as generate
    from prunectl.benchmarking.result import BenchResult as BenchResult
    from prunectl.benchmarking.settings import BenchSettings as BenchSettings
    from prunectl.benchmarking.verb import bench as bench
    from prunectl.checkpoint.checkpoint import Checkpoint as Checkpoint
    from prunectl.checkpoint.opening import open_checkpoint as open_checkpoint
    from prunectl.checkpoint.remote import RemoteModel as RemoteModel
    from prunectl.checkpoint.remote import open_remote as open_remote
    from prunectl.errors import PrunectlError as PrunectlError
    from prunectl.evaluation.held_mask import HeldMask as HeldMask
    from prunectl.evaluation.held_mask import hold_mask as hold_mask
    from prunectl.evaluation.result import Evaluation as Evaluation
    from prunectl.evaluation.settings import EvalSettings as EvalSettings
    from prunectl.evaluation.settings import Training as Training
    from prunectl.evaluation.verb import evaluate as evaluate
    from prunectl.events import Advanced as Advanced
    from prunectl.events import Event as Event
    from prunectl.events import Note as Note
    from prunectl.events import OnEvent as OnEvent
    from prunectl.events import PhaseDone as PhaseDone
    from prunectl.events import PhaseStarted as PhaseStarted
    from prunectl.exporting.masks import export_masks as export_masks
    from prunectl.exporting.result import ExportResult as ExportResult
    from prunectl.exporting.result import MasksResult as MasksResult
    from prunectl.exporting.verb import export as export
    from prunectl.loading.compressed import open_model as open_model
    from prunectl.loading.execution import Compressed as Compressed
    from prunectl.loading.hook import register as register
    from prunectl.loading.model import load_model as load_model
    from prunectl.loading.weights import Weights as Weights
    from prunectl.loading.weights import load_state_dict as load_state_dict
    from prunectl.loading.weights import open_weights as open_weights
    from prunectl.parallel.joining import joined_ranks as joined_ranks
    from prunectl.parallel.ranks import Ranks as Ranks
    from prunectl.pattern import NM as NM
    from prunectl.pattern import Unstructured as Unstructured
    from prunectl.pattern import parse_pattern as parse_pattern
    from prunectl.plan.job import plan_prune as plan_prune
    from prunectl.plan.plan import Plan as Plan
    from prunectl.plan.recipe import load_recipe as load_recipe
    from prunectl.plan.settings import Budget as Budget
    from prunectl.plan.settings import Calibration as Calibration
    from prunectl.plan.settings import Method as Method
    from prunectl.plan.settings import PruneSettings as PruneSettings
    from prunectl.plan.settings import Rule as Rule
    from prunectl.plan.settings import Scope as Scope
    from prunectl.pruning.result import PruneResult as PruneResult
    from prunectl.pruning.verb import prune as prune
    from prunectl.publishing.verb import PushResult as PushResult
    from prunectl.publishing.verb import push as push
    from prunectl.report.analyze_page import analyze_page as analyze_page
    from prunectl.report.compare_page import compare_page as compare_page
    from prunectl.report.lottery_page import lottery_page as lottery_page
    from prunectl.report.sweep_page import sweep_page as sweep_page
    from prunectl.report.sweep_page import sweep_picture as sweep_picture
    from prunectl.report.trace_page import trace_page as trace_page
    from prunectl.runtime.models import compress_model as compress_model
    from prunectl.studies.compare.result import Comparison as Comparison
    from prunectl.studies.compare.verb import compare as compare
    from prunectl.studies.lottery.result import LotteryResult as LotteryResult
    from prunectl.studies.lottery.settings import LotterySettings as LotterySettings
    from prunectl.studies.lottery.verb import lottery as lottery
    from prunectl.studies.settings import CompareSettings as CompareSettings
    from prunectl.studies.settings import TraceSettings as TraceSettings
    from prunectl.studies.sweep.result import SweepResult as SweepResult
    from prunectl.studies.sweep.result import sweep_csv as sweep_csv
    from prunectl.studies.sweep.settings import EpsilonMode as EpsilonMode
    from prunectl.studies.sweep.settings import SweepSettings as SweepSettings
    from prunectl.studies.sweep.settings import Tolerance as Tolerance
    from prunectl.studies.sweep.verb import sweep as sweep
    from prunectl.studies.trace.result import Trace as Trace
    from prunectl.studies.trace.verb import trace as trace
    from prunectl.verification.mask import verify_mask as verify_mask
    from prunectl.verification.result import VerifyReport as VerifyReport
    from prunectl.verification.verb import verify as verify

else:

    @cache
    def _modules():
        """The module of each public name: the list above, as Python reads it."""
        import ast

        tree = ast.parse(__spec__.loader.get_source(__name__))
        (listed,) = (node.body for node in tree.body if isinstance(node, ast.If))
        return {alias.name: node.module for node in listed for alias in node.names}

    def __getattr__(name):
        if name == "__all__":
            return __dir__()
        # Asked for by the import system and by inspect, before any public name.
        if name.startswith("__") or name not in _modules():
            raise AttributeError(f"module 'prunectl' has no attribute '{name}'")
        value = globals()[name] = getattr(import_module(_modules()[name]), name)
        return value

    def __dir__():
        return sorted(["__version__", *_modules()])


# transformers learns of compressed folders when it is imported; this imports nothing heavy.
hook.install()
