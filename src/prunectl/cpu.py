"""What this CPU has, by LLVM, and how it multiplies."""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm


@cache
def cpu_features() -> frozenset[str]:
    """What the CPU has, in LLVM's names."""
    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)


def multiplies_bf16() -> bool:
    """Whether torch's dense products of many rows are faster in bf16 than in fp32."""
    return "avx512bf16" in cpu_features()


def is_amd_with_avx512() -> bool:
    return llvm.get_host_cpu_name().startswith("znver") and "avx512f" in cpu_features()
