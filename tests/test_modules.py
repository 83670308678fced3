"""Roles from the module tree, and what transformers would say when it loads a checkpoint."""

from __future__ import annotations

import json
import logging
import re
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from full import few
from headers import specs_of
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from prunectl.checkpoint import module_tree
from prunectl.checkpoint.module_tree import model_class, unknown_if_it_fails
from prunectl.checkpoint.modules import check_loadable, roles_from_modules
from prunectl.checkpoint.roles import Role, RoleMap, roles_from_headers
from prunectl.errors import UnknownArchitecture
from prunectl.tensorspec import DTYPES, TensorSpec

BERT = (
    r"encoder\.layer\.(\d+)\.(attention\.self\.(query|key|value)|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)\.weight"
)
ATTENTION = r"model\.layers\.(\d+)\.self_attn\.[qkvo]_proj\.weight"
LLAMA = rf"{ATTENTION}|model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight"

BLOOM = (
    r"transformer\.h\.(\d+)\.(self_attention\.(query_key_value|dense)"
    r"|mlp\.dense_(h_to_4h|4h_to_h))\.weight"
)
T5 = (
    r"(?:en|de)coder\.block\.(\d+)\.layer\.\d\.((Self|EncDec)Attention\.[qkvo]"
    r"|DenseReluDense\.(wi|wi_0|wi_1|wo))\.weight"
)
BART = (
    r"model\.(?:en|de)coder\.layers\.(\d+)\.((self_attn|encoder_attn)\.(q|k|v|out)_proj|fc[12])"
    r"\.weight"
)
GPT2 = r"transformer\.h\.(\d+)\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight"
VIT = r"(attention\.attention\.(query|key|value)|attention\.output\.dense"

# The names of all weights that may be pruned, and how many there are. The first group that
# matched is the number of the block.
PRUNABLE: dict[str, tuple[str, int]] = {
    "bert": (rf"bert\.{BERT}", 12),
    "bert_base": (BERT, 12),
    "bert_classifier": (rf"bert\.{BERT}", 12),
    "albert": (
        r"albert\.encoder\.albert_layer_groups\.(\d+)\.albert_layers\.0"
        r"\.(attention\.(query|key|value|dense)|ffn|ffn_output)\.weight",
        6,
    ),
    "roberta": (rf"roberta\.{BERT}", 12),
    "distilbert": (
        r"distilbert\.transformer\.layer\.(\d+)"
        r"\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])\.weight",
        12,
    ),
    "deberta": (
        r"deberta\.encoder\.layer\.(\d+)\.(attention\.self\.(pos_)?(query|key|value)_proj"
        r"|attention\.output\.dense|intermediate\.dense|output\.dense)\.weight",
        16,
    ),
    "opt": (BART, 12),
    "gpt2": (GPT2, 8),
    "gpt_bigcode": (GPT2, 8),
    "llama": (LLAMA, 14),
    "llama_untied": (LLAMA, 14),
    "qwen2": (LLAMA, 14),
    "qwen3": (LLAMA, 14),
    "mistral": (LLAMA, 14),
    "gemma2": (LLAMA, 14),
    "phi": (
        r"model\.layers\.(\d+)\.(self_attn\.(q_proj|k_proj|v_proj|dense)|mlp\.fc[12])\.weight",
        12,
    ),
    "phi3": (
        r"model\.layers\.(\d+)\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)\.weight",
        8,
    ),
    "mixtral": (
        rf"{ATTENTION}|model\.layers\.(\d+)\.block_sparse_moe\.experts\.\d\.w[123]\.weight",
        26,
    ),
    "qwen2_moe": (
        rf"{ATTENTION}|model\.layers\.(\d+)\.mlp\.(experts\.\d|shared_expert)"
        r"\.(gate|up|down)_proj\.weight",
        32,
    ),
    "gpt_oss": (
        rf"{ATTENTION}|model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj",
        12,
    ),
    "llama4": (
        rf"{ATTENTION}|model\.layers\.(\d+)\.feed_forward\.((shared_expert\.)?(gate|up|down)_proj"
        r"\.weight|experts\.(gate_up|down)_proj)",
        16,
    ),
    "granitemoe": (
        rf"{ATTENTION}|model\.layers\.(\d+)\.block_sparse_moe\.(in|out)put_linear\.weight",
        12,
    ),
    "jetmoe": (
        r"model\.layers\.(\d+)\.(self_attention\.kv_proj"
        r"|(self_attention\.experts|mlp)\.(in|out)put_linear)\.weight",
        10,
    ),
    "qwen3_vl_moe": (
        r"model\.language_model\.layers\.(\d+)\.(self_attn\.[qkvo]_proj\.weight"
        r"|mlp\.experts\.(gate_up|down)_proj)"
        r"|model\.visual\.blocks\.(\d+)\.(attn\.(qkv|proj)|mlp\.linear_fc[12])\.weight",
        20,
    ),
    "t5": (T5, 42),
    "t5_gated": (T5, 47),
    "bart": (BART, 42),
    "whisper": (BART, 42),
    "vit": (rf"vit\.encoder\.layer\.(\d+)\.{VIT}|intermediate\.dense|output\.dense)\.weight", 12),
    "dinov2": (rf"encoder\.layer\.(\d+)\.{VIT}|mlp\.fc[12])\.weight", 12),
    "dinov2_swiglu": (rf"encoder\.layer\.(\d+)\.{VIT}|mlp\.weights_(in|out))\.weight", 12),
    "clip": (
        r"(?:text|vision)_model\.encoder\.layers\.(\d+)"
        r"\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight",
        24,
    ),
    "gpt_neox": (
        r"gpt_neox\.layers\.(\d+)\.(attention\.(query_key_value|dense)"
        r"|mlp\.dense_(h_to_4h|4h_to_h))\.weight",
        8,
    ),
    "bloom": (BLOOM, 8),
    "falcon": (BLOOM, 8),
    "mpt": (
        r"transformer\.blocks\.(\d+)\.(attn\.(Wqkv|out_proj)|ffn\.(up|down)_proj)\.weight",
        8,
    ),
    "olmo": (LLAMA, 14),
}

