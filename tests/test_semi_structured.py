"""2:4 weights in torch's semi-structured form: what is eligible, and, on CUDA, the same outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prunectl
from prunectl.errors import InvalidOption
from prunectl.loading.semi_structured import convert, follows_2_4, reason_against, shape_reason


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("semi") / "pruned"
    prunectl.prune("demo", folder, prunectl.PruneSettings(pattern="2:4"), use_cache=False)
    return folder


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [
        ((192, 512), torch.bfloat16, ""),
        ((16, 16), torch.float16, ""),
        ((192, 24), torch.bfloat16, "not multiples"),
        ((24, 192), torch.bfloat16, "not multiples"),
        ((0, 64), torch.bfloat16, "not multiples"),
        ((192, 512), torch.float32, "no kernel"),
        ((2, 64, 64), torch.float16, "not a matrix"),
    ],
)
def test_shapes_and_dtypes_that_kernels_take(
    shape: tuple[int, ...], dtype: torch.dtype, why: str
) -> None:
    found = shape_reason(shape, dtype)
    assert why in found
    assert bool(found) == bool(why)


def test_float32_is_not_taken_by_cutlass_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.sparse.semi_structured import SparseSemiStructuredTensor

    monkeypatch.setattr(SparseSemiStructuredTensor, "_FORCE_CUTLASS", True)
    assert "no kernel" in shape_reason((64, 64), torch.float32)
    assert not shape_reason((64, 64), torch.float16)


def test_whether_a_weight_follows_2_4() -> None:
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 0, -0.0, 3], [0, 0, 0, 0, 4, 5, 0, 0]])
    assert follows_2_4(weight)
    weight[0, 1] = 7
    assert not follows_2_4(weight)


def test_every_prunable_weight_of_the_demo_would_be_taken(pruned: Path) -> None:
    model = prunectl.load_model(pruned)
    linears = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    blocks = [module for module in linears if module is not model.lm_head]
    assert len(blocks) == 42
    for module in blocks:
        assert follows_2_4(module.weight)
        assert not shape_reason(tuple(module.weight.shape), module.weight.dtype)
        assert "not on CUDA" in reason_against(module.weight)


def test_on_the_cpu_auto_changes_nothing_and_always_is_refused(pruned: Path) -> None:
    model = prunectl.load_model(pruned, semi_structured="auto")
    assert {type(parameter) for parameter in model.parameters()} == {torch.nn.Parameter}
    if not torch.cuda.is_available():
        with pytest.raises(InvalidOption, match="no CUDA device"):
            convert(model, "always")


def test_an_unknown_mode_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="'sometimes' is not known"):
        prunectl.load_model(tmp_path / "nothing here", semi_structured="sometimes")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["dense", "nm", "packed"])
def test_outputs_are_those_of_the_dense_model(pruned: Path, tmp_path: Path, layout: str) -> None:
    folder = pruned
    if layout != "dense":
        folder = tmp_path / layout
        prunectl.export(pruned, folder, layout)
    dense = prunectl.load_model(pruned, device_map="cuda")
    sparse = prunectl.load_model(folder, device_map="cuda", semi_structured="always")
    converted = [m for m in sparse.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(m.weight.data.__class__ is not torch.Tensor for m in converted) == 42
    ids = torch.arange(128, device="cuda").reshape(2, 64)
    with torch.no_grad():
        expected, found = dense(ids).logits.float(), sparse(ids).logits.float()
    assert torch.allclose(expected, found, atol=0.15, rtol=0.05)
    assert (expected.argmax(-1) == found.argmax(-1)).float().mean() > 0.95
