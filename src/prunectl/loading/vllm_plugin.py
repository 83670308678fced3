"""The plug-in through which vLLM serves what prunectl wrote (entry point ``vllm.general_plugins``).

A compressed folder's config.json names the quantization method ``prunectl``; ``--quantization
prunectl`` names it for a dense folder. vLLM reads the weights files through
:mod:`prunectl.loading.safe_open`, one dense tensor after the other, and fuses and shards them as it
always does. On the CPU, each finished shard is then compressed again where that is not slower, and
stays so (:mod:`prunectl.loading.vllm_layers`).

Nothing here may import llvmlite: vLLM's worker on the CPU then looks at every module that is
loaded, and fails on one of llvmlite's.
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from prunectl.checkpoint.index import COMPRESSED_SUFFIX
from prunectl.errors import BadCheckpoint
from prunectl.loading import safe_open
from prunectl.loading.compressed import open_model
from prunectl.output.config_json import METHOD
from prunectl.runtime.executions import AUTO, check_execution


def register() -> None:
    """Make the quantization method known to this process; vLLM calls this in each of its own."""
    import_module(safe_open.VLLM)
    register_quantization_config(METHOD)(PrunectlConfig)
    safe_open.install()
    if not hasattr(DefaultModelLoader.load_weights, "of_prunectl"):
        DefaultModelLoader.load_weights = _checked(DefaultModelLoader.load_weights)


class PrunectlConfig(QuantizationConfig):  # type: ignore[misc]
    """How the weights are held.

    Args:
        execution: ``auto``, ``compressed`` or ``dense``; on other devices than the CPU it is
            ``dense``. Chosen by the member ``execution`` of ``quantization_config`` in config.json
            or in ``--hf-overrides``.
        weights: of a compressed folder: the name of its weights file or index.

    Raises:
        InvalidOption: an unknown execution.
    """

    def __init__(self, execution: str = AUTO, weights: str = "") -> None:
        super().__init__()
        check_execution(execution)
        self.execution, self.weights = execution, weights
        self._names: Counter[str] = Counter()

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
        return cls(config.get("execution", AUTO), config.get("weights", ""))

    def maybe_update_config(self, model_name: str, *args: Any, **kwargs: Any) -> None:
        """Read the headers of a compressed folder, before vLLM starts its processes.

        Raises:
            BadCheckpoint: the folder is damaged or not complete.
        """
        if any(Path(model_name).glob("*" + COMPRESSED_SUFFIX)):
            open_model(model_name)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        from prunectl.loading.vllm_layers import EmbeddingMethod, LinearMethod

        kinds = {LinearBase: LinearMethod, VocabParallelEmbedding: EmbeddingMethod}
        for kind, method in kinds.items():
            if isinstance(layer, kind):
                self._names[prefix] += 1  # some models give several layers the same prefix
                count = self._names[prefix]
                return method(self.execution, prefix if count == 1 else f"{prefix}#{count}")
        return None


def _checked(original: Any) -> Any:
    """vLLM's loading, with weights that are not in the checkpoint found."""

    def load_weights(self: Any, model: torch.nn.Module, model_config: Any) -> None:
        if model_config.quantization != METHOD:
            original(self, model, model_config)
            return
        unchecked = _unchecked(model)
        for parameter in unchecked.values():
            parameter.data.fill_(float("nan"))
        dense = copy(model_config)
        object.__setattr__(dense, "quantization", None)  # vLLM checks those of dense models
        original(self, model, dense)
        missing = [name for name, one in unchecked.items() if _has_gaps(one)]
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BadCheckpoint(
                model_config.model, f"not all weights of {missing[0]} are in it{more}"
            )

    load_weights.of_prunectl = True  # type: ignore[attr-defined]
    return load_weights


def _unchecked(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Biases and experts, which vLLM leaves uninitialized, and does not miss, if not loaded."""
    found = {}
    for prefix, module in model.named_modules():
        is_checked = isinstance(module, LinearBase | VocabParallelEmbedding)  # the weight of these
        if is_checked or _is_exact(module):
            for name, parameter in module.named_parameters(recurse=False):
                if not is_checked or name != "weight":
                    found[f"{prefix}.{name}"] = parameter
    return found


def _has_gaps(parameter: torch.Tensor) -> bool:
    gaps = parameter.isnan()
    return bool(gaps.any() if gaps.dim() == 1 else gaps.all(dim=-1).any())


def _is_exact(module: Any) -> bool:
    """Whether it is a stack of experts without padding, which no checkpoint holds."""
    if not isinstance(module, RoutedExperts):
        return False
    config = module.moe_config
    return (config.hidden_dim, config.intermediate_size_per_partition) == (
        config.hidden_dim_unpadded,
        config.intermediate_size_per_partition_unpadded,
    )
