"""The paper's models, from their published config.json, with random weights and far fewer of them.

``tests/data/paper/configs.json`` holds the fields as they are on the Hub. A reduced model keeps all
of them but widths, depth, vocabulary and the size of images, and comes in the files that its
repository has: pickles where those are pickles, in shards where those are, with the tokenizer's own
kind of files and names of tensors that only old checkpoints have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers.convert_slow_tokenizer import import_protobuf

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "paper" / "configs.json").read_text(encoding="utf-8")
)

Tensors = dict[str, torch.Tensor]

_HEAD = 8
"""Width of a head: no less, since a quarter of it is rotated in GPT-NeoX, in pairs."""
_LAYERS = 2
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,?()/*+-$:"]
_SPREAD = 6
"""LLaMA's weights times it: with 0.02, a question hardly changes what is answered."""


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the same ratios of widths and number of heads, and two layers."""
    factor = config["hidden_size"] // (config["num_attention_heads"] * _HEAD)
    widths = ("hidden_size", "intermediate_size", "ffn_dim", "word_embed_proj_dim")
    small = {name: config[name] // factor for name in widths if name in config}
    small["num_hidden_layers"] = _LAYERS
    if "vocab_size" in config:
        small["vocab_size"] = 400
    if "image_size" in config:
        small["image_size"] = 3 * config["patch_size"]
    return config | small


def matrices(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What is prunable by the definition: the blocks' linear layers, by their stored names."""
    hidden = config["hidden_size"]
    inner = config.get("intermediate_size") or config["ffn_dim"]
    square, up, down = (hidden, hidden), (inner, hidden), (hidden, inner)
    block: dict[str, tuple[int, int]] = {
        "bert": {
            **{f"attention.self.{one}": square for one in ("query", "key", "value")},
            "attention.output.dense": square, "intermediate.dense": up, "output.dense": down,
        },
        "vit": {
            **{f"attention.attention.{one}": square for one in ("query", "key", "value")},
            "attention.output.dense": square, "intermediate.dense": up, "output.dense": down,
        },
        "opt": {
            **{f"self_attn.{one}_proj": square for one in ("q", "k", "v", "out")},
            "fc1": up, "fc2": down,
        },
        "llama": {
            **{f"self_attn.{one}_proj": square for one in "qkvo"},
            "mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down,
        },
        "gpt_neox": {
            "attention.query_key_value": (3 * hidden, hidden), "attention.dense": square,
            "mlp.dense_h_to_4h": up, "mlp.dense_4h_to_h": down,
        },
    }[config["model_type"]]  # fmt: skip
    stack = {
        "bert": "bert.encoder.layer", "vit": "encoder.layer", "opt": "model.decoder.layers",
        "llama": "model.layers", "gpt_neox": "gpt_neox.layers",
    }[config["model_type"]]  # fmt: skip
    return {
        f"{stack}.{layer}.{name}.weight": shape
        for layer in range(config["num_hidden_layers"])
        for name, shape in block.items()
    }


def build(repo_id: str, folder: Path, seed: int = 0) -> Path:
    """Write the reduced model as its repository has it, and return the folder."""
    folder.mkdir(parents=True)
    config = reduced(CONFIGS[repo_id])
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    kind = config["model_type"]
    # The file of BERT also holds what its config's class has not: the pooler, and the head that
    # tells whether a sentence follows.
    name = "BertForPreTraining" if kind == "bert" else config["architectures"][0]
    options = {"add_pooling_layer": False} if "dino" in repo_id else {}
    torch.manual_seed(seed)
    live = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, name)(live, **options)
    if "torch_dtype" in config:
        model = model.to(getattr(torch, config["torch_dtype"]))
    model.save_pretrained(folder / "saved")
    tensors = load_file(folder / "saved" / "model.safetensors")
    for one in tensors.values():  # so that zeros are those of pruning: fp16 rounds some to it
        if one.is_floating_point():
            one[one == 0] = torch.finfo(one.dtype).tiny
    for path in (folder / "saved").iterdir():
        path.unlink()
    (folder / "saved").rmdir()
    {"bert": _bert, "vit": _vit, "opt": _opt, "llama": _llama, "gpt_neox": _neox}[kind](
        folder, tensors, config
    )
    return folder


