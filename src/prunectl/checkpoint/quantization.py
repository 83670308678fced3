"""Whether a checkpoint is quantized, by its config or the names of its tensors."""

from __future__ import annotations

from typing import Any

from prunectl.errors import shortened

_QUANTIZED_PARTS = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_bitmask", ".weight_scale",
    ".weight_scale_inv", ".SCB",
    ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4", ".absmax",
)  # fmt: skip


def quantization_of(config: dict[str, Any], names: list[str]) -> str:
    declared = config.get("quantization_config") or config.get("compression_config")
    if isinstance(declared, dict):
        method = declared.get("quant_method") or declared.get("format") or "quantized"
        return shortened(str(method), 80)
    marks = {mark for name in names for mark in _QUANTIZED_PARTS if name.endswith(mark)}
    return f"tensors such as *{min(marks)}" if marks else ""
