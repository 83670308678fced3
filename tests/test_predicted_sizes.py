"""The sizes that analyze and prune foretell are those of the folders that export then writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from full import few

import prunectl
from prunectl.analysis.sizes import in_groups, largest
from prunectl.pattern import NM

CASES = {"0.4": {"sparsity": 0.4}, "2:4": {"pattern": "2:4"}}


def check(model: str | Path, out: Path, case: str) -> None:
    settings = prunectl.PruneSettings(**CASES[case])  # type: ignore[arg-type]
    analysis = prunectl.analyze(model, patterns=["2:4"], use_cache=False)
    pruned = prunectl.prune(model, out / "pruned", settings, use_cache=False)
    told = pruned.predicted_bytes
    simple = "nm" if case == "2:4" else "bitmask"
    for layout in (simple, "packed"):
        result = prunectl.export(out / "pruned", out / layout, layout)
        stored = sum(tensor.stored_bytes for tensor in result.tensors)
        if layout == "packed":
            # Some of MiniLM's mantissas are compressible too, which the estimates leave out.
            assert told[layout] == pytest.approx(stored, rel=0.03)
            assert analysis.predicted_bytes[f"packed@{case}"] == pytest.approx(stored, rel=0.03)
        else:
            # Parts are padded to eight bytes, and tiny tensors stay dense to spare headers.
            slack = 400 * len(result.tensors)
            assert abs(stored - told[layout]) <= slack
            assert abs(stored - analysis.predicted_bytes[f"{layout}@{case}"]) <= slack
    assert told["dense"] == analysis.predicted_bytes["dense"]
    assert ("nm" in told) == (case == "2:4")


@pytest.mark.parametrize("case", few(CASES, "0.4"))
def test_the_demo(tmp_path: Path, case: str) -> None:
    check("demo", tmp_path, case)


@pytest.mark.real
@pytest.mark.parametrize("case", few(CASES, "2:4"))
@pytest.mark.parametrize("name", few(["smollm2", "minilm"], "minilm"))
def test_real_models(
    real_model: Callable[[str], Path], tmp_path: Path, name: str, case: str
) -> None:
    check(real_model(name), tmp_path, case)


def test_a_pattern_for_what_is_sparser_already(tmp_path: Path) -> None:
    """Each weight's own bit says more briefly which are kept than a set for each group does."""
    for out, source, settings in (
        ("sparse", "demo", prunectl.PruneSettings(sparsity=0.9)),
        ("groups", tmp_path / "sparse", prunectl.PruneSettings(pattern="2:4")),
    ):
        prunectl.prune(source, tmp_path / out, settings, use_cache=False)
    analysis = prunectl.analyze(tmp_path / "sparse", patterns=["2:4"], use_cache=False)
    result = prunectl.export(tmp_path / "groups", tmp_path / "packed", "packed")
    stored = sum(tensor.stored_bytes for tensor in result.tensors)
    assert analysis.predicted_bytes["packed@2:4"] == pytest.approx(stored, rel=0.03)


def test_the_largest_stay() -> None:
    assert largest([5, 3, 2], 4) == [0, 2, 2]
    assert largest([5, 3, 2], 10) == [5, 3, 2]
    assert largest([5, 3, 2], 0) == [0, 0, 0]


def test_groups_keep_as_many_as_they_have_places_for() -> None:
    kept = in_groups([1000.0] * 64, 0, NM(2, 4))
    assert sum(kept) == pytest.approx(32_000, rel=1e-3)
    assert kept == sorted(kept)
    # A quarter is zero already: the smallest quantile is never reached by a weight.
    assert sum(in_groups([750.0], 250, NM(1, 2))) == pytest.approx(750 * 0.625, rel=1e-3)