# Stored matrices that are no single Linear of the live model, by the width of their input:
# hidden size 32, experts' inner width as in tiny_models.
STACKED_INPUT = {
    r"experts\.\d\.(w[13]|(gate|up)_proj)\.weight": 32,
    r"experts\.gate_up_proj|input_linear\.weight": 32,
    r"experts\.\d\.(w2)\.weight": 48,
    r"experts\.\d\.down_proj\.weight": 24,
    r"experts\.down_proj|(mlp|moe)\.output_linear\.weight": 48,
    r"self_attention\.experts\.output_linear\.weight": 12,
    r"mlp\.weights_in\.weight": 32,
}


Tiny = Callable[[str], Path]


def prunable(found: RoleMap) -> dict[str, int | None]:
    return {name: r.layer for name, r in found.roles.items() if r.role is Role.LINEAR}


def expected_prunable(model: str, names: list[str]) -> dict[str, int]:
    pattern, count = PRUNABLE[model]
    matches = [m for name in names if (m := re.fullmatch(pattern, name))]
    expected = {m.string: int(next(g for g in m.groups() if g is not None)) for m in matches}
    assert len(expected) == count, "the rule of the test itself no longer fits the file"
    return expected


def test_every_tiny_model_has_a_rule() -> None:
    assert set(PRUNABLE) == set(tiny_models.NAMES)


@pytest.mark.parametrize("model", few(tiny_models.NAMES, *tiny_models.FEW))
def test_exactly_the_linear_layers_of_blocks_are_prunable(tiny: Tiny, model: str) -> None:
    specs = specs_of(tiny(model))
    found = roles_from_modules(tiny(model), specs)
    assert found.origin == "modules"
    assert set(found.roles) == {spec.name for spec in specs}
    assert prunable(found) == expected_prunable(model, [spec.name for spec in specs])


@pytest.mark.parametrize("model", few(tiny_models.NAMES, *tiny_models.FEW))
def test_input_axes_are_those_of_the_live_model(tiny: Tiny, model: str) -> None:
    folder = tiny(model)
    found = roles_from_modules(folder, specs_of(folder))
    weights = load_file(folder / "model.safetensors")
    layers = [m for m in tiny_models.make(model).modules() if isinstance(m, nn.Linear | Conv1D)]
    for name, role in found.roles.items():
        if role.role is not Role.LINEAR:
            assert role.input_axis is None
            continue
        assert role.input_axis is not None
        # Which live layer a stored matrix is, its random values tell.
        live = [m for m in layers if torch.equal(m.weight, weights[name])]
        if live:
            assert role.input_axis == (1 if isinstance(live[0], nn.Linear) else 0), name
            width = live[0].in_features if isinstance(live[0], nn.Linear) else live[0].nx
        else:
            (width,) = [w for rule, w in STACKED_INPUT.items() if re.search(rule, name)]
        assert weights[name].shape[role.input_axis] == width, name


