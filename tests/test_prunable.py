"""Which tensors are prunable: one answer of every command, after a recipe and in outputs too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from full import few

import prunectl
from prunectl import CompareSettings, EvalSettings, PruneSettings, Rule, demo
from prunectl.benchmarking.settings import BenchSettings
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import InvalidOption, NothingPrunable
from prunectl.plan.prunable import prunable_tensors, recorded_prunable, require_prunable

pytestmark = pytest.mark.usefixtures("one_thread", "small_products")

SETTINGS = {
    "include": PruneSettings(sparsity=0.4, include=("model.embed_tokens",)),
    "exclude": PruneSettings(sparsity=0.4, exclude=("*.down_proj.weight",)),
    "recipe": PruneSettings(
        rules=(
            Rule(("re:layers.0",), skip=True),
            Rule(("*.q_proj.weight",), sparsity=0.3),
            Rule(("*.up_proj.weight",), pattern="2:4"),  # type: ignore[arg-type]
        ),
    ),
}


@pytest.mark.parametrize("case", few(SETTINGS, "recipe"))
def test_a_pruned_folder_has_the_prunable_weights_that_prune_counted(
    case: str, tmp_path: Path
) -> None:
    """prune, evaluate, bench and compare count the same zeros of the same weights."""
    source, out, small = demo.model_folder(), tmp_path / "out", tmp_path / "small"
    pruned = prunectl.prune(str(source), out, SETTINGS[case])
    wanted = pruned.prunable_zeros, pruned.prunable_weights
    usual = prunable_tensors(open_checkpoint(source))
    assert sum(spec.numel for spec in usual.values()) != pruned.prunable_weights

    text = tmp_path / "text.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 20)
    settings = EvalSettings(data=(f"text:{text}",), sequence_length=16, samples=2)
    prunectl.export(out, small)
    for folder in (out, small):
        scored = prunectl.evaluate(folder, settings)
        assert (scored.zeros, scored.weights) == wanted
    side = prunectl.bench(
        out,
        settings=BenchSettings(
            seconds=0.01, prompt_tokens=(8,), new_tokens=1, measure_loading=False, pattern=None
        ),
    ).sides[0]
    assert (side.zeros.zeros, side.zeros.weights) == wanted

    compared = prunectl.compare(out, source, CompareSettings())
    assert compared.weights == pruned.prunable_weights
    assert compared.first.stats is not None
    assert compared.first.stats.zeros == pruned.prunable_zeros
    assert not compared.first.unmatched
    assert not compared.second.unmatched


def test_selectors_add_and_take_and_must_match(tiny: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(tiny("llama_untied"))
    usual = set(prunable_tensors(checkpoint))
    assert "lm_head.weight" not in usual
    assert set(prunable_tensors(checkpoint, ["lm_head"])) == usual | {"lm_head.weight"}
    fewer = prunable_tensors(checkpoint, (), ["*.down_proj.weight"])
    assert set(fewer) == {name for name in usual if not name.endswith("down_proj.weight")}
    recorded = frozenset({"lm_head.weight"})
    assert set(prunable_tensors(checkpoint, recorded=recorded)) == recorded
    with pytest.raises(InvalidOption, match="--include: 'nothing' matches no tensor"):
        prunable_tensors(checkpoint, ["nothing"])
    with pytest.raises(InvalidOption, match="an empty selector"):
        prunable_tensors(checkpoint, (), ["re:"])
    with pytest.raises(NothingPrunable):
        require_prunable(checkpoint, (), ["*"])


def test_a_manifest_that_cannot_be_read_decides_nothing(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prunectl.prune(str(tiny("llama_untied")), out, PruneSettings(sparsity=0.4))
    assert recorded_prunable(open_checkpoint(out))
    (out / "prunectl.json").write_text("{")
    assert recorded_prunable(open_checkpoint(out)) == frozenset()
