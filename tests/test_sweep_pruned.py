"""A model pruned in memory holds, bit for bit, what ``prune`` writes and transformers loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import own_words
import pytest
import tiny_models
import torch

from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import NaNWeights
from prunectl.evaluation.loaded_model import LoadedModel, open_loaded_model
from prunectl.evaluation.metric import Head
from prunectl.evaluation.perplexity import Perplexity
from prunectl.events import Advanced, Event, ignore_events
from prunectl.parallel.run import Run
from prunectl.plan.prunable import prunable_tensors
from prunectl.plan.settings import Budget, Calibration, Method, PruneSettings, Scope
from prunectl.pruning.verb import prune
from prunectl.studies.sweep.measurer import PrunedModel, Zeros

pytestmark = pytest.mark.usefixtures("one_thread")

ANY = Perplexity((), 1, {})
"""What a metric asks of a model; none is scored here."""
Asked = PruneSettings | None


@contextmanager
def opened(folder: Path, *include: str) -> Iterator[PrunedModel]:
    checkpoint = open_checkpoint(folder)
    prunable = prunable_tensors(checkpoint, include).values()
    with open_loaded_model(checkpoint, ANY, device="cpu", dtype="float32") as (loaded, reader):
        yield PrunedModel(loaded, reader, prunable)


def apply(pruned: PrunedModel, settings: Asked, on_event: Any = ignore_events) -> Zeros:
    return pruned.apply(settings, Run(1, on_event=on_event))


def from_disk(folder: Path, settings: Asked, out: Path) -> tuple[dict[str, Any], int]:
    """The state of the model that transformers loads of a pruned folder, and the zeros in it."""
    result = None
    if settings is not None:
        result = prune(folder, out, settings, force=True)
    cls = type(tiny_models.make(folder.name)) if folder.name in tiny_models.NAMES else None
    if cls is None:
        from transformers import AutoModelForCausalLM as cls
    model = cls.from_pretrained(folder if result is None else out, dtype=torch.float32)
    return model.state_dict(), 0 if result is None else result.prunable_zeros


def assert_same(pruned: PrunedModel, wanted: dict[str, Any]) -> None:
    found = pruned.loaded.model.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        one, other = found[name].contiguous(), value.contiguous()
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name


UP_AND_DOWN: list[Asked] = [
    PruneSettings(sparsity=0.3),
    PruneSettings(sparsity=0.6),
    PruneSettings(pattern="2:4"),  # type: ignore[arg-type]
    PruneSettings(sparsity=0.3, pattern="2:4"),  # type: ignore[arg-type]
    None,
    PruneSettings(sparsity=0.5, scope=Scope.ROW),
    PruneSettings(sparsity=0.2, scope=Scope.TENSOR),
    PruneSettings(sparsity=0.25, pattern="1:4", budget=Budget.ROWS),  # type: ignore[arg-type]
    PruneSettings(sparsity=0.1, exclude=("re:att",)),
    PruneSettings(sparsity=0.05),
    None,
]


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "albert", "phi3"])
def test_every_way_to_prune_up_and_down_is_that_of_the_disk(
    tiny: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Weights that are stacked (Mixtral), transposed (GPT-2), fused (Phi-3), tied or shared."""
    folder = tiny(name)
    with opened(folder) as pruned:
        for settings in UP_AND_DOWN:
            zeros = apply(pruned, settings)
            wanted, count = from_disk(folder, settings, tmp_path / "out")
            assert_same(pruned, wanted)
            assert zeros.zeros == count
            assert zeros.sparsity == count / zeros.weights
            assert zeros.parameters == sum(
                tensor.spec.numel for tensor in open_checkpoint(folder).tensors
            )
            assert zeros.overall == count / zeros.parameters


def test_a_checkpoint_in_half_precision_is_pruned_in_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    tiny_models.build("llama", folder, torch.bfloat16)
    with opened(folder) as pruned:
        for settings in (PruneSettings(sparsity=0.4), PruneSettings(sparsity=0.2), None):
            apply(pruned, settings)
            assert_same(pruned, from_disk(folder, settings, tmp_path / "out")[0])