@pytest.mark.parametrize("model", few(tiny_models.NAMES, *tiny_models.FEW))
def test_headers_and_modules_agree_on_every_tensor(tiny: Tiny, model: str) -> None:
    folder = tiny(model)
    specs = specs_of(folder)
    by_module = roles_from_modules(folder, specs).roles
    found = roles_from_headers(specs)
    assert found.origin == "headers"
    assert found.roles == {name: replace(role, tied=False) for name, role in by_module.items()}


@pytest.mark.parametrize(("model", "path"), [("gpt_oss", "mlp"), ("llama4", "feed_forward")])
def test_the_input_axis_of_square_stacked_experts(tmp_path: Path, model: str, path: str) -> None:
    # gate_up is (3, 32, 32) here, so only the way the model computes tells its input axis.
    template = tiny_models.make(model)
    template.config.intermediate_size = 16
    live = type(template)(template.config).eval()
    live.save_pretrained(tmp_path)
    name = f"model.layers.1.{path}.experts.gate_up_proj"
    role = roles_from_modules(tmp_path, specs_of(tmp_path)).roles[name]
    assert role.input_axis is not None
    experts = live.get_submodule(name.rpartition(".")[0])
    with torch.no_grad():
        experts.gate_up_proj.select(role.input_axis, 5).zero_()
    seen: list[torch.Tensor] = []

    def cut_off(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # The router sees the same input, and would pass gradients on.
        return args[0].detach().requires_grad_(), *(arg.detach() for arg in args[1:])

    def differentiate(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        seen.append(torch.autograd.grad(output.sum(), args[0])[0])
        raise StopIteration

    experts.register_forward_pre_hook(cut_off)
    experts.register_forward_hook(differentiate)
    with pytest.raises(StopIteration):
        live(input_ids=torch.arange(12)[None])
    reached = seen[0].reshape(-1, 32).abs().sum(0) > 0
    assert not reached[5]
    assert reached.sum() == 31


def test_experts_that_are_turned_while_loading(tiny: Tiny) -> None:
    # Qwen3-VL's own files hold (experts, in, out), of which transformers makes (experts, out, in).
    stored = [
        replace(s, shape=(s.shape[0], s.shape[2], s.shape[1])) if ".experts." in s.name else s
        for s in specs_of(tiny("qwen3_vl_moe"))
    ]
    assert check_loadable(tiny("qwen3_vl_moe"), stored).is_clean
    for found in (
        roles_from_modules(tiny("qwen3_vl_moe"), stored),
        roles_from_headers(stored),
    ):
        axes = {role.input_axis for name, role in found.roles.items() if ".experts." in name}
        assert axes == {1}


# --- what else a tensor can be ----------------------------------------------------------------


def roles_of(tiny: Tiny, model: str) -> dict[str, Any]:
    return roles_from_modules(tiny(model), specs_of(tiny(model))).roles


def test_roles_outside_of_blocks(tiny: Tiny) -> None:
    bert = roles_of(tiny, "bert_base")
    assert bert["pooler.dense.weight"].role is Role.POOLER
    assert bert["embeddings.position_embeddings.weight"].role is Role.POSITION
    assert roles_of(tiny, "bert_classifier")["classifier.weight"].role is Role.HEAD
    assert roles_of(tiny, "vit")["classifier.weight"].role is Role.HEAD
    assert roles_of(tiny, "llama_untied")["lm_head.weight"].role is Role.HEAD
    albert = roles_of(tiny, "albert")
    assert albert["albert.encoder.embedding_hidden_mapping_in.weight"].role is Role.OTHER
    assert roles_of(tiny, "clip")["visual_projection.weight"].role is Role.OTHER
    assert roles_of(tiny, "opt")["model.decoder.project_in.weight"].role is Role.OTHER
    whisper = roles_of(tiny, "whisper")
    assert whisper["model.encoder.conv1.weight"].role is Role.CONVOLUTION
    assert whisper["model.encoder.embed_positions.weight"].role is Role.POSITION


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight"),
        ("qwen2_moe", "model.layers.0.mlp.gate.weight"),
        ("qwen2_moe", "model.layers.0.mlp.shared_expert_gate.weight"),
        ("gpt_oss", "model.layers.0.mlp.router.weight"),
        ("llama4", "model.layers.1.feed_forward.router.weight"),
        ("granitemoe", "model.layers.0.block_sparse_moe.router.layer.weight"),
    ],
)
def test_routers_are_routers(tiny: Tiny, model: str, name: str) -> None:
    assert roles_of(tiny, model)[name].role is Role.ROUTER


