"""Header rules: roles from names and shapes alone."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunectl.checkpoint.roles import Role, experts_input_axis, place, roles_from_headers
from prunectl.tensorspec import DTYPES, TensorSpec

F32 = DTYPES["F32"]


def roles(*tensors: tuple[str, tuple[int, ...]]) -> dict[str, Role]:
    specs = [TensorSpec(name, F32, shape) for name, shape in tensors]
    return {name: role.role for name, role in roles_from_headers(specs).roles.items()}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("encoder.layer.0.attention.output.LayerNorm.weight", (32,), Role.NORM),
        ("encoder.layer.0.attention.output.LayerNorm.gamma", (32,), Role.NORM),
        ("encoder.layer.0.attention.output.LayerNorm.beta", (32,), Role.NORM),
        ("encoder.layer.0.attention.self.query.bias", (32,), Role.BIAS),
        ("encoder.layer.0.attention.self.distance_embedding.weight", (39, 8), Role.POSITION),
        ("encoder.layer.0.layer_scale1.lambda1", (32,), Role.OTHER),
        ("layers.0.mixer.A_log", (8, 4), Role.OTHER),
        ("layers.0.mixer.conv1d.weight", (8, 1, 4), Role.CONVOLUTION),
        ("layers.0.feed_forward.pointwise.weight", (8, 8, 1), Role.CONVOLUTION),
        ("layers.0.self_attn.in_proj_weight", (96, 32), Role.LINEAR),
        ("embeddings.mask_token", (1, 32), Role.EMBEDDING),
        ("embeddings.cls_token", (1, 1, 32), Role.EMBEDDING),
        ("embeddings.position_ids", (1, 20), Role.POSITION),
        ("embeddings.patch_embeddings.projection.weight", (32, 3, 8, 8), Role.CONVOLUTION),
        ("embeddings.patch_embeddings.projection.bias", (32,), Role.BIAS),
        ("pooler.dense.weight", (32, 32), Role.POOLER),
        ("pooler.dense.bias", (32,), Role.BIAS),
        ("cls.predictions.transform.dense.weight", (32, 32), Role.HEAD),
        ("cls.predictions.decoder.weight", (61, 32), Role.HEAD),
        ("cls.seq_relationship.weight", (2, 32), Role.HEAD),
        ("classifier.0.weight", (32, 32), Role.HEAD),
        ("classifier.out_proj.weight", (2, 32), Role.HEAD),
        ("score.weight", (2, 32), Role.HEAD),
        ("lm_head.weight", (61, 32), Role.HEAD),
        ("model.embed_tokens.weight", (61, 32), Role.EMBEDDING),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,), Role.POSITION),
        ("model.encoder.conv1.weight", (32, 10, 3), Role.CONVOLUTION),
        ("model.encoder.embed_positions.weight", (20, 32), Role.POSITION),
        ("multi_modal_projector.0.weight", (32, 32), Role.OTHER),
        ("visual_projection.weight", (24, 32), Role.OTHER),
        ("vision_model.post_layernorm.weight", (32,), Role.NORM),
    ],
)
def test_a_name_has_its_role(name: str, shape: tuple[int, ...], expected: Role) -> None:
    assert roles((name, shape))[name] is expected


def test_a_position_bias_inside_a_t5_block_is_no_linear() -> None:
    found = roles(
        ("encoder.block.0.layer.0.SelfAttention.q.weight", (24, 32)),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4)),
        ("encoder.block.0.layer.0.layer_norm.weight", (32,)),
    )
    assert list(found.values()) == [Role.LINEAR, Role.POSITION, Role.NORM]


def test_a_gate_is_a_router_only_next_to_experts() -> None:
    moe, mlp = "model.layers.0.mlp", "model.layers.1.mlp"
    found = roles(
        (f"{moe}.gate.weight", (3, 32)),
        (f"{moe}.shared_expert_gate.weight", (1, 32)),
        (f"{moe}.shared_expert.gate_proj.weight", (48, 32)),
        (f"{moe}.experts.0.gate_proj.weight", (48, 32)),
        (f"{mlp}.gate.weight", (48, 32)),
        (f"{mlp}.gate_proj.weight", (48, 32)),
    )
    assert {name for name, role in found.items() if role is Role.ROUTER} == {
        f"{moe}.gate.weight",
        f"{moe}.shared_expert_gate.weight",
    }
    assert {name for name, role in found.items() if role is Role.LINEAR} == {
        f"{moe}.shared_expert.gate_proj.weight",
        f"{moe}.experts.0.gate_proj.weight",
        f"{mlp}.gate.weight",
        f"{mlp}.gate_proj.weight",
    }


@pytest.mark.parametrize(("fused", "axis"), [((32, 96), 0), ((96, 32), 1)])
def test_c_attn_is_conv1d_by_its_shape(fused: tuple[int, int], axis: int) -> None:
    # GPT-2 and GPT-BigCode share their names; only the fused projection tells them apart.
    specs = [
        TensorSpec("h.0.attn.c_attn.weight", F32, fused),
        TensorSpec("h.0.attn.c_proj.weight", F32, (32, 32)),
        TensorSpec("h.0.mlp.c_fc.weight", F32, (32, 128) if axis == 0 else (128, 32)),
    ]
    found = roles_from_headers(specs).roles
    assert [found[s.name].input_axis for s in specs] == [axis] * 3


def test_a_causal_mask_buffer_is_no_bias() -> None:
    assert roles(
        ("h.0.attn.bias", (1, 1, 20, 20)),
        ("h.0.attn.c_attn.weight", (32, 96)),
    ) == {"h.0.attn.bias": Role.OTHER, "h.0.attn.c_attn.weight": Role.LINEAR}


def test_numbered_heads_and_necks_are_no_blocks() -> None:
    found = roles_from_headers(
        [
            TensorSpec("bbox_embed.0.layers.0.weight", F32, (32, 32)),
            TensorSpec("bbox_embed.0.layers.1.weight", F32, (4, 32)),
            TensorSpec("lm_head.layers.0.norm.weight", F32, (32,)),
            TensorSpec("lm_head.layers.0.mlp.weight", F32, (32, 32)),
        ]
    ).roles.values()
    assert all(role.layer is None and role.role is not Role.LINEAR for role in found)


def test_an_integer_tensor_is_never_linear() -> None:
    packed = TensorSpec("layers.0.self_attn.q_proj.weight", DTYPES["I32"], (32, 4))
    assert roles_from_headers([packed]).roles[packed.name].role is not Role.LINEAR


def test_a_place_is_split_at_the_first_number() -> None:
    assert place("encoder.block.3.layer.0.SelfAttention.q.weight") == (
        "encoder.block",
        3,
        "layer.0.SelfAttention.q",
    )
    assert place("classifier.weight") == ("", None, "classifier")


sizes = st.integers(1, 64)


@given(experts=sizes, hidden=sizes, inner=sizes)
def test_fused_experts_always_tell_their_orientation(experts: int, hidden: int, inner: int) -> None:
    last = {
        "gate_up_proj": (experts, 2 * inner, hidden),
        "down_proj": (experts, hidden, inner),
    }
    middle = {name: (e, b, a) for name, (e, a, b) in last.items()}
    assert experts_input_axis(last, None) == 2
    assert experts_input_axis(middle, None) == 1


@given(experts=sizes, hidden=sizes, inner=sizes)
def test_separate_experts_need_the_width(experts: int, hidden: int, inner: int) -> None:
    wide = (experts, inner, hidden)
    shapes = {"w1": wide, "w3": wide, "w2": (experts, hidden, inner)}
    turned = {name: (e, b, a) for name, (e, a, b) in shapes.items()}
    known = hidden != inner
    assert experts_input_axis(shapes, hidden) == (2 if known else None)
    assert experts_input_axis(turned, hidden) == (1 if known else None)
    assert experts_input_axis(shapes, None) is None


def test_header_rules_stay_linear() -> None:
    """With the square of these lengths and counts, this would take minutes."""
    deep = [(f"{i}." + "a." * 60 + "gate.weight", (2, 2)) for i in range(2000)]
    experts = [(f"layers.0.mlp.{word}{i}", (2, 8, 2 * i)) for i in range(4000)
               for word in ("gate", "down")]  # fmt: skip
    words = [("norm" * 200 + ".0." + "norm" * 50 + f"{i}.x", (2,)) for i in range(500)]
    dist = [(f"{i}." + "dist" * 250, (2, 2)) for i in range(200)]
    roles(*deep, *experts, *words, *dist)


def test_deep_names_fill_no_memory() -> None:
    names = [".".join([str(i)] + ["abcdefghijklmno"] * 62) for i in range(2000)]
    tracemalloc.start()
    roles(*((name, (2, 2)) for name in names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * sum(map(len, names))
