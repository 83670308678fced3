"""``verify`` where calibration has changed weights: bad outputs, made to fit the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny_models
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from prunectl import NM, PruneSettings, prune, verify
from prunectl.errors import BadManifest
from prunectl.events import Event, Note
from prunectl.output.manifest import read_manifest
from prunectl.plan.settings import Calibration

RANDOM = Calibration(("random",), samples=4, sequence_length=12)
UP = "model.layers.0.mlp.up_proj.weight"
OTHER = "model.layers.1.self_attn.q_proj.weight"
ROWS = {"pattern": NM(2, 4), "sparsity": 0.3, "budget": "rows"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pruned as a whole, and in blocks of rows."""
    folder = tmp_path_factory.mktemp("made")
    tiny_models.build("llama", folder / "source")
    whole = PruneSettings(sparsity=0.5, method="sparsegpt", calibration=RANDOM)  # type: ignore[arg-type]
    prune(folder / "source", folder / "whole", whole)
    prune(
        folder / "source", folder / "rows", PruneSettings(**ROWS, method="admm", calibration=RANDOM)
    )  # type: ignore[arg-type]
    prune(folder / "source", folder / "plain", PruneSettings(sparsity=0.5))
    return folder


@pytest.fixture
def whole(made: Path, tmp_path: Path) -> Path:
    """A copy; the source that it names is there."""
    return Path(shutil.copytree(made / "whole", tmp_path / "whole"))


@pytest.fixture
def rows(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "rows", tmp_path / "rows"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "prunectl.json").read_bytes())
    change(document)
    (folder / "prunectl.json").write_text(json.dumps(document))


def entry_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict_ for dict_ in document["tensors"] if dict_["name"] == name)


def change(folder: Path, name: str, how: Callable[[torch.Tensor], object]) -> None:
    """Change a tensor, and the manifest so that hash and zeros fit."""
    tensors = load_file(folder / "model.safetensors")
    before = int((tensors[name] == 0).sum())
    how(tensors[name])
    more = int((tensors[name] == 0).sum()) - before
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def fit(document: dict[str, Any]) -> None:
        entry_of(document, name)["blake3"] = blake3(reference.raw(tensors[name])).hexdigest()
        entry_of(document, name)["zeros"] += more
        for total in document["totals"].values():
            total["zeros"] += more
            total["achieved"] = total["zeros"] / total["weights"]

    edit_manifest(folder, fit)


def differences(folder: Path, source: str | None = "auto") -> list[tuple[str, str, str]]:
    return [(d.kind, d.where, d.detail) for d in verify(folder, source=source).differences]


def first(tensor: torch.Tensor, where: torch.Tensor) -> tuple[int, ...]:
    return tuple(map(int, where.nonzero()[0]))


def test_what_is_intact_passes_and_what_is_not_calibrated_is_not_asked(made: Path) -> None:
    for name, asked in (("whole", True), ("rows", True), ("plain", False)):
        report = verify(made / name)
        assert report.ok
        assert ("calibrated" in {check.name for check in report.checks}) == asked


@pytest.mark.parametrize("source", ["auto", None])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(whole: Path, value: float, source: str | None) -> None:
    change(whole, UP, lambda w: w.__setitem__(first(w, w != 0), value))
    assert differences(whole, source) == [("calibrated", UP, "1 weights are NaN or Inf")]


def test_zeros_are_as_many_as_were_asked_for(whole: Path) -> None:
    change(whole, OTHER, lambda w: w.__setitem__(first(w, w != 0), 0.0))
    assert differences(whole, None) == [
        ("zeros", OTHER, "513 zeros, the arguments give 512"),
    ]


def test_a_pruned_weight_is_a_plain_zero(whole: Path) -> None:
    change(whole, OTHER, lambda w: w.__setitem__(first(w, w == 0), -0.0))
    assert differences(whole) == [("calibrated", OTHER, "1 zeros are -0.0")]


