"""The shapes of a mixture of experts as Qwen3-MoE's, in any size, each expert stored for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from make_checkpoint import CONFIG_DTYPE

_VOCABULARY = 1024


@dataclass(frozen=True)
class Experts:
    """The sizes of a Qwen3-MoE.

    Attributes:
        hidden, intermediate: widths of the model and of an expert; multiples of 32.
        experts: per layer; each has three matrices.
    """

    hidden: int
    intermediate: int
    layers: int
    experts: int
    vocabulary: int = _VOCABULARY

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return min(128, self.hidden // 4)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """All tensors in file order, with their shapes."""
        found: dict[str, tuple[int, ...]] = {
            "lm_head.weight": (self.vocabulary, self.hidden),
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
        }
        for number in range(self.layers):
            layer = f"model.layers.{number}."
            found |= {f"{layer}{name}": shape for name, shape in self._layer().items()}
        return found | {"model.norm.weight": (self.hidden,)}

    def _layer(self) -> dict[str, tuple[int, ...]]:
        h, i = self.hidden, self.intermediate
        matrices = {"down_proj": (h, i), "gate_proj": (i, h), "up_proj": (i, h)}
        experts = {
            f"mlp.experts.{number}.{name}.weight": shape
            for number in range(self.experts)
            for name, shape in matrices.items()
        }
        half = h // 2
        return {
            "input_layernorm.weight": (h,),
            **experts,
            "mlp.gate.weight": (self.experts, h),
            "post_attention_layernorm.weight": (h,),
            "self_attn.k_norm.weight": (self.head,),
            "self_attn.k_proj.weight": (half, h),
            "self_attn.o_proj.weight": (h, h),
            "self_attn.q_norm.weight": (self.head,),
            "self_attn.q_proj.weight": (h, h),
            "self_attn.v_proj.weight": (half, h),
        }

    def config(self, dtype: str) -> dict[str, Any]:
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": self.hidden,
            "intermediate_size": 3 * self.hidden,
            "moe_intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_experts": self.experts,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "head_dim": self.head,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.hidden // self.head // 2,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
            "dtype": CONFIG_DTYPE[dtype],
        }


def many_small(tensors: int) -> Experts:
    """About so many expert matrices of 32 x 32, 512 experts a layer where there are enough."""
    experts = min(512, max(2, tensors // 6))
    return Experts(32, 32, max(1, round(tensors / (3 * experts))), experts)


def trillion(parameters: int) -> Experts:
    """About so many parameters in 384 experts a layer, with widths as a real model of 10^12 has."""
    layer = 3 * 384 * 7168 * 2048
    return Experts(7168, 2048, max(1, round(parameters / layer)), 384, vocabulary=163_840)
