"""The plug-in through which vLLM serves what prunectl wrote (entry point ``vllm.general_plugins``).

A compressed folder's config.json names the quantization method ``prunectl``; ``--quantization
prunectl`` names it for a dense folder. vLLM reads the weights files through
:mod:`prunectl.loading.safe_open`, one dense tensor after the other, and fuses and shards them as it
always does. On the CPU, each finished shard is then compressed again where that is not slower, and
stays so (:mod:`prunectl.runtime`).
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from importlib import import_module
from typing import Any

import torch
from torch.nn import functional
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from prunectl.errors import BadCheckpoint
from prunectl.loading import safe_open
from prunectl.output.config_json import METHOD
from prunectl.runtime.executions import AUTO, DENSE, check_execution


def register() -> None:
    """Make the quantization method known to this process; vLLM calls this in each of its own."""
    import_module(safe_open.VLLM)
    register_quantization_config(METHOD)(PrunectlConfig)
    safe_open.install()


class PrunectlConfig(QuantizationConfig):  # type: ignore[misc]
    """How the weights are held.

    Args:
        execution: ``auto``, ``compressed`` or ``dense``; on other devices than the CPU it is
            ``dense``. Chosen by the member ``execution`` of ``quantization_config`` in config.json
            or in ``--hf-overrides``.

    Raises:
        InvalidOption: an unknown execution.
    """

    def __init__(self, execution: str = AUTO) -> None:
        super().__init__()
        check_execution(execution)
        self.execution = execution

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PrunectlConfig:
        return cls(config.get("execution", AUTO))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        if isinstance(layer, LinearBase):
            return _LinearMethod(self.execution, prefix)
        if isinstance(layer, VocabParallelEmbedding):
            return _EmbeddingMethod(self.execution, prefix)
        return None


class _Held:
    """What a method of vLLM does with a layer's weight, and here with a compressed one."""

    supports_pre_processed_weights = False

    def __init__(self, execution: str, prefix: str) -> None:
        super().__init__()
        self._execution, self._prefix = execution, prefix
        self._is_compressed = False

    def create_weights(self, layer: Any, *sizes: Any, **attributes: Any) -> None:
        super().create_weights(layer, *sizes, **attributes)  # type: ignore[misc]
        layer.weight.data.fill_(float("nan"))

    def process_weights_after_loading(self, layer: Any) -> None:
        from prunectl.runtime.choice import kept
        from prunectl.runtime.weight import CompressedWeight

        weight = layer.weight
        if isinstance(weight, CompressedWeight):  # tied
            self._is_compressed = True
            return
        if weight.isnan().all(dim=-1).any():
            raise BadCheckpoint(self._prefix, "not all of its weights are in the checkpoint")
        matrix = None
        if weight.device.type == "cpu" and self._execution != DENSE:
            matrix = kept(weight.detach(), self._execution)
        if matrix is None:
            super().process_weights_after_loading(layer)  # type: ignore[misc]
        else:
            # vLLM keeps compiled graphs on disk, and each process must know the same numbers
            digest = blake2b(self._prefix.encode(), digest_size=6).digest()
            matrix = replace(matrix, number=int.from_bytes(digest, "big"), _calls={})
            layer.weight = torch.nn.Parameter(CompressedWeight(matrix), requires_grad=False)
            self._is_compressed = True

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        if self._is_compressed:
            return functional.linear(x, layer.weight, bias)
        return super().apply(layer, x, bias)  # type: ignore[misc]


class _LinearMethod(_Held, UnquantizedLinearMethod):  # type: ignore[misc]
    pass


class _EmbeddingMethod(_Held, UnquantizedEmbeddingMethod):  # type: ignore[misc]
    pass