@pytest.mark.parametrize(
    ("model", "tied"),
    [
        ("bert", {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}),
        ("bert_base", set()),
        ("gpt2", {"transformer.wte.weight"}),
        ("llama", {"model.embed_tokens.weight"}),
        ("llama_untied", set()),
        ("t5", {"shared.weight"}),
        ("whisper", {"model.decoder.embed_tokens.weight"}),
    ],
)
def test_tied_weights_are_marked(tiny: Tiny, model: str, tied: set[str]) -> None:
    assert {name for name, role in roles_of(tiny, model).items() if role.tied} == tied


def test_a_head_stored_although_tied_counts_as_embedding(tiny: Tiny) -> None:
    specs = [*specs_of(tiny("llama")), TensorSpec("lm_head.weight", DTYPES["F32"], (61, 32))]
    role = roles_from_modules(tiny("llama"), specs).roles["lm_head.weight"]
    assert (role.role, role.tied) == (Role.EMBEDDING, True)


def test_a_separate_expert_keeps_its_own_path(tiny: Tiny) -> None:
    role = roles_of(tiny, "mixtral")["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    assert (role.stack, role.layer) == ("model.layers", 1)
    assert role.component == "block_sparse_moe.experts.2.w1"


# --- names in the file and in the model -------------------------------------------------------


def renamed(specs: list[TensorSpec], change: Callable[[str], str]) -> list[TensorSpec]:
    return [replace(spec, name=change(spec.name)) for spec in specs]


def test_the_base_prefix_may_be_absent_or_present(tiny: Tiny) -> None:
    with_head, base = tiny("bert"), tiny("bert_base")
    bare = renamed(specs_of(with_head), lambda name: name.removeprefix("bert."))
    assert prunable(roles_from_modules(with_head, bare)) == expected_prunable(
        "bert_base", [spec.name for spec in bare]
    )
    prefixed = renamed(specs_of(base), lambda name: "bert." + name)
    assert prunable(roles_from_modules(base, prefixed)) == expected_prunable(
        "bert", [spec.name for spec in prefixed]
    )


def test_legacy_norm_names(tiny: Tiny) -> None:
    def old(name: str) -> str:
        name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
        return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)

    specs = renamed(specs_of(tiny("bert")), old)
    found = roles_from_modules(tiny("bert"), specs).roles
    norms = [role for name, role in found.items() if name.endswith(("gamma", "beta"))]
    assert len(norms) == 12
    assert {role.role for role in norms} == {Role.NORM}
    assert check_loadable(tiny("bert"), specs).is_clean


def test_tensors_that_the_model_does_not_use_fall_back_on_their_names(tiny: Tiny) -> None:
    extra = [
        TensorSpec("cls.seq_relationship.weight", DTYPES["F32"], (2, 32)),
        TensorSpec("bert.embeddings.position_ids", DTYPES["I64"], (1, 20)),
    ]
    found = roles_from_modules(tiny("bert"), specs_of(tiny("bert")) + extra).roles
    assert found["cls.seq_relationship.weight"].role is Role.HEAD
    assert found["bert.embeddings.position_ids"].role is Role.POSITION


# --- config.json ------------------------------------------------------------------------------


