"""A manifest that was edited to agree with itself is still found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from blake3 import blake3
from test_verify import change, edit_manifest, entry_of, kinds, reference, shard_of

from prunectl import NM, PruneSettings, prune, verify
from prunectl.plan.settings import Scope

UP = "model.layers.1.mlp.up_proj.weight"


def make(folder: Path, settings: PruneSettings) -> Path:
    tiny_models.build("llama", folder / "source", torch.bfloat16)
    prune(folder / "source", folder / "out", settings, max_shard_size=15_000)
    return folder / "out"


def edit(entry: str, member: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def how(document: dict[str, Any]) -> None:
        part = document[entry] if entry in document else entry_of(document, entry)
        part[member] = value

    return how


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (edit(UP, "threshold", 123.0), "threshold"),
        (edit(UP, "threshold", 1e-9), "threshold"),
        (edit(UP, "zeros_before", 5), "source"),
        (edit("arguments", "sparsity", 0.9), "zeros"),
        (edit(UP, "prunable", False), "zeros"),
        (edit(UP, "tied_to", "model.norm.weight"), "zeros"),
    ],
)
def test_an_edited_fact(tmp_path: Path, how: Callable[[dict[str, Any]], None], kind: str) -> None:
    out = make(tmp_path, PruneSettings(sparsity=0.4))
    assert kinds(verify(out)) == {}
    edit_manifest(out, how)
    assert kind in kinds(verify(out))


def undo(out: Path, name: str, source: torch.Tensor, requested_stays: bool = True) -> None:
    """Give a tensor its dense weights back and make all of the manifest agree, but the request."""
    change(out, name, lambda tensor: tensor.copy_(source))
    zeros = int((source == 0).sum())

    def how(document: dict[str, Any]) -> None:
        entry = entry_of(document, name)
        less = entry["zeros"] - zeros
        entry.update(zeros=zeros, threshold=None, blake3=blake3(reference.raw(source)).hexdigest())
        for total in document["totals"].values():
            total["zeros"] -= less
            total["achieved"] = total["zeros"] / total["weights"]

    edit_manifest(out, how)


@pytest.mark.parametrize("scope", list(Scope))
def test_weights_restored_with_a_manifest_that_agrees(tmp_path: Path, scope: Scope) -> None:
    out = make(tmp_path, PruneSettings(sparsity=0.4, scope=scope))
    assert kinds(verify(out)) == {}
    undo(out, UP, reference.stored(tmp_path / "source")[UP])
    assert "zeros" in kinds(verify(out))


def test_a_card_that_is_gone_and_a_shard_that_is_a_link(tmp_path: Path) -> None:
    out = make(tmp_path, PruneSettings(pattern=NM(2, 4)))
    (out / "README.md").unlink()
    shard = shard_of(out, UP)
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert kinds(verify(out))["files"] == {"README.md", shard.name}


def test_groups_lie_along_the_axis_that_the_manifest_records(tmp_path: Path) -> None:
    """No guess at roles: without config.json, verify still knows the axis of a Conv1D."""
    tiny_models.build("gpt2", tmp_path / "source", torch.float32)
    out = tmp_path / "out"
    prune(tmp_path / "source", out, PruneSettings(pattern=NM(2, 4)))
    name = next(n for n in reference.stored(out) if n.endswith("c_fc.weight"))

    def how(document: dict[str, Any]) -> None:
        assert entry_of(document, name)["input_axis"] == 0
        entry_of(document, name)["input_axis"] = 1

    edit_manifest(out, how)
    assert kinds(verify(out))["pattern"] == {name}
