"""What a short sample shows before anything is pruned: models that cannot be run block by block,
weights that are missing, products that are not known, and how much blocks put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_calibration_engine import axes_of, samples_of

from prunectl.calibration.engine import Captured, Wanted, calibrate, try_model
from prunectl.checkpoint.block_model import BlockModel
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import BadCheckpoint, CalibrationFailed, UnsupportedCheckpoint

_KV = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
_ZAMBA = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_key_value_heads": 4,
    "n_mamba_heads": 8, "mamba_ngroups": 1, "mamba_d_state": 8, "mamba_headdim": 8,
    "intermediate_size": 48, "num_mem_blocks": 1, "adapter_rank": 4, "chunk_size": 16,
}  # fmt: skip
_MODERN = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip


@contextmanager
def block_model_of(folder: Path, **options: Any) -> Iterator[BlockModel]:
    checkpoint = open_checkpoint(folder)
    with checkpoint.open() as reader:
        yield BlockModel(
            checkpoint, reader, device=torch.device("cpu"), dtype=torch.float32, **options
        )


@pytest.mark.parametrize("name", ["Gemma3n", "Gemma4"])
def test_keys_and_values_that_blocks_share_are_found_out_before_anything_is_pruned(
    name: str, tmp_path: Path
) -> None:
    fields: dict[str, Any] = _KV | {"num_kv_shared_layers": 2}
    if name == "Gemma3n":
        fields |= {"intermediate_size": [48] * 4, "laurel_rank": 8,
                   "activation_sparsity_pattern": [0.0] * 4}  # fmt: skip
    config = getattr(transformers, f"{name}TextConfig")(**fields)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    with (
        block_model_of(tmp_path) as block_model,
        pytest.raises(CalibrationFailed, match=r"model\.layers\.2 depends on more than"),
    ):
        try_model(block_model, samples_of("llama"))


def test_blocks_that_share_weights_are_refused_by_name(tmp_path: Path) -> None:
    transformers.Zamba2ForCausalLM(transformers.Zamba2Config(**_ZAMBA)).save_pretrained(tmp_path)
    with (
        block_model_of(tmp_path) as block_model,
        pytest.raises(UnsupportedCheckpoint, match=r"block model\.layers\.3 shares weights") as e,
    ):
        try_model(block_model, samples_of("llama"))
    assert "leave --method, --refine and --reconstruct out" in e.value.hint


MISSING = [
    ("llama", "model.embed_tokens.weight"),
    ("gpt2", "transformer.wpe.weight"),
    ("bert", "bert.embeddings.LayerNorm.weight"),
    ("t5", "encoder.final_layer_norm.weight"),  # between the encoder's blocks and the decoder's
    ("modernbert", "model.embeddings.norm.weight"),
]


@pytest.mark.parametrize(
    ("name", "tensor", "heads"),
    [(*one, bool(at % 2)) for at, one in enumerate(MISSING)],
)
def test_weights_before_the_blocks_that_are_missing_are_named(
    name: str, tensor: str, heads: bool, tmp_path: Path
) -> None:
    if name == "modernbert":
        config = transformers.ModernBertConfig(**_MODERN)
        transformers.ModernBertForMaskedLM(config).save_pretrained(tmp_path)
    else:
        tiny_models.build(name, tmp_path)
    drop(tmp_path, tensor)
    with (
        block_model_of(tmp_path, heads=heads) as block_model,
        pytest.raises(BadCheckpoint, match=f"lacks .*{tensor.rpartition('embed')[2]}") as e,
    ):
        try_model(block_model, samples_of(name))
    assert "--method magnitude" in e.value.hint


def drop(folder: Path, tensor: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[tensor]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("heads", [True, False])
def test_a_head_may_be_missing(heads: bool, tmp_path: Path) -> None:
    tiny_models.build("llama_untied", tmp_path)
    drop(tmp_path, "lm_head.weight")
    with block_model_of(tmp_path, heads=heads) as block_model:
        order = try_model(block_model, samples_of("llama"))
        assert block_model.made_up == (("lm_head.weight",) if heads else ())
    assert len(order.groups) == 2


def test_heads_need_not_be_loaded(tmp_path: Path) -> None:
    tiny_models.build("llama_untied", tmp_path / "untied")
    tiny_models.build("llama", tmp_path / "tied")
    for name, loaded in (("untied", False), ("tied", True)):
        with block_model_of(tmp_path / name, heads=False) as block_model:
            head: Any = block_model.model.get_submodule("lm_head")
            assert head.weight.is_meta != loaded
            assert block_model.model.get_parameter("model.embed_tokens.weight").any()
            assert block_model.made_up == ()
            try_model(block_model, samples_of("llama"))


def test_a_tied_embedding_that_is_stored_as_the_head_is_loaded(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with block_model_of(tmp_path, heads=False) as block_model:
        embedding = block_model.model.get_parameter("model.embed_tokens.weight")
        assert torch.equal(embedding, tensors["lm_head.weight"])
        try_model(block_model, samples_of("llama"))


# --- products -------------------------------------------------------------------------------------
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
UNKNOWN: dict[str, Product] = {
    "einsum": lambda x, w: torch.einsum("...i,oi->...o", x, w),
    "weight first": lambda x, w: (w @ x.transpose(-1, -2)).transpose(-1, -2),
    "scaled": lambda x, w: torch.nn.functional.linear(x, w * 1.0),
    "by columns": lambda x, w: sum(
        torch.nn.functional.linear(x[..., i : i + 16], w[:, i : i + 16])
        for i in range(0, w.shape[1], 16)
    ),  # type: ignore[return-value]
    "vectors": lambda x, w: torch.stack([w.mv(v) for v in x.flatten(0, -2)]).reshape(
        *x.shape[:-1], -1
    ),
    "elementwise": lambda x, w: (x[..., None, :] * w).sum(-1),
}


@pytest.mark.parametrize("how", UNKNOWN)
def test_a_product_that_is_not_known_is_told_from_a_weight_that_nothing_reaches(
    how: str, tmp_path: Path
) -> None:
    tiny_models.build("llama", tmp_path)
    seen: dict[str, Captured] = {}

    def prune(tensor: str, parts: Sequence[Captured]) -> None:
        (seen[tensor],) = parts

    with block_model_of(tmp_path) as block_model:
        layer: Any = block_model.model.get_submodule("model.layers.0")
        layer.mlp.up_proj.forward = lambda x: UNKNOWN[how](x, layer.mlp.up_proj.weight)
        layer.mlp.down_proj.forward = lambda x: x[..., :32]  # its weight is not used at all
        wanted = Wanted(axes_of(open_checkpoint(tmp_path), block_model))
        calibrate(block_model, samples_of("llama"), wanted, prune)
    up, down = (seen.pop(f"model.layers.0.mlp.{name}_proj.weight") for name in ("up", "down"))
    assert up.gram is None
    assert down.gram is None
    assert (up.missed, down.missed) == (True, False)
    assert all(one.gram is not None and one.gram.tokens for one in seen.values())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4"])
def test_an_expert_without_tokens_is_not_one_whose_product_is_not_known(
    name: str, tmp_path: Path
) -> None:
    tiny_models.build(name, tmp_path)
    found: list[Captured] = []
    with block_model_of(tmp_path) as block_model:
        wanted = Wanted(axes_of(open_checkpoint(tmp_path), block_model))
        samples = [{"input_ids": torch.tensor([[5]])}]
        calibrate(block_model, samples, wanted, lambda tensor, parts: found.extend(parts))
    without = [one for one in found if one.gram is None or not one.gram.tokens]
    assert without
    assert not any(one.missed for one in without)


# --- how much blocks put out ----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["vit", "t5", "whisper"])
def test_what_blocks_put_out_is_foretold(name: str, tmp_path: Path) -> None:
    tiny_models.build(name, tmp_path)
    samples = samples_of(name, 5)
    with block_model_of(tmp_path) as block_model:
        states = try_model(block_model, samples).states
    tokens = {"vit": 5, "t5": 9 + 5, "whisper": 20 + 5}[name]
    expected = 5 * tokens * 32 * 4
    # T5's blocks hand on a position bias too.
    assert expected <= states <= expected * (1.0 if name != "t5" else 3.0)