def config_folder(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a config.json alone, with fields changed, or dropped where the value is None."""
    config = json.loads((source / "config.json").read_text()) | changes
    target.mkdir(exist_ok=True)
    kept = {key: value for key, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


@pytest.mark.parametrize("architectures", [None, ["MyOwnBertForSomething"], []])
@pytest.mark.parametrize("model", few(["bert", "llama", "mixtral", "t5", "gpt2"], "bert", "gpt2"))
def test_without_a_known_architecture_the_base_model_serves(
    tiny: Tiny, tmp_path: Path, model: str, architectures: list[str] | None
) -> None:
    folder = config_folder(tiny(model), tmp_path, architectures=architectures)
    specs = specs_of(tiny(model))
    found = roles_from_modules(folder, specs)
    assert found.detail.endswith("Model")
    assert prunable(found) == expected_prunable(model, [spec.name for spec in specs])


def test_an_architecture_alone_is_enough(tiny: Tiny, tmp_path: Path) -> None:
    folder = config_folder(tiny("bert"), tmp_path, model_type=None)
    assert roles_from_modules(folder, specs_of(tiny("bert"))).detail == "BertForMaskedLM"


def test_without_model_type_nothing_is_guessed_from_the_folder(tiny: Tiny, tmp_path: Path) -> None:
    folder = config_folder(
        tiny("bert"), tmp_path / "bert-base", model_type=None, architectures=None
    )
    with pytest.raises(UnknownArchitecture, match="model_type"):
        roles_from_modules(folder, specs_of(tiny("bert")))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "no config.json"),
        ("{", "cannot be read"),
        ("[1]", "not a JSON object"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
        ('{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}', "multiple"),
        ('{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 5}', ": .* multiple"),
        ('{"architectures": ["Trainer"]}', "no model_type"),
        ('{"model_type": "encoder-decoder"}', "encoder"),
        ('{"auto_map": {"AutoModel": "odd.OddModel"}}', "trust_remote_code"),
    ],
)
def test_a_config_that_leads_nowhere(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    for ask in (roles_from_modules, check_loadable):
        with pytest.raises(UnknownArchitecture, match=why):
            ask(tmp_path, [])


HUGE = {
    "num_labels": {"model_type": "bert", "num_labels": 3_000_000},
    "num_hidden_layers": {"model_type": "qwen2", "num_hidden_layers": 3_000_000},
    "nested": {"model_type": "gemma3", "text_config": {"num_hidden_layers": 3_000_000}},
    "depths": {"model_type": "swin", "depths": [2, 10**9]},
    "block_sizes": {"model_type": "funnel", "block_sizes": [10**9]},
    "num_hidden_groups": {"architectures": ["AlbertModel"], "num_hidden_groups": 10**9},
}


@pytest.mark.parametrize("config", HUGE.values(), ids=HUGE)
def test_a_config_that_asks_for_too_much_is_not_built(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    tracemalloc.start()
    try:
        with pytest.raises(UnknownArchitecture, match=r"asks for [\d,]+ in '\w+'"):
            model_class(tmp_path, trust_remote_code=False)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_names_of_labels_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_tree, "MAX_LABELS", 3)
    config = {"model_type": "bert", "id2label": dict.fromkeys("abcd", "x")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownArchitecture, match="asks for 4 in 'id2label'"):
        model_class(tmp_path, trust_remote_code=False)


CUSTOM_CODE = """
from pathlib import Path
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

Path("ran").touch()

class OddConfig(PreTrainedConfig):
    model_type = "odd"

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

class OddModel(PreTrainedModel):
    config_class = OddConfig
    def __init__(self, config):
        super().__init__(config)
        self.things = nn.ModuleList([Block() for _ in range(2)])
        self.post_init()
"""


@pytest.mark.parametrize("architectures", [["OddModel"], None])
def test_a_models_own_code_needs_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architectures: list[str] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.py").write_text(CUSTOM_CODE)
    config = {
        "architectures": architectures,
        "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModel": "odd.OddModel"},
        "model_type": "odd",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    specs = [
        TensorSpec(f"things.{i}.{part}.weight", DTYPES["F32"], shape)
        for i in range(2)
        for part, shape in [("norm", (8,)), ("up", (12, 8)), ("down", (8, 12))]
    ]
    with pytest.raises(UnknownArchitecture, match="trust_remote_code") as caught:
        roles_from_modules(tmp_path, specs)
    assert "--trust-remote-code" in caught.value.hint
    assert not Path("ran").exists()
    found = roles_from_modules(tmp_path, specs, trust_remote_code=True)
    assert Path("ran").exists()
    assert found.detail == "OddModel"
    assert prunable(found) == {
        f"things.{i}.{part}.weight": i for i in range(2) for part in ("up", "down")
    }
    check = check_loadable(tmp_path, specs, trust_remote_code=True)
    assert check.missing == sorted(
        f"things.{i}.{part}.bias" for i in range(2) for part in ("norm", "up", "down")
    )


@pytest.mark.parametrize("command", ["analyze", "prune --sparsity 0.4 --dry-run"])
def test_what_a_models_own_code_prints_is_not_in_the_document(
    command: str, tmp_path: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    """Nor does it stay away from stdout for what this process prints later."""
    code = f"print('hello from odd')\n{CUSTOM_CODE}"
    (tmp_path / "odd.py").write_text(code, encoding="utf-8")
    auto = {"AutoConfig": "odd.OddConfig", "AutoModel": "odd.OddModel"}
    config = {"architectures": ["OddModel"], "auto_map": auto, "model_type": "odd"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        f"things.{i}.{part}.{kind}": torch.randn(shape[: 2 if kind == "weight" else 1])
        for i in range(2)
        for part, shape in [("up", (12, 8)), ("down", (8, 12))]
        for kind in ("weight", "bias")
    } | {f"things.{i}.norm.{kind}": torch.ones(8) for i in range(2) for kind in ("weight", "bias")}
    save_file(tensors, tmp_path / "model.safetensors")
    verb, *options = command.split()
    code_, out, err = typed(verb, tmp_path, *options, "--trust-remote-code", "--json")
    assert code_ == 0, err
    assert isinstance(json.loads(out), dict)
    assert "hello from odd" in err
    assert sys.stdout is not sys.stderr


def test_transformers_is_silent_and_its_settings_come_back(
    tiny: Tiny, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("bert")
    specs = specs_of(folder)[1:]
    tlog = transformers.utils.logging
    before, bars = tlog.get_verbosity(), tlog.is_progress_bar_enabled()
    tlog.set_verbosity_info()
    tlog.enable_progress_bar()
    try:
        capfd.readouterr()
        assert not check_loadable(folder, specs).is_clean
        roles_from_modules(folder, specs)
        with pytest.raises(UnknownArchitecture):
            roles_from_modules(folder / "absent", specs)
        assert capfd.readouterr() == ("", "")
        assert tlog.get_verbosity() == logging.INFO
        assert tlog.is_progress_bar_enabled()
    finally:
        tlog.set_verbosity(before)
        if not bars:
            tlog.disable_progress_bar()


# --- would it load? ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", few(tiny_models.NAMES, *tiny_models.FEW))
def test_what_transformers_saved_is_clean(tiny: Tiny, model: str) -> None:
    check = check_loadable(tiny(model), specs_of(tiny(model)))
    assert check.is_clean, check
    assert check.model_class == type(tiny_models.make(model)).__name__


def real_report(folder: Path) -> tuple[list[str], list[str], list[str]]:
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    _, info = cls.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
    )
    return (
        sorted(info["missing_keys"]),
        sorted(info["unexpected_keys"]),
        sorted(key for key, *_ in info["mismatched_keys"]),
    )


Weights = dict[str, torch.Tensor]


def removed(weights: Weights, name: str) -> Weights:
    return {key: value for key, value in weights.items() if key != name}


def misnamed(weights: Weights, name: str) -> Weights:
    return removed(weights, name) | {f"{name}_typo": weights[name]}


def reshaped(weights: Weights, name: str) -> Weights:
    grown = torch.cat([weights[name], weights[name][:1]])
    return weights | {name: grown}


@pytest.mark.parametrize("damage", few([reshaped, removed, misnamed]))
@pytest.mark.parametrize("model", few(["bert", "gpt2", "llama", "mixtral", "dinov2", "t5"], "bert"))
def test_damage_is_reported_as_from_pretrained_reports_it(
    tiny: Tiny, tmp_path: Path, model: str, damage: Callable[[Weights, str], Weights]
) -> None:
    config_folder(tiny(model), tmp_path)
    weights = load_file(tiny(model) / "model.safetensors")
    names = [name for name in weights if ".experts." not in name][::3]
    reports = set()
    for name in names:
        save_file(damage(weights, name), tmp_path / "model.safetensors", {"format": "pt"})
        check = check_loadable(tmp_path, specs_of(tmp_path))
        report = (check.missing, check.unexpected, check.mismatched)
        assert report == real_report(tmp_path), name
        assert check.error == ""
        reports.add(str(report))
    assert len(reports) > 1


def test_too_little_memory_says_nothing_of_the_architecture() -> None:
    with pytest.raises(MemoryError), unknown_if_it_fails():
        raise MemoryError


def test_a_missing_expert_is_an_error_as_it_is_for_transformers(tiny: Tiny, tmp_path: Path) -> None:
    config_folder(tiny("mixtral"), tmp_path)
    weights = load_file(tiny("mixtral") / "model.safetensors")
    lost = "model.layers.1.block_sparse_moe.experts.1.w1.weight"
    save_file(removed(weights, lost), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError):
        real_report(tmp_path)
    check = check_loadable(tmp_path, specs_of(tmp_path))
    assert not check.is_clean
    assert "conversion" in check.error
