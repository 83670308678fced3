"""Whether the zeros of a pruned checkpoint are zero in a checkpoint that was made from it."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from prunectl import numbers
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import InvalidOption
from prunectl.events import OnEvent, ignore_events
from prunectl.loading.compressed import open_model
from prunectl.magnitude.codes import code_format
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import Scratch
from prunectl.plan.prunable import input_axis, recorded_prunable, require_prunable
from prunectl.verification.integers import Unreadable
from prunectl.verification.quantized import find_weight
from prunectl.verification.result import Findings, VerifyReport

_UNIT = 8
"""Rows are read in multiples of this: packed formats store eight outputs in a word."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """A weight that was compared.

    Attributes:
        form: how it is stored.
        zeros: how many it has in the pruned checkpoint.
        lost: how many of these are no longer zero.
        fault: why it cannot be compared; '' if it was.
    """

    form: str
    zeros: int
    lost: int
    fault: str = ""


def verify_mask(
    model: Checkpoint | str | os.PathLike[str],
    pruned: Checkpoint | str | os.PathLike[str],
    *,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    jobs: int | None = None,
    ranks: Ranks = ALONE,
    on_event: OnEvent = ignore_events,
) -> VerifyReport:
    """Check that every zero of a pruned checkpoint is zero in a model that was made from it.

    The model may be quantized by compressed-tensors (int, fp8, fp4), GPTQ, AWQ or bitsandbytes, or
    dense, as after fine-tuning. A weight is zero if its dequantized value is exactly 0. The
    prunable weights of the pruned checkpoint are compared: those of its manifest, if it has one.

    Args:
        model: the quantized or trained model, open or as :func:`open_checkpoint` takes it.
        pruned: the pruned checkpoint, dense or compressed.
        token, cache_dir: for models on the Hub.
        trust_remote_code: let the model's own code build its module tree.
        jobs: threads.
        ranks: the processes that share the work; :func:`prunectl.joined_ranks`.
        on_event: receives progress.

    Returns:
        A report with the checks ``stored`` and ``mask``; differences are listed, not raised.

    Raises:
        InvalidOption: the pruned checkpoint has no zeros in its prunable weights.
        NothingPrunable: the pruned checkpoint has no prunable weights.
        SourceError: either of them cannot be opened, or the pruned checkpoint is quantized.
    """
    started = time.perf_counter()
    run = Run(jobs, ranks, on_event=on_event)
    opened = partial(
        open_model, token=token, cache_dir=cache_dir, trust_remote_code=trust_remote_code
    )
    other, origin = run.opened(model, opened), run.opened(pruned, opened)
    ranks.check_same(
        "model and pruned model",
        (other.identity(), origin.identity()),
        hint="all need both, from a shared disk or the Hub",
    )
    specs = require_prunable(origin, recorded=recorded_prunable(origin))
    tensors = [origin.by_name[name] for name in specs]
    findings = Findings(sentences={})
    forms: Counter[str] = Counter()
    zeros = 0
    for tensor, found in _compare(other, origin, tensors, run):
        zeros += found.zeros
        if found.fault and found.zeros:
            findings.add("stored", tensor.name, found.fault)
        elif found.lost:
            share = f"{found.lost:,} of {found.zeros:,} zeros are not zero"
            findings.add("mask", tensor.name, f"{share} ({found.form})")
        forms[found.form] += not found.fault
    if not zeros:
        raise InvalidOption(
            f"{origin.model} has no zeros in its prunable weights",
            hint="prunectl verify QUANTIZED --mask-of PRUNED",
        )
    other.check_unchanged()
    origin.check_unchanged()
    listed = ", ".join(f"{numbers.plural(n, 'tensor')} {form}" for form, n in forms.items() if n)
    findings.sentences |= {
        "stored": f"every pruned tensor is stored in a known form: {listed or 'none is'}",
        "mask": f"every zero of {origin.model} is zero",
    }
    return VerifyReport(
        Path(other.model), sum(forms.values()), zeros, tuple(findings.checks()),
        tuple(findings.differences), time.perf_counter() - started,
    )  # fmt: skip


def _compare(
    model: Checkpoint, pruned: Checkpoint, tensors: list[StoredTensor], run: Run
) -> list[tuple[StoredTensor, _Compared]]:
    """Read every tensor of both once, a few rows at a time."""
    with ExitStack() as stack:
        reader, origin = (stack.enter_context(one.open(once=True)) for one in (model, pruned))
        roles = pruned.roles.roles

        def work(tensor: StoredTensor, scratch: Scratch) -> _Compared:
            spec, format = tensor.spec, code_format(tensor.spec.dtype)
            length = spec.shape[-1]
            transposed = len(spec.shape) == 2 and input_axis(spec, roles[spec.name]) == 0
            weight, fault = None, ""
            try:
                weight = find_weight(model, reader, spec, transposed=transposed)
            except Unreadable as error:
                fault = str(error)
            zeros = lost = row = 0
            for _, block in scratch.blocks(origin, tensor, _UNIT * length):
                zero = (block.view(format.uint) & format.mask == 0).reshape(-1, length)
                zeros += int(np.count_nonzero(zero))
                if weight is not None and zero.any():
                    zero &= ~weight.zeros(row, row + len(zero))
                    lost += int(np.count_nonzero(zero))
                row += len(zero)
            return _Compared(weight.form if weight else "", zeros, lost, fault)

        return list(run.shared_tensors("comparing zeros", tensors, work))