def test_a_model_that_was_pruned_before_keeps_its_zeros(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "llama"
    prune(tiny("llama"), source, PruneSettings(sparsity=0.5))
    with opened(source) as pruned:
        assert apply(pruned, None).sparsity == pytest.approx(0.5, abs=1e-4)
        for settings in (PruneSettings(sparsity=0.2), PruneSettings(sparsity=0.7)):
            zeros = apply(pruned, settings)
            wanted, count = from_disk(source, settings, tmp_path / "out")
            assert_same(pruned, wanted)
            assert zeros.zeros == count


def test_tensors_that_are_included_are_pruned_too_and_made_dense_again(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny("llama_untied")
    added = "lm_head", "model.embed_tokens.weight"
    with opened(folder, *added) as pruned:
        settings = PruneSettings(sparsity=0.4, include=added)
        zeros = apply(pruned, settings)
        wanted, count = from_disk(folder, settings, tmp_path / "out")
        assert_same(pruned, wanted)
        assert zeros.zeros == count
        held = {one.name: one for one in pruned.loaded.held()}
        assert int(held["lm_head.weight"].gone.sum()) > 0
        assert sum(int(one.gone.sum()) for one in held.values()) == count
        apply(pruned, None)
        assert_same(pruned, from_disk(folder, None, tmp_path)[0])


def test_all_zeros_of_a_pruned_folder_are_held(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    settings = PruneSettings(sparsity=0.4, include=("lm_head", "model.embed_tokens.weight"))
    result = prune(tiny("llama_untied"), tmp_path / "out", settings)
    with opened(tmp_path / "out") as pruned:
        held = {one.name: int(one.gone.sum()) for one in pruned.loaded.held()}
    assert held["lm_head.weight"] > 0 < held["model.embed_tokens.weight"]
    assert sum(held.values()) == result.prunable_zeros
    with opened(tiny("llama_untied")) as dense:
        assert "lm_head.weight" not in {one.name for one in dense.loaded.held()}


def test_only_what_changes_is_put_in_again(tiny: Callable[[str], Path]) -> None:
    def put(settings: Asked) -> set[str]:
        events: list[Event] = []
        apply(pruned, settings, events.append)
        return {one.item for one in events
                if isinstance(one, Advanced) and one.phase == "pruning in memory"}  # fmt: skip

    with opened(tiny("llama")) as pruned:
        assert put(None) == set()
        first = put(PruneSettings(sparsity=0.4))
        assert len(first) == len(pruned.loaded.prunable)
        assert put(PruneSettings(sparsity=0.4)) == set()
        quarter = put(PruneSettings(sparsity=0.2, pattern="2:4"))  # type: ignore[arg-type]
        more = put(PruneSettings(sparsity=0.3, pattern="2:4"))  # type: ignore[arg-type]
        assert quarter == first
        assert 0 < len(more) < len(first)  # matrices that took the pattern before stay


def test_calibrated_weights_are_those_of_the_disk(tmp_path: Path) -> None:
    text = own_words.build(tmp_path / "speaker", windows=6)
    calibration = Calibration((f"text:{text}",), samples=4, sequence_length=16, seed=3)
    with opened(tmp_path / "speaker") as pruned:
        for settings in (
            PruneSettings(sparsity=0.4, method=Method.WANDA, calibration=calibration),
            PruneSettings(sparsity=0.2, method=Method.WANDA, calibration=calibration),
            PruneSettings(sparsity=0.5, refine=True, calibration=calibration),
            None,
        ):
            zeros = apply(pruned, settings)
            wanted, count = from_disk(tmp_path / "speaker", settings, tmp_path / "out")
            assert_same(pruned, wanted)
            assert zeros.zeros == count


def test_weights_that_have_no_magnitude_stop_it(tmp_path: Path) -> None:
    model = tiny_models.make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "llama")
    with opened(tmp_path / "llama") as pruned:
        apply(pruned, None)
        with pytest.raises(NaNWeights, match=r"layers\.1\.mlp\.up_proj"):
            apply(pruned, PruneSettings(sparsity=0.3))


def test_a_part_that_the_model_leaves_out_is_pruned_without_it(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of CLIP's two towers, a classifier of images has one."""
    folder = tiny("clip")
    checkpoint = open_checkpoint(folder)
    head = Head("AutoModelForImageClassification", {"num_labels": 2})
    with checkpoint.open() as reader:
        loaded = LoadedModel(
            checkpoint, reader, device=torch.device("cpu"), dtype=torch.float32, head=head
        )
        pruned = PrunedModel(loaded, reader, prunable_tensors(checkpoint).values())
        settings = PruneSettings(sparsity=0.4)
        zeros = apply(pruned, settings)
        wanted, count = from_disk(folder, settings, tmp_path / "out")
        assert zeros.zeros == count
        found = loaded.model.state_dict()
        shared = found.keys() & wanted.keys()
        assert any("fc1.weight" in name for name in shared)
        assert not any(name.startswith("text_model") for name in found)
        for name in shared:
            assert torch.equal(found[name], wanted[name]), name
