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
        self._tally: Any = None

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

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read the headers of a compressed folder, before vLLM starts its processes.

        Raises:
            BadCheckpoint: the folder is damaged or not complete.
        """
        if not any(Path(model_name).glob("*" + COMPRESSED_SUFFIX)):
            return
        tensors = open_model(model_name).tensors
        # a head of its own, which vLLM would not find among the parts of the files
        if any(tensor.name.endswith("lm_head.weight") for tensor in tensors):
            for config in (hf_config, hf_config.get_text_config()):
                config.tie_word_embeddings = False

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        from prunectl.loading import vllm_layers

        if self._tally is None:
            self._tally = vllm_layers.Tally()
        kinds = {
            LinearBase: vllm_layers.LinearMethod,
            VocabParallelEmbedding: vllm_layers.EmbeddingMethod,
        }
        for kind, method in kinds.items():
            if isinstance(layer, kind):
                self._names[prefix] += 1  # some models give several layers the same prefix
                count = self._names[prefix]
                name = prefix if count == 1 else f"{prefix}#{count}"
                return method(self.execution, name, self._tally)
        return None


def _checked(original: Any) -> Any:
    """vLLM's loading, with weights found that are not in the checkpoint."""

    def load_weights(self: Any, model: torch.nn.Module, model_config: Any) -> None:
        if model_config.quantization != METHOD:
            original(self, model, model_config)
            return
        if self.load_config.safetensors_load_strategy == "eager":  # reads past safe_open
            self.load_config.safetensors_load_strategy = "lazy"
        unchecked = _unchecked(model)
        for parameter in unchecked.values():
            parameter.data.fill_(float("nan"))
        dense = copy(model_config)
        object.__setattr__(dense, "quantization", None)  # vLLM checks the others of dense models
        original(self, model, dense)
        missing = [name for name, one in unchecked.items() if _has_gaps(one)]
        if missing:
            more = f", nor of {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BadCheckpoint(
                model_config.model, f"it does not hold all weights of {missing[0]}{more}"
            )

    load_weights.of_prunectl = True  # type: ignore[attr-defined]
    return load_weights


def _unchecked(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters that vLLM leaves uninitialized, and does not miss, if they are not loaded."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, LinearBase | VocabParallelEmbedding) or _is_exact(module):
            for name, parameter in module.named_parameters(recurse=False):
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
