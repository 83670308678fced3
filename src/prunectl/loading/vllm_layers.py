"""vLLM's linear layers and embeddings, with weights that stay compressed on the CPU.

vLLM fills a layer's dense weight, one shard of a fused matrix after the other. The finished weight
is compressed where its execution says so. torch.compile sees one operator for each layer, which
names the layer: vLLM keeps compiled graphs on disk, and a graph is right whether the weight of a
layer is dense or compressed in the process that runs it.
"""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
import vllm
from torch.nn import functional
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from prunectl.errors import UnsupportedCheckpoint
from prunectl.runtime.executions import DENSE

_named: defaultdict[str, WeakSet[torch.nn.Module]] = defaultdict(WeakSet)
"""The layers of this process by the names that graphs have for them."""


_log = logging.getLogger("vllm.plugins.prunectl")  # below the logger that vllm configures


@dataclass
class Tally:
    """What the layers of a model hold; logged when the last one is finished.

    Attributes:
        made, finished: layers.
        compressed: layers whose weights stay compressed.
        dense_bytes, held_bytes: of the weights of these, dense and in memory.
    """

    made: int = 0
    finished: int = 0
    compressed: int = 0
    dense_bytes: int = 0
    held_bytes: int = 0

    def finish(self) -> None:
        self.finished += 1
        if self.finished == self.made and self.compressed:
            _log.info(
                "%d of %d matrices stay compressed: %.1f MB instead of %.1f MB",
                self.compressed,
                self.made,
                self.held_bytes / 1e6,
                self.dense_bytes / 1e6,
            )


class _Compressible:
    """What a method of vLLM does with a layer's weight [outputs, inputs], and here with its forms.

    Args:
        execution: ``auto``, ``compressed`` or ``dense``.
        name: of the layer: no other layer of its model has it.
        tally: of its model.
    """

    supports_pre_processed_weights = False

    def __init__(self, execution: str, name: str, tally: Tally) -> None:
        super().__init__()
        self._execution, self._name, self._tally = execution, name, tally
        tally.made += 1
        self._is_operator = self._is_compressed = False

    def process_weights_after_loading(self, layer: Any) -> None:
        """Compress the weight, or prepare vLLM's own product."""
        weight = layer.weight
        self._rows, self._columns = weight.shape
        self._dtype = weight.dtype
        if weight.device.type == "cpu" and self._execution != DENSE:
            _named[self._name].add(layer)
            self._is_operator = True
            if not getattr(layer, "_cpu_skip_gemm_dispatch", False):  # read by MLA, not multiplied
                self._compress(layer)
        if not self._is_compressed:
            super().process_weights_after_loading(layer)  # type: ignore[misc]
        self._tally.finish()

    def _compress(self, layer: Any) -> None:
        from prunectl.runtime.choice import kept
        from prunectl.runtime.weight import CompressedWeight

        weight = layer.weight
        made = getattr(weight, "of_prunectl", None)  # of the embedding that a head is tied to
        if made is None:
            matrix = kept(weight.detach(), self._execution, _product_of_vllm, _NAME)
            if matrix is not None:
                made = torch.nn.Parameter(CompressedWeight(matrix), requires_grad=False)
                weight.of_prunectl = made
                self._tally.dense_bytes += weight.nbytes
                self._tally.held_bytes += matrix.nbytes
        if made is not None:
            layer.weight = made
            self._is_compressed = True
            self._tally.compressed += 1

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        if self._is_operator and torch.compiler.is_compiling():
            return torch.ops.prunectl.layer_product(x, bias, self._name, self._rows)
        return self.product(layer, x, bias)

    def product(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """``x`` [..., inputs] times the transposed weight, plus ``bias`` [outputs]."""
        if self._is_compressed:
            return functional.linear(x, layer.weight, bias)
        return super().apply(layer, x, bias)  # type: ignore[misc]


class LinearMethod(_Compressible, UnquantizedLinearMethod):  # type: ignore[misc]
    """Of a linear layer."""


class EmbeddingMethod(_Compressible, UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """Of an embedding, and of a head."""

    def embedding(self, layer: Any, input_: torch.Tensor) -> Any:
        if self._is_operator and torch.compiler.is_compiling():
            return torch.ops.prunectl.layer_rows(input_, self._name, self._columns, self._dtype)
        return functional.embedding(input_, layer.weight)


_NAME = f"vllm {vllm.__version__}"


def _product_of_vllm(weight: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """The product with a dense weight as vLLM computes it on this CPU."""
    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    return lambda inputs: layer.cpu_linear(inputs, weight, None)


def _layer(name: str) -> Any:
    """The layer that a graph names.

    Raises:
        UnsupportedCheckpoint: there is none in this process, or there are several.
    """
    found = list(_named[name])
    if len(found) > 1:
        gc.collect()  # models that are no longer in use
        found = list(_named[name])
    if len(found) != 1:
        raise UnsupportedCheckpoint(
            name,
            f"is the name of {len(found) or 'no'} layers in this process, and a compiled graph "
            "needs one",
            hint="load models in processes of their own, or with --enforce-eager",
        )
    return found[0]


def _layer_product(inputs: torch.Tensor, bias: Any, layer: str, outputs: int) -> torch.Tensor:
    found = _layer(layer)
    result: torch.Tensor = found.quant_method.product(found, inputs, bias)
    return result


def _layer_rows(places: torch.Tensor, layer: str, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return functional.embedding(places, _layer(layer).weight)


_library = torch.library.Library("prunectl", "FRAGMENT")
_library.define("layer_product(Tensor inputs, Tensor? bias, str layer, SymInt outputs) -> Tensor")
_library.define("layer_rows(Tensor places, str layer, SymInt columns, ScalarType dtype) -> Tensor")
_library.impl("layer_product", _layer_product, "CPU")
_library.impl("layer_rows", _layer_rows, "CPU")
torch.library.register_fake(
    "prunectl::layer_product",
    lambda inputs, bias, layer, outputs: inputs.new_empty((*inputs.shape[:-1], outputs)),
    lib=_library,
)
torch.library.register_fake(
    "prunectl::layer_rows",
    lambda places, layer, columns, dtype: places.new_empty((*places.shape, columns), dtype=dtype),
    lib=_library,
)
