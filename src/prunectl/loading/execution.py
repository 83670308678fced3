"""The choice of an execution, as ``from_pretrained`` of transformers takes it."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from prunectl.output.config_json import METHOD
from prunectl.runtime.executions import DENSE, check_execution


class Compressed(QuantizationConfigMixin):  # type: ignore[misc]
    """How a model's weights are held in memory; passed to ``from_pretrained``.

    Args:
        execution: ``dense``; ``compressed``: weights stay compressed in memory, for inference on
            the CPU; ``auto``: where that is not slower on this machine.
        weights: of a compressed folder's config.json: the name of its weights file or index.
        unknown: members of a config.json that a later prunectl wrote.

    Raises:
        InvalidOption: an unknown execution.
    """

    def __init__(self, execution: str = DENSE, weights: str = "", **unknown: Any) -> None:
        check_execution(execution)
        self.quant_method = METHOD
        self.execution = execution
        self.weights = weights
        # read by transformers: a dense model keeps no quantization config
        self.dequantize = execution == DENSE

    def get_loading_attributes(self) -> dict[str, Any]:
        """What a user's choice replaces in the config of a compressed folder."""
        return {"execution": self.execution, "dequantize": self.dequantize}
