"""Models without weights: an architecture by name or by its config, filled with random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunectl.benchmarking.errors import CannotRun, NotEnoughMemory
from prunectl.device import free_memory, is_out_of_memory
from prunectl.errors import InvalidOption, PrunectlError

PRESETS: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "dtype": "bfloat16",
    },
    "llama-8b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
        "dtype": "bfloat16",
    },
    "llama-1b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "dtype": "bfloat16",
    },
    "bert-base": {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 30522,
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 512, "dtype": "float32",
    },
    "vit-base": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "num_labels": 1000, "dtype": "float32",
    },
    "t5-base": {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128,
        "d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "dtype": "float32",
    },
}  # fmt: skip
"""Configs as transformers writes them; what is left out is the default of the architecture."""


_MOST_LAYERS = 10_000


def find_config(name: str) -> dict[str, Any]:
    """A preset, or the config.json at a path (or in a folder).

    Raises:
        InvalidOption: neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "model_type" not in document:
        raise InvalidOption(
            f"--random-weights '{name}' is no preset, and no config with a model_type",
            hint=f"presets: {', '.join(PRESETS)}",
        )
    return document


def _is_large(value: Any) -> bool:
    return isinstance(value, int | float) and value > _MOST_LAYERS


def random_model(config: dict[str, Any], name: str, device: Any, dtype: str, seed: int) -> Any:
    """A model of an architecture with random weights, in evaluation mode, on a device.

    Args:
        dtype: ``auto`` takes the config's, else float32.

    Raises:
        CannotRun: transformers has no such architecture, or refuses the config.
        NotEnoughMemory: the weights alone are larger than what is free.
        RuntimeError: as torch does where there is no memory.
    """
    import torch
    import transformers

    fields = {key: value for key, value in config.items() if key != "model_type"}
    if too_deep := [key for key, value in config.items() if "layers" in key and _is_large(value)]:
        raise CannotRun(name, f"its config is refused: more than {_MOST_LAYERS} in {too_deep[0]}")
    wanted = dtype if dtype != "auto" else str(config.get("dtype") or config.get("torch_dtype"))
    kind = getattr(torch, wanted.removeprefix("torch."), None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        kind = torch.float32
    try:
        made = transformers.AutoConfig.for_model(config["model_type"], **fields)
        architecture = (config.get("architectures") or [""])[0]
        cls = getattr(transformers, architecture, None) or transformers.AutoModel
        build = getattr(cls, "_from_config", None) or cls.from_config
        with torch.device("meta"):
            needed = sum(one.nbytes for one in build(made, dtype=kind).parameters())
        free = free_memory(torch.device(device))
        if free is not None and needed > free:
            raise NotEnoughMemory(name, str(device), f"{needed:,} bytes of weights, {free:,} free")
        torch.manual_seed(seed)
        with torch.device(device):
            model = build(made, dtype=kind)
    except (PrunectlError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers and its configs may raise anything at all
        if is_out_of_memory(error):
            raise
        first = " ".join(str(error).split()) or type(error).__name__
        raise CannotRun(name, f"its config is refused: {first[:200]}") from None
    return model.eval().requires_grad_(False)
