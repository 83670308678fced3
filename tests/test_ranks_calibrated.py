"""Calibration by several processes: what one process makes of the same samples."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny_models
import torch
import transformers
from ranks_script import parsed
from safetensors.torch import load_file
from test_calibrated_resume import stopped_after
from test_ranks import killed, launched

import prunectl
from prunectl.calibration import forward
from prunectl.calibration.capture import Matrix
from prunectl.calibration.statistics import NotShared, Statistics, agree
from prunectl.events import Event, Note

ROW, ONE = 16, 2048
"""Tokens in a batch: those of one sample, so that ranks share them, or of all."""
NM = {"pattern": "2:4", "sparsity": 0.3}
EXPERTS = 16

pytestmark = pytest.mark.usefixtures("one_thread")


def calibration(samples: int = 16, tokens: int = 16, **more: Any) -> dict[str, Any]:
    return {"source": ["random"], "samples": samples, "sequence_length": tokens, **more}


def job(model: str, name: str, method: str, rows: int, **settings: Any) -> dict[str, Any]:
    settings = {"method": method, "calibration": calibration(), "sparsity": 0.5} | settings
    return {"verb": "prune", "model": model, "output": name, "settings": settings, "rows": rows,
            "shard": "40KB"}  # fmt: skip


FEW = {"calibration": calibration(2, 4)}
SHARED = [
    job("llama", "wanda", "wanda", ROW),
    job("llama", "turns", "sparsegpt", ROW, refine=True),
    job("llama", "budget", "admm", ROW, **NM),
    job("llama", "by rows", "sparsegpt", ROW, **NM, budget="rows"),
    job("llama", "global", "sparsegpt", ROW, scope="global"),
    job("llama", "refined", "magnitude", ROW, refine=True),
    job("llama", "reconstructed", "wanda", ROW, reconstruct=True),
    job("t5", "both sides", "sparsegpt", ROW),
    job("gpt_oss", "stacked", "wanda", ROW),
    job("experts", "experts", "sparsegpt", 4, **FEW),
    job("experts", "experts at once", "wanda", 4, **FEW),
]
ALIKE = [
    job("llama", "one turns", "sparsegpt", ONE, refine=True),
    job("llama", "one budget", "admm", ONE, **NM),
    job("llama", "one by rows", "sparsegpt", ONE, **NM, budget="rows"),
    job("llama", "one global", "wanda", ONE, scope="global"),
    job("llama_untied", "one head", "sparsegpt", ONE, include=["lm_head.weight"]),
    job("experts", "one experts", "sparsegpt", ONE, **FEW),
]
GOES_ON = job("llama", "goes on", "sparsegpt", ONE)


def _trap(what: str) -> dict[str, Any]:
    return {"trap": {"what": what, "rank": 1, "at": "Advanced calibrating"}}


SHARED.append(job("llama", "not shared", "sparsegpt", ROW) | _trap("not shared"))
OTHER = {"method": "wanda", "calibration": calibration(seed=1), "sparsity": 0.5}
FULL = "this machine has too little free memory for model.layers.0 and its inputs"
FAIL: list[dict[str, Any]] = [
    job("llama", "full", "wanda", ROW) | _trap("full") | {"says": [
        f"RankFailed: rank 1 on {socket.gethostname()}: calibration failed: {FULL}",
        f"DeviceFull: calibration failed: {FULL}",
    ]},
    job("llama", "others", "wanda", ROW) | {"others": {"1": {"settings": OTHER}}, "says": [
        "RanksDiffer: rank 1 and rank 0 do not see the same calibration samples"
    ] * 2},
]  # fmt: skip
"""Jobs that end, and what either rank says then."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("llama", "llama_untied", "t5", "gpt_oss"):
        model = tiny_models.make(name)
        for weight in model.parameters():
            if name == "llama" and weight.ndim == 2:
                weight.data *= 12  # or attention is an average, and its inputs are all the same
        model.save_pretrained(folder / name)
    torch.manual_seed(3)
    deep = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=20,
    )  # fmt: skip
    transformers.LlamaForCausalLM(deep).save_pretrained(folder / "deep")
    config = transformers.MixtralConfig(
        vocab_size=61, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=20,
        num_local_experts=EXPERTS, num_experts_per_tok=2,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(folder / "experts")
    return folder


@pytest.fixture(scope="module")
def folders(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What two ranks, and what one process, have made of all jobs."""
    ours, alone = (tmp_path_factory.mktemp(name) for name in ("ranks", "alone"))
    jobs = [_at(models, one) for one in (*SHARED, *ALIKE, GOES_ON)]
    _cut_off(jobs[-1], ours)
    first, second = launched(2, [*jobs, *(_at(models, one) for one in FAIL)], ours)
    for one, said, also in zip(jobs, first, second, strict=False):
        pruned = pruned_alone(one, alone)
        assert said == also == f"{pruned.prunable_zeros} zeros, 0 resumed"
    for one, *said in zip(FAIL, first[len(jobs) :], second[len(jobs) :], strict=True):
        assert said == one["says"]
    assert not [path for path in ours.iterdir() if path.name.startswith(".")]
    return ours, alone


def _at(models: Path, one: dict[str, Any]) -> dict[str, Any]:
    return one | {"model": str(models / one["model"])}


def pruned_alone(one: dict[str, Any], folder: Path, **more: Any) -> prunectl.PruneResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "_ROWS", one["rows"])
        return prunectl.prune(
            one["model"], folder / one["output"],
            prunectl.PruneSettings(**parsed(one["settings"])),
            max_shard_size=one["shard"], use_cache=False, **more,
        )  # fmt: skip


def _cut_off(one: dict[str, Any], folder: Path) -> None:
    """Ctrl-C once a block is finished, in one process."""
    with stopped_after(1):
        pruned_alone(one, folder)
    assert [path for path in folder.iterdir() if path.name.endswith("calibrated")]


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "prunectl.json").read_text())
    return found


@pytest.mark.full
@pytest.mark.parametrize("name", [one["output"] for one in SHARED])
def test_shared_samples_give_what_one_process_makes_of_them(
    name: str, folders: tuple[Path, Path]
) -> None:
    """But for the last bits of sums, by which a few weights may change places.

    On some processors no mask differs and weights do by 1e-4 at most; on others a few weights
    change places, which changes an error by 0.4%. Statistics of half of the samples would move 2%
    of the weights, and 9% with ADMM, and change the others by 5%.
    """
    ours, alone = (folder / name for folder in folders)
    # How many steps ADMM takes hangs on single weights of its mask.
    room = 0.03 if manifest(alone)["arguments"]["method"] == "admm" else 0.01
    for file in sorted(path.name for path in alone.glob("*.safetensors")):
        found, wanted = load_file(ours / file), load_file(alone / file)
        assert found.keys() == wanted.keys()
        for tensor, expected in wanted.items():
            got = found[tensor]
            assert int((got == 0).sum()) == int((expected == 0).sum()), tensor
            moved = (got == 0) != (expected == 0)
            assert moved.sum() <= room * got.numel(), tensor
            still = ~(moved.any(-1, keepdim=True) if moved.ndim > 1 else moved).expand_as(moved)
            off = (got - expected)[still].abs().max() / expected.abs().max().clamp(min=1e-9)
            assert off <= room, tensor
    told, expected = manifest(ours), manifest(alone)
    for one, other in zip(told["tensors"], expected["tensors"], strict=True):
        facts, facts_alone = one.get("calibrated"), other.get("calibrated")
        assert bool(facts) == bool(facts_alone)
        for key, value in (facts_alone or {}).items():
            if isinstance(value, float) and key != "damping":
                assert facts[key] == pytest.approx(value, rel=room), (one["name"], key)
            else:
                assert facts[key] == value, (one["name"], key)
    assert told["arguments"] == expected["arguments"]
    assert prunectl.verify(ours).ok


@pytest.mark.full
@pytest.mark.parametrize("name", [one["output"] for one in (*ALIKE, GOES_ON)])
def test_where_one_rank_has_all_samples_every_bit_is_the_same(
    name: str, folders: tuple[Path, Path]
) -> None:
    """One batch is one rank's; tensors are shared out all the same, and nothing depends on that."""
    ours, alone = (reference.contents(folder / name) for folder in folders)
    assert ours.keys() == alone.keys()
    assert [file for file in ours if ours[file] != alone[file]] == []


@pytest.mark.full
def test_some_experts_were_reached_by_one_rank_only(
    models: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Or the jobs above would not show that these are pruned as by one process."""
    one = job(str(models / "experts"), "first", "wanda", 4, calibration=calibration(1, 4))
    pruned_alone(one, tmp_path)
    first, both = (
        {
            tensor["name"]: tensor["calibrated"]["tokens"]
            for tensor in manifest(folder)["tensors"]
            if "layers.0" in tensor["name"] and "experts" in tensor["name"]
        }
        for folder in (tmp_path / "first", folders[1] / "experts")
    )
    assert any(0 < first[name] == both[name] for name in both), "the first only"
    assert any(first[name] == 0 < both[name] for name in both), "the second only"
    assert any(both[name] == 0 for name in both), "neither"


# --- statistics -------------------------------------------------------------------------------

Inputs = list[tuple[str, torch.Tensor]]
"""What each product of a sample is computed of; the same tensor where they share it."""


def seen_by(parts: Sequence[Sequence[Inputs]], *, shared: bool = True) -> list[dict[str, Any]]:
    """Moments of each of some processes, in threads, once they are united; and what they share."""
    everyone = []
    for samples in parts:
        matrices = {name: Matrix(name, None, torch.zeros(2, 3)) for name in "qkv"}
        statistics = Statistics(full=True, device=torch.device("cpu"), shared=shared)
        for sample in samples:
            statistics.next_sample()
            for name, x in sample:
                statistics.seen((matrices[name],), x)
        everyone.append((matrices, statistics))
    told = [statistics.tally() for _, statistics in everyone]
    if not agree(told):
        raise NotShared
    barrier = threading.Barrier(len(parts))
    held: dict[int, torch.Tensor] = {}

    def all_reduce(number: int, tensor: torch.Tensor) -> None:
        held[number] = tensor.clone()
        barrier.wait()
        tensor.copy_(sum(held[i] for i in range(len(parts))))
        barrier.wait()

    def unite(number: int) -> None:
        matrices, statistics = everyone[number]
        statistics.unite(told, matrices.values(), lambda tensor: all_reduce(number, tensor))

    threads = [threading.Thread(target=unite, args=(i,)) for i in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = []
    for matrices, statistics in everyone:
        grams = {name: statistics.of(one) for name, one in matrices.items()}
        order = [key[0].name for key in statistics.order]
        found.append(
            {"order": order, **{k: g and (g.tokens, g.hessian()) for k, g in grams.items()}}
        )
    return found


def _x(seed: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


def _both(seed: int) -> Inputs:
    """A sample for which q and k share their inputs."""
    x = _x(seed)
    return [("q", x), ("k", x)]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([[_both(0), _both(1)], [_both(2)]], id="alike"),
        pytest.param([[_both(0)], []], id="nothing on one"),
        pytest.param([[[("v", _x(0))]], [_both(1)]], id="other products"),
        pytest.param([[_both(0)], [[("q", _x(1))]]], id="the leader alone"),
    ],
)
def test_statistics_are_united(parts: list[list[Inputs]]) -> None:
    alone = seen_by([[sample for part in parts for sample in part]])[0]
    for found in seen_by(parts):
        assert found["order"] == alone["order"]
        for name in "qkv":
            if alone[name] is None:
                assert found[name] is None
                continue
            assert found[name][0] == alone[name][0]
            torch.testing.assert_close(found[name][1], alone[name][1])


def test_what_is_shared_in_one_process_only_is_shared_in_none() -> None:
    parts = [[_both(0)], [[("k", _x(1)), ("q", _x(2))]]]
    with pytest.raises(NotShared):
        seen_by(parts)
    alone = seen_by([[sample for part in parts for sample in part]], shared=False)[0]
    for found in seen_by(parts, shared=False):
        for name in "qk":
            assert found[name][0] == alone[name][0] == 8
            torch.testing.assert_close(found[name][1], alone[name][1])


# --- a kill -----------------------------------------------------------------------------------


@pytest.mark.full
def test_another_number_of_processes_goes_on_after_a_kill(models: Path, tmp_path: Path) -> None:
    """Rank 1 is killed at its second sign of progress: then the first block is done."""
    one = job(str(models / "deep"), "out", "sparsegpt", ONE)
    killed(one, {"rank": 1, "at": "Advanced calibrating", "time": 2}, tmp_path)
    events: list[Event] = []
    pruned_alone(one, tmp_path, on_event=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("continuing from " in text and "of an earlier run" in text for text in notes), notes
    pruned_alone(one | {"output": "whole"}, tmp_path)
    assert reference.contents(tmp_path / "out") == reference.contents(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
