"""The instruction set that kernels use: chosen once, or forced for tests and measurements."""

from __future__ import annotations

import itertools
import os
from functools import cache

import llvmlite.binding as llvm
import torch

from prunectl._version import __version__
from prunectl.errors import InvalidOption
from prunectl.runtime.forms import FORMS, compress
from prunectl.runtime.instructions import INSTRUCTION_SETS, usable
from prunectl.runtime.matrix import TORCH_TYPES
from prunectl.userdirs import cache_dir, write_cache_file

VARIABLE = "PRUNECTL_INSTRUCTIONS"


@cache
def instructions() -> str:
    """``$PRUNECTL_INSTRUCTIONS`` if set, else the fastest that is right on this CPU.

    Raises:
        InvalidOption: the variable names none, or one that this CPU lacks.
    """
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return next(name for name in usable() if _is_trusted(name))
    if wanted not in INSTRUCTION_SETS:
        raise InvalidOption(
            f"{VARIABLE} '{wanted}' is not known", hint=f"one of {', '.join(INSTRUCTION_SETS)}"
        )
    if wanted not in usable():
        raise InvalidOption(f"{VARIABLE}: this CPU has no {wanted}", hint=", ".join(usable()))
    return wanted


def _is_trusted(name: str) -> bool:
    """Whether the tests have run with these instructions, or they are right on this machine."""
    if INSTRUCTION_SETS[name].is_tested:
        return True
    file = f"instructions-{name}-{llvm.get_host_cpu_name()}-{__version__}.txt"
    try:
        return (cache_dir() / file).read_text(encoding="ascii") == "right"
    except (OSError, ValueError):
        right = is_right(name)
        write_cache_file(file, lambda out: out.write(b"right" if right else b"wrong"))
        return right


def is_right(name: str) -> bool:
    """Whether kernels with these instructions decode and multiply some matrices as they should."""
    generator = torch.Generator().manual_seed(0)
    for dtype, columns in itertools.product(TORCH_TYPES.values(), (70, 64)):
        weight = torch.randn(9, columns, generator=generator).to(dtype)
        if columns == 64:
            weight[:, ::2] = 0  # as 2:4
        else:
            weight[torch.rand(9, columns, generator=generator) < 0.4] = 0
        inputs = torch.randn(8, columns, generator=generator).to(dtype)
        for form in FORMS:
            matrix = compress(weight, form, name)
            if not torch.equal(matrix.dense(), weight):
                return False
            for count in (1, 8):
                exact = inputs[:count].double() @ weight.double().T
                error = (matrix.product(inputs[:count], None).double() - exact).abs().max()
                if not error <= 0.01 * exact.abs().max():
                    return False
    return True
