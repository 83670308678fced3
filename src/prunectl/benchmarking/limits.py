"""How fast a phase could be: the work that it must do, and the measured rates of the device.

The bytes are the least that one step moves: each weight once (of an embedding only the rows that
are looked up), and the keys and values that it reads. The operations are those of all matrix
products and convolutions, as torch counts them. Neither allows a faster step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunectl.benchmarking.timing import Clock, pass_of, time_passes

if TYPE_CHECKING:
    import torch

_SQUARE = {"cpu": 1024, "cuda": 8192}
_LEAST_BUFFER, _MOST_BUFFER = 1 << 20, 1 << 30
_ROUNDS, _SECONDS = 7, 2.0


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of the device.

    Attributes:
        bandwidth: bytes per second when reading a buffer as large as the weights, so that a model
            that fits the cache is compared with the cache.
        flops: operations per second of a square product in the model's dtype; an addition and a
            multiplication are two.
        buffer: bytes of the buffer. square: rows of the matrices.
    """

    bandwidth: float
    flops: float
    buffer: int
    square: int


@dataclass(frozen=True, slots=True)
class Work:
    """The least work of one step of a phase."""

    nbytes: int
    flops: int

    def limit(self, rates: Rates) -> float:
        """The least seconds for the work, at these rates."""
        return max(self.nbytes / rates.bandwidth, self.flops / rates.flops)


def measure_rates(device: torch.device, dtype: torch.dtype, weights: int, clock: Clock) -> Rates:
    """Measure the bandwidth and the matmul rate of a device.

    Args:
        weights: bytes of the model's weights.
    """
    import torch

    nbytes = max(_LEAST_BUFFER, min(_MOST_BUFFER, weights))
    side = _SQUARE[device.type]
    buffer = torch.ones(nbytes // 8, dtype=torch.int64, device=device)
    left = torch.randn((side, side), device=device).to(dtype)
    right = torch.randn((side, side), device=device).to(dtype)

    with torch.inference_mode():
        passes = {"read": pass_of(buffer.sum), "matmul": pass_of(lambda: left @ right)}
        # One after the other: the rates are those of a device without other work.
        found = {
            name: min(
                time_passes({name: one}, clock, rounds=_ROUNDS, seconds=_SECONDS).samples[name][
                    "work"
                ]
            )
            for name, one in passes.items()
        }
    return Rates(buffer.nbytes / found["read"], 2 * side**3 / found["matmul"], nbytes, side)


def count_flops(run: Callable[[], Any], device: torch.device) -> int:
    """Count the floating-point operations of the matrix products and convolutions of a call.

    Attention counts in full, even where its upper half is masked.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # torch does not count fused attention on the CPU; the plain one is two products.
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with plain, FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters in memory, each once; for sparse forms, those of their parts."""
    return sum(tensor_bytes(parameter) for parameter in model.parameters())


def bytes_read(model: Any, rows: int) -> int:
    """Bytes of the weights that a step reads: all but embeddings that are only looked up.

    Args:
        rows: inputs of the linear layers, by which layers with two forms choose one.
    """
    import torch

    from prunectl.benchmarking.sparse import ChoosingLinear

    head = getattr(model, "get_output_embeddings", lambda: None)()
    tied = id(getattr(head, "weight", None))
    left_out: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and id(module.weight) != tied:
            left_out.add(id(module.weight))
        elif isinstance(module, ChoosingLinear):
            left_out.update(id(one) for one in module.unused(rows))
    return sum(tensor_bytes(one) for one in model.parameters() if id(one) not in left_out)


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of a wrapper (torch's 2:4 form, a compressed weight), those inside."""
    from prunectl.runtime.weight import CompressedWeight

    if isinstance(tensor, CompressedWeight):
        return tensor.held_bytes
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return int(tensor.numel() * tensor.element_size())


def cache_bytes(past: Any) -> int:
    """Bytes of the keys and values in a cache; 0 where its layers have none."""
    import torch

    total = 0
    for inner in ("self_attention_cache", "cross_attention_cache"):
        if (part := getattr(past, inner, None)) is not None:
            total += cache_bytes(part)
    for layer in getattr(past, "layers", ()):
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            if isinstance(tensor, torch.Tensor):
                total += tensor_bytes(tensor)
    return total
