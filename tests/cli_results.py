"""Hand-made results for the screens: small, with every field that is shown set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prunectl.analysis.result import (
    SPARSITIES,
    Analysis,
    GroupStats,
    PatternSummary,
    SourceFacts,
    TensorStats,
    Threshold,
)
from prunectl.pruning.result import PoolOutcome, PruneResult, TensorOutcome
from prunectl.verification.result import Check, Difference, VerifyReport

SOURCE = SourceFacts(
    model="org/tiny",
    kind="hub",
    format="safetensors",
    repo_id="org/tiny",
    revision="main",
    commit="0123456789abcdef0123456789abcdef01234567",
    architecture="TinyModel",
    roles_from="modules",
    roles_detail="TinyModel",
    quantization="",
    dtypes={"bf16": 1_900_000, "fp32": 100_000},
    shards=2,
    file_bytes=4_201_000,
    tensor_bytes=4_200_000,
    tensors=41,
    weights=2_000_000,
    prunable_weights=1_000_000,
    layers=2,
)


def group(weights: int, *, prunable: int | None = None, zeros: int = 0) -> GroupStats:
    return GroupStats(
        tensors=4,
        weights=weights,
        prunable_weights=weights if prunable is None else prunable,
        nbytes=2 * weights,
        zeros=zeros,
        near_zero={"1e-08": zeros, "0.01*std": zeros + weights // 100},
        std=0.05,
        largest=1.5,
        norm_squared=0.0025 * weights,
    )


def tensor(name: str, *, layer: int | None = 0, numel: int = 4096) -> TensorStats:
    return TensorStats(
        name=name,
        dtype="bf16",
        shape=(64, numel // 64),
        numel=numel,
        role="block linear",
        stack="model.layers",
        layer=layer,
        component="mlp.up_proj",
        prunable=True,
        reason="",
        measured=True,
        std=0.05,
        norm_squared=10.0,
        sparsity=tuple(SPARSITIES),
    )


def analysis(layers: int = 2) -> Analysis:
    """An analysis of a model with so many layers; deeper layers are pruned more."""
    names = [f"model.layers.{i}" for i in range(layers)]
    thresholds = tuple(
        Threshold(
            sparsity=s,
            count=round(s * 1_000_000),
            threshold=s / 10,
            norm_kept=1 - s**3,
            ties=3,
            ties_pruned=1,
            roles={"block linear": s},
            layers={name: s * (i + 1) / layers for i, name in enumerate(names)},
        )
        for s in SPARSITIES
    )
    return Analysis(
        source=replace(SOURCE, layers=layers),
        tensors=(
            tensor("model.layers.0.mlp.up_proj.weight"),
            tensor("model.layers.1.self_attn.[q].weight", layer=1),
        ),
        thresholds=thresholds,
        patterns=(
            PatternSummary(
                pattern="2:4",
                norm_kept=0.913,
                eligible=3,
                ineligible=1,
                reasons={"input dimension 6 is not divisible by 4": 1},
                zeros=490_000,
                sparsity=0.49,
                by_layer=dict.fromkeys(names, 0.9),
                bytes_packed=2_700_000,
            ),
        ),
        roles={
            "embedding": group(900_000, prunable=0),
            "block linear": group(1_000_000, zeros=1000),
            "norm": group(100_000, prunable=0),
        },
        components={"mlp.up_proj": group(1_000_000, zeros=1000)},
        layers={name: group(1_000_000 // layers) for name in names},
        octaves={-24: 10, -10: 100, -7: 99_890, -6: 200_000, -5: 399_000, -4: 290_000, -3: 10_000},
        prunable_zeros=1000,
        predicted_bytes={
            "dense": 4_200_000,
            "bitmask@0.4": 3_500_000,
            "nm@2:4": 2_700_000,
            "packed@new": 1_000_000,
        },
        warnings=("Tensor 'x' holds Inf.",),
        advice="Try --sparsity 0.3 first.",
        from_cache=False,
        seconds=1.5,
    )


def pool(**changes: Any) -> PoolOutcome:
    """An unstructured pool that reached what was asked for."""
    plain = PoolOutcome(
        label="default",
        pattern="unstructured",
        scope="global",
        requested=0.4,
        achieved=0.4,
        weights=1_000_000,
        zeros=400_000,
        threshold=0.03125,
        budget=False,
        pruned_tensors=7,
        dense_tensors=0,
    )
    return replace(plain, **changes)


def outcome(name: str, zeros: int, *, before: int = 0, action: str = "prune") -> TensorOutcome:
    """A tensor of 1000 weights."""
    return TensorOutcome(
        name=name,
        file="model.safetensors",
        dtype="bf16",
        shape=(10, 100),
        role="block linear",
        layer=0,
        numel=1000,
        prunable=action == "prune",
        action=action,
        pattern="unstructured" if action == "prune" else None,
        zeros=zeros,
        zeros_before=before,
        threshold=0.03125 if action == "prune" else None,
        reason="" if action == "prune" else "norm is not pruned by default",
        blake3="0" * 64,
    )


def prune_result(*pools: PoolOutcome) -> PruneResult:
    """Seven pruned tensors, t6 the most affected; t0 had many zeros before."""
    return PruneResult(
        output=Path("my out"),
        model="org/tiny",
        pools=pools or (pool(),),
        tensors=(
            outcome("t0.weight", 900, before=890),
            *(outcome(f"t{i}.weight", 100 * i) for i in range(1, 7)),
            outcome("norm.weight", 0, action="copy"),
        ),
        prunable_weights=1_000_000,
        prunable_zeros=400_000,
        prunable_zeros_before=890,
        weights=2_000_000,
        zeros=400_123,
        zeros_before=1_013,
        nbytes=4_000_000_000,
        source_bytes=4_000_000_000,
        shards=2,
        resumed_shards=1,
        seconds=4.0,
        warnings=(),
    )


def verify_report(differences: int = 0) -> VerifyReport:
    """A report of three checks, one not possible, one failed if there are differences."""
    return VerifyReport(
        output=Path("out"),
        tensors=41,
        zeros=400_123,
        checks=(
            Check("hashes", True, "2 files"),
            Check("zeros", not differences, ""),
            Check("source", None, "org/tiny: offline"),
        ),
        differences=tuple(
            Difference("zeros", f"t{i}.weight", "3 zeros, the manifest says 4")
            for i in range(differences)
        ),
        seconds=1.25,
    )