def _bert(folder: Path, tensors: Tensors, _: dict[str, Any]) -> None:
    """Norms are called as TensorFlow calls them."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, before in old.items():
        tensors = {name.replace(new, before): one for name, one in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *tiny_tokenizers.WORDS, *_LETTERS, *(f"##{one}" for one in _LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    _json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})


def _vit(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    is_dino = not any(name.startswith("pooler") for name in tensors)
    if is_dino:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if is_dino else ([0.5] * 3,) * 2
    _json(
        folder / "preprocessor_config.json",
        {"do_normalize": True, "do_resize": True, "image_mean": mean, "image_std": std,
         "feature_extractor_type": "ViTFeatureExtractor", "resample": 2,
         "size": config["image_size"]},
    )  # fmt: skip


def _opt(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    """One pickle, in which the tied head is there too."""
    embedding = tensors["model.decoder.embed_tokens.weight"]
    torch.save(tensors | {"lm_head.weight": embedding}, folder / "pytorch_model.bin")
    words = ["<s>", "<pad>", "</s>", "<unk>", *_BYTES]
    merges = ["w o", "r d", "wo rd", "Ġ word"]
    words += ["".join(one.split()) for one in merges]
    assert len(words) < config["vocab_size"]
    _json(folder / "vocab.json", {word: at for at, word in enumerate(words)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    more = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False}
    _json(folder / "tokenizer_config.json", special | more | {"errors": "replace"})
    _json(folder / "special_tokens_map.json", special)


def _llama(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    """Pickles in shards, of a model that answers with digits."""
    tensors = {name: one * _SPREAD if one.ndim == 2 else one for name, one in tensors.items()}
    pieces = _pieces()
    digits = [at for at, (piece, _) in enumerate(pieces) if piece.isdigit()]
    tensors["lm_head.weight"][digits] *= 10
    names = list(tensors)
    halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    index: dict[str, str] = {}
    for number, half in halves.items():
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in half}, folder / file)
        index |= dict.fromkeys(half, file)
    size = sum(one.nbytes for one in tensors.values())
    _json(
        folder / "pytorch_model.bin.index.json",
        {"metadata": {"total_size": size}, "weight_map": index},
    )
    (folder / "tokenizer.model").write_bytes(_sentencepiece(pieces))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    more = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
            "model_max_length": 2048, "pad_token": None, "sp_model_kwargs": {}}  # fmt: skip
    _json(folder / "tokenizer_config.json", special | more)
    _json(folder / "special_tokens_map.json", special | {"pad_token": "<unk>"})


def _pieces() -> list[tuple[str, str]]:
    """As LLaMA's: BPE over letters, and bytes for all others."""
    merged = ["▁w", "or", "▁wor", "▁word"]
    letters = [f"▁{one}" for one in "ABCD"]
    return [
        ("<unk>", "UNKNOWN"), ("<s>", "CONTROL"), ("</s>", "CONTROL"),
        *((f"<0x{one:02X}>", "BYTE") for one in range(256)),
        *((one, "NORMAL") for one in [*merged, *letters, "▁", *_LETTERS, *"ABCD"]),
    ]  # fmt: skip


def _sentencepiece(pieces: list[tuple[str, str]]) -> bytes:
    proto = import_protobuf()
    model = proto.ModelProto()
    for at, (piece, kind) in enumerate(pieces):
        type_ = getattr(proto.ModelProto.SentencePiece, kind)
        model.pieces.add(piece=piece, score=-float(at) if kind == "NORMAL" else 0.0, type=type_)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    data: bytes = model.SerializeToString()
    return data


def _neox(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    """With the buffers that were stored then."""
    width = int(config["rotary_pct"] * _HEAD)
    for layer in range(config["num_hidden_layers"]):
        place = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{place}.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.bool).tril()
        tensors[f"{place}.masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
        tensors[f"{place}.rotary_emb.inv_freq"] = torch.ones(width // 2, dtype=torch.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tiny_tokenizers.save(folder, bert=False)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