def test_a_zero_of_the_source_may_stay_where_no_sample_comes(tmp_path: Path) -> None:
    """Experts that no token reaches are as magnitudes leave them: with the source's -0.0."""
    model = tiny_models.make("gpt_oss")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("experts.down_proj"):
                weight[:, :, ::3] = -0.0
    model.save_pretrained(tmp_path / "source")
    few = Calibration(("random",), samples=1, sequence_length=2)
    choice = PruneSettings(sparsity=0.1, method="sparsegpt", scope="tensor", calibration=few)  # type: ignore[arg-type]
    prune(tmp_path / "source", tmp_path / "out", choice)
    records = [one for one in read_manifest(tmp_path / "out").tensors if one.by_magnitude]
    stored = reference.stored(tmp_path / "out")
    minus = [((stored[one.name] == 0) & stored[one.name].signbit()).any() for one in records]
    assert any(minus)
    assert any(one.is_updated for one in records)
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("value", [0.125, 0.0])
def test_a_dense_row_keeps_the_source_s_bits(rows: Path, value: float) -> None:
    (record,) = (one for one in read_manifest(rows).tensors if one.name == UP)
    assert record.pattern_rows is not None
    assert record.is_updated
    inside = {row for start, stop in record.pattern_rows for row in range(start, stop)}
    row = min(set(range(record.shape[0])) - inside)
    change(rows, UP, lambda w: w.__setitem__((row, 5), value))
    detail = "1 weight changed in rows that should be dense"
    assert differences(rows) == [("survivors", UP, detail)]
    assert differences(rows, None) == []  # nobody can tell


def test_a_row_of_the_pattern_may_hold_other_weights_than_the_source(rows: Path) -> None:
    (record,) = (one for one in read_manifest(rows).tensors if one.name == UP)
    assert record.pattern_rows is not None
    row = record.pattern_rows[0][0]
    change(rows, UP, lambda w: w[row].mul_(2))
    assert differences(rows) == []


@pytest.mark.parametrize(
    ("edit", "where", "detail"),
    [
        (lambda d: d["arguments"].pop("calibration"), "prunectl.json", "without a calibration"),
        (
            lambda d: d["arguments"].update(method="wanda"),
            "prunectl.json",
            "but method wanda changes none",
        ),
        (
            lambda d: entry_of(d, UP)["calibrated"].update(by_magnitude=1, tokens=0),
            UP,
            "no sample reached it",
        ),
    ],
)
def test_what_contradicts_itself(
    whole: Path, edit: Callable[[dict[str, Any]], object], where: str, detail: str
) -> None:
    edit_manifest(whole, edit)
    ((kind, place, said),) = differences(whole)
    assert (kind, place) == ("calibrated", where)
    assert detail in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("error", -0.1),
        ("error", float("nan")),
        ("error", float("inf")),
        ("error_before_refine", -1.0),
        ("damping", -0.01),
        ("tokens", -1),
        ("by_magnitude", 0.5),
        ("dead_inputs", "3"),
    ],
)
def test_facts_that_cannot_be(whole: Path, key: str, value: object) -> None:
    edit_manifest(whole, lambda d: entry_of(d, UP)["calibrated"].update({key: value}))
    with pytest.raises(BadManifest, match=key):
        verify(whole)


def test_outputs_that_are_worse_than_zeros_are_told_of(whole: Path) -> None:
    def worse(document: dict[str, Any]) -> None:
        entry_of(document, UP)["calibrated"]["error"] = 1.25
        entry_of(document, OTHER)["calibrated"]["error"] = 4.5

    edit_manifest(whole, worse)
    events: list[Event] = []
    assert verify(whole, on_event=events.append).ok
    (said,) = (event.text for event in events if isinstance(event, Note) and event.warning)
    assert said.startswith(f"{OTHER}, and 1 more: ")
    assert said.endswith("(output error 450%)")
