"""Small random checkpoints of many architectures, saved by transformers itself.

``build("bert", folder)`` writes one and returns the live model; ``NAMES`` lists them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Widths are all different, so that a mistaken axis cannot pass for the right one.
_BERT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}
_LLAMA = _BERT | {"num_key_value_heads": 2}
_MOE = _LLAMA | {"num_experts_per_tok": 2}
_VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_SEQ2SEQ = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 80,
}
_T5 = {
    "vocab_size": 61,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 6,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 3,
}

# name -> (config class, model class, config fields)
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForMaskedLM", _BERT),
    "bert_base": ("BertConfig", "BertModel", _BERT),
    "bert_classifier": ("BertConfig", "BertForSequenceClassification", _BERT),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", _BERT | {"embedding_size": 16}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", _BERT),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"vocab_size": 61, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
    "deberta": (
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 20,
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 20},
    ),
    "gpt_bigcode": (
        "GPTBigCodeConfig",
        "GPTBigCodeForCausalLM",
        {
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 20,
            "multi_query": False,
        },
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA | {"tie_word_embeddings": True}),
    "llama_untied": ("LlamaConfig", "LlamaForCausalLM", _LLAMA | {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _LLAMA),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _LLAMA | {"head_dim": 6}),
    "mistral": ("MistralConfig", "MistralForCausalLM", _LLAMA),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _LLAMA | {"head_dim": 6}),
    "phi": ("PhiConfig", "PhiForCausalLM", _LLAMA),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _LLAMA | {"pad_token_id": 0}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _MOE | {"num_local_experts": 3}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        _MOE
        | {
            "num_experts": 3,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 1,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        _MOE | {"num_local_experts": 3, "head_dim": 6},
    ),
    "llama4": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        _LLAMA
        | {
            "num_local_experts": 3,
            "intermediate_size_mlp": 40,
            "head_dim": 6,
            "interleave_moe_layer_step": 2,
        },
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        _MOE | {"num_local_experts": 3},
    ),
    "jetmoe": (
        "JetMoeConfig",
        "JetMoeForCausalLM",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "kv_channels": 6,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeConfig",
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": _MOE
            | {"num_experts": 3, "moe_intermediate_size": 48, "decoder_sparse_step": 1},
            "vision_config": {
                "depth": 2,
                "hidden_size": 40,
                "intermediate_size": 56,
                "num_heads": 4,
                "out_hidden_size": 32,
                "patch_size": 4,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
        },
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5_gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", _SEQ2SEQ),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        _SEQ2SEQ
        | {
            "num_mel_bins": 10,
            "max_source_positions": 20,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", _VIT),
    "dinov2": ("Dinov2Config", "Dinov2Model", _VIT | {"mlp_ratio": 2}),
    "dinov2_swiglu": (
        "Dinov2Config",
        "Dinov2Model",
        _VIT | {"mlp_ratio": 2, "use_swiglu_ffn": True},
    ),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {"text_config": _BERT, "vision_config": _VIT, "projection_dim": 24},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _BERT),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "falcon": ("FalconConfig", "FalconForCausalLM", _BERT),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 20},
    ),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", _LLAMA | {"pad_token_id": 0}),
}

NAMES = tuple(_MODELS)

FEW = ("gpt2", "mixtral", "t5")
"""One with Conv1D, one with experts, one of both halves; many tests have bert and llama."""


def make(name: str) -> PreTrainedModel:
    """A new model with random weights (seed 0) in fp32."""
    import torch
    import transformers

    config_class, model_class, fields = _MODELS[name]
    config = getattr(transformers, config_class)(**fields)
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, model_class)(config)
    return model.eval()


def build(name: str, folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Save a new model to ``folder`` in ``dtype`` (default fp32) and return it."""
    model = make(name)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    return model
