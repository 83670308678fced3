"""``lottery``: rounds against a loop of one's own, masks against plain ones, bad input."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny_models
import tiny_tokenizers
import torch
from full import few
from hypothesis import given
from hypothesis import strategies as st
from test_calibration_samples import WORDS

from prunectl import LotterySettings, PruneSettings, evaluate, lottery, open_checkpoint, prune
from prunectl.checkpoint.mask_file import check_bits, read_masks
from prunectl.errors import InvalidOption, InvalidSparsity, NaNWeights, OutputConflict
from prunectl.evaluation.loaded_model import open_loaded_model
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.settings import EvalSettings, Training
from prunectl.events import Note, ignore_events
from prunectl.exporting.masks import export_masks
from prunectl.studies.compare.verb import compare
from prunectl.studies.errors import NoSchedule, OtherLottery
from prunectl.studies.lottery.masks import write_mask
from prunectl.studies.lottery.result import LotteryResult, Round, Scored
from prunectl.studies.lottery.settings import schedule
from prunectl.studies.lottery.verb import verdict
from prunectl.studies.settings import CompareSettings

TRAINING = Training(epochs=3, learning_rate=2e-2, train_batch_size=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_models.build("bert_base", folder)
    tiny_tokenizers.save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of which the first and the last word tell the class; some are marked wrongly."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, count in (("train.csv", 40), ("test.csv", 40)):
        with (folder / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for _ in range(count):
                words = rng.integers(2, len(WORDS), rng.integers(3, 8)).tolist()
                kind = int(rng.integers(0, 2))
                words[0] = words[-1] = kind
                wrong = rng.random() < 0.2
                rows.writerow([" ".join(WORDS[one] for one in words), kind ^ int(wrong)])
    return folder


def settings_of(data: Path, **options: Any) -> LotterySettings:
    evaluation = EvalSettings(metric="classification", data=(str(data),), training=TRAINING)
    return LotterySettings(evaluation, **{"sparsity": 0.6, "rounds": 2} | options)


@pytest.fixture(scope="module")
def found(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A whole search with two seeds; tests do not write to its folder."""
    folder = tmp_path_factory.mktemp("found") / "ticket"
    return folder, lottery(model, folder, settings_of(data, seeds=(0, 3)))


def bits_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """True is pruned."""
    file = read_masks(path)
    masks = {}
    with file.open() as reader:
        check_bits(file, reader, ignore_events)
        for name, mask in file.masks.items():
            bits = np.empty(mask.bits.spec.nbytes, np.uint8)
            reader.read(mask.bits, 0, bits)
            kept = np.unpackbits(bits, count=mask.numel, bitorder="little")
            masks[name] = kept == 0
    return masks


def trained(model: Path, data: Path, seed: int) -> dict[str, torch.Tensor]:
    """The prunable weights after a training, by the stored names."""
    checkpoint = open_checkpoint(model)
    chosen = settings_of(data).evaluation
    metric = prepare(checkpoint, chosen, ignore_events)
    with open_loaded_model(checkpoint, metric, device="auto", dtype="auto", seed=seed) as (
        loaded,
        _,
    ):
        metric.score(loaded, seed=seed)
        return {name: view.clone() for name, view in loaded.views.items()}


@pytest.mark.parametrize("seed", few([3, 0]))
def test_rounds_are_those_of_a_plain_loop(
    model: Path, data: Path, found: tuple[Path, LotteryResult], tmp_path: Path, seed: int
) -> None:
    """Train, prune the smallest of what was trained, rewind: masks bit for bit, scores exactly."""
    folder, result = found
    steps = [round(1 - math.sqrt(0.4), 6), 0.6]
    assert [one.sparsity for one in result.rounds] == steps == list(result.planned)
    current, before = model, None
    for number, sparsity in enumerate(steps, 1):
        weights = trained(current, data, seed)
        pruned = reference.together(weights, weights, sparsity)
        expected = {name: (one == 0).numpy().reshape(-1) for name, one in pruned.items()}
        path = folder / f"masks/seed-{seed}-round-{number:02}.safetensors"
        masks = bits_of(path)
        assert masks.keys() == expected.keys()
        assert all((masks[name] == expected[name]).all() for name in masks)
        assert sum(int(one.sum()) for one in masks.values()) == reference.count(
            sparsity, result.weights
        )
        if before is not None:  # what went stays away
            assert all((masks[name] >= before[name]).all() for name in masks)
        before = masks
        # Rewound: the pre-trained weights under the mask, which is what prune --mask makes.
        current = tmp_path / f"{seed}-{number}"
        prune(model, current, PruneSettings(mask=path))
        for file in model.glob("token*"):
            shutil.copy(file, current)
        chosen = replace(settings_of(data).evaluation, seed=seed)
        score = evaluate(current, chosen).score
        assert result.rounds[number - 1].ticket.seeds[str(seed)] == score
        shot = tmp_path / f"shot-{seed}-{number}"
        prune(model, shot, PruneSettings(sparsity=sparsity))
        assert result.rounds[number - 1].one_shot.seeds[str(seed)] == evaluate(shot, chosen).score


def test_the_numbers_agree_with_one_another(model: Path, found: tuple[Path, LotteryResult]) -> None:
    folder, result = found
    saved = json.loads((folder / "lottery.json").read_text())
    assert saved["schema"] == "prunectl.lottery/1"
    assert len(saved["rounds"]) == 2
    for one in result.rounds:
        for scored in (one.ticket, one.one_shot):
            values = [value for value in scored.seeds.values() if value is not None]
            assert scored.score == pytest.approx(sum(values) / 2)
            assert scored.low is not None
            assert scored.high is not None
            assert scored.low <= scored.score <= scored.high
        assert one.gain == pytest.approx((one.ticket.score or 0) - (one.one_shot.score or 0))
        assert one.gain_low is not None
        assert one.gain_high is not None
        assert one.gain_low <= one.gain <= one.gain_high
        for seed, overlap in one.overlaps.items():
            path = folder / one.masks[seed]
            own = compare(model, path, CompareSettings((one.sparsity,))).masks[0].overlap
            assert own == overlap
    assert "At 60% sparsity" in verdict(replace(result, majority=None))
    assert result.trainings == 2


def test_an_interrupted_search_goes_on(
    model: Path, data: Path, found: tuple[Path, LotteryResult], tmp_path: Path
) -> None:
    """After Ctrl-C in the first round: the same masks, byte for byte, and the same scores."""
    settings = settings_of(data)

    def stop(result: LotteryResult) -> None:
        if result.rounds:
            raise KeyboardInterrupt

    part = lottery(model, tmp_path / "ticket", settings, on_result=stop)
    assert (part.interrupted, len(part.rounds)) == (True, 1)
    whole = lottery(model, tmp_path / "ticket", settings)
    folder, before = found
    for one, other in zip(whole.rounds, before.rounds, strict=True):
        assert one.ticket.seeds["0"] == other.ticket.seeds["0"]
        assert one.one_shot.seeds["0"] == other.one_shot.seeds["0"]
    for path in sorted((folder / "masks").glob("seed-0-*")):
        assert (tmp_path / "ticket/masks" / path.name).read_bytes() == path.read_bytes()
    # Everything is known now: nothing is trained a third time.
    events: list[Any] = []
    lottery(model, tmp_path / "ticket", settings, on_event=events.append)
    assert not any("fine-tuning" in str(one) for one in events)
    # A mask that is gone is made again, and is the same.
    gone = tmp_path / "ticket/masks/seed-0-round-01.safetensors"
    gone.unlink()
    lottery(model, tmp_path / "ticket", settings)
    assert gone.read_bytes() == (folder / "masks" / gone.name).read_bytes()


def test_the_folder_of_another_search_is_left_alone(
    model: Path, data: Path, found: tuple[Path, LotteryResult], tmp_path: Path
) -> None:
    folder = shutil.copytree(found[0], tmp_path / "ticket")
    before = {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    for other in (
        settings_of(data, rounds=3), settings_of(data, sparsity=0.5),
        settings_of(data, exclude=("re:query",)),
    ):  # fmt: skip
        with pytest.raises(OtherLottery, match="another model, other data or other settings"):
            lottery(model, folder, other)
    assert {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()} == before
    (folder / "lottery.json").write_text("{")
    with pytest.raises(OtherLottery, match=r"holds scores, but no lottery.json that can be read"):
        lottery(model, folder, settings_of(data))


def test_folders_of_something_else(
    model: Path, data: Path, found: tuple[Path, LotteryResult], tmp_path: Path
) -> None:
    """The model's own, one with other files in it, and one that another search works in."""
    copy = shutil.copytree(model, tmp_path / "model")
    (tmp_path / "set/masks").mkdir(parents=True)
    (tmp_path / "set/images").mkdir()
    before = reference.contents(tmp_path)
    for folder, why in (
        (copy, "lies in the model's folder"), (copy / "new/er", "lies in the model's folder"),
        (tmp_path / "set", "is not empty, and no lottery's folder"),
    ):  # fmt: skip
        with pytest.raises(OutputConflict, match=why):
            lottery(copy, folder, settings_of(data))
    assert reference.contents(tmp_path) == before
    ticket = shutil.copytree(found[0], tmp_path / "ticket")

    def second(result: LotteryResult) -> None:
        with pytest.raises(OutputConflict, match="another prunectl is working in it now"):
            lottery(model, ticket, settings_of(data))

    for _ in range(2):  # the lock is gone with the search that held it
        lottery(model, ticket, settings_of(data, seeds=(0, 3)), on_result=second)


@pytest.mark.full
def test_a_mask_that_was_spoilt_or_put_there_is_made_again(
    model: Path, data: Path, found: tuple[Path, LotteryResult], tmp_path: Path
) -> None:
    """Never scored as the ticket: of another sparsity, of the same one, cut off, bits flipped."""
    folder = shutil.copytree(found[0], tmp_path / "ticket")
    first, second = (folder / f"masks/seed-0-round-0{n}.safetensors" for n in (1, 2))
    whole = first.read_bytes()
    numbers = [[one.ticket.seeds, one.overlaps] for one in found[1].rounds]

    def spoil(path: Path, content: bytes) -> list[str]:
        path.write_bytes(content)
        events: list[Any] = []
        again = lottery(model, folder, settings_of(data, seeds=(0, 3)), on_event=events.append)
        assert [[one.ticket.seeds, one.overlaps] for one in again.rounds] == numbers
        assert first.read_bytes() == whole
        return [one.text for one in events if isinstance(one, Note) and "made again" in one.text]

    for sparsity in (0.9, found[1].planned[0]):  # a ticket's own sparsity is not enough
        prune(model, tmp_path / f"p{sparsity}", PruneSettings(sparsity=sparsity))
        export_masks(open_checkpoint(tmp_path / f"p{sparsity}"), tmp_path / "m", force=True)
        assert len(spoil(first, (tmp_path / "m").read_bytes())) == 1
    assert len(spoil(first, whole[:200])) == 1
    assert len(spoil(second, second.read_bytes()[:-1] + b"\x00")) == 1
    # Without a record, as after a crash, the count decides.
    (folder / "masks.json").write_text("[")
    assert spoil(first, whole) == []
    (folder / "masks.json").unlink()
    assert len(spoil(first, second.read_bytes())) == 1


def test_a_model_with_zeros_is_pruned_further(model: Path, data: Path, tmp_path: Path) -> None:
    """The mask beside the ticket's is that of one-shot pruning, not the model's own zeros."""
    prune(model, tmp_path / "pruned", PruneSettings(sparsity=0.2))
    for file in model.glob("token*"):
        shutil.copy(file, tmp_path / "pruned")
    evaluation = EvalSettings(
        metric="classification", data=(str(data),), training=Training(epochs=1)
    )
    settings = LotterySettings(evaluation, sparsity=0.5, rounds=1)
    (one,) = lottery(tmp_path / "pruned", tmp_path / "ticket", settings).rounds
    overlap, count = one.overlaps["0"], reference.count(0.5, one.overlaps["0"].weights)
    assert [overlap.first, overlap.second] == [count, count]
    masks = bits_of(tmp_path / "ticket" / one.masks["0"])
    shot = reference.together(reference.stored(model), masks, 0.5)
    assert overlap.both == sum(
        int((gone & (shot[name] == 0).numpy().reshape(-1)).sum()) for name, gone in masks.items()
    )


# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_exact_with_ties(model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Of coarse numbers nearly all are ties: the count is exact, and the first ones go."""
    torch.manual_seed(0)
    tensors = {
        "b": (torch.randn(40, 30) * 4).round().to(dtype) / 4,
        "a": (torch.randn(50, 7) * 4).round().to(dtype) / 4,
    }
    checkpoint = open_checkpoint(model)
    for sparsity in (0.001, 0.3, 0.5, 0.99):
        zeros = write_mask(tmp_path / "m.safetensors", tensors, sparsity, checkpoint)
        expected = reference.together(tensors, tensors, sparsity)
        masks = bits_of(tmp_path / "m.safetensors")
        for name, one in expected.items():
            gone = (one == 0).numpy().reshape(-1)
            assert (masks[name] == gone).all()
            assert zeros[name] == int(gone.sum())
    tensors["a"][0, 0] = math.nan
    with pytest.raises(NaNWeights, match="NaN"):
        write_mask(tmp_path / "m.safetensors", tensors, 0.5, checkpoint)


# --- schedules --------------------------------------------------------------------------------


@given(st.floats(0.01, 0.95), st.integers(1, 30))
def test_rounds_prune_the_same_share_of_what_is_left(sparsity: float, rounds: int) -> None:
    steps = schedule(sparsity, rounds, None)
    assert len(steps) <= rounds
    assert steps[-1] == sparsity
    left = [1.0, *(1 - one for one in steps)]
    shares = [1 - after / before for before, after in pairwise(left)]
    if len(steps) == rounds:
        assert max(shares) - min(shares) < 1e-3


def test_schedules_by_hand() -> None:
    assert schedule(0.5, None, 0.2) == (0.2, 0.36, 0.488, 0.5)
    assert schedule(0.36, None, 0.2) == (0.2, 0.36)
    assert schedule(0.75, 2, None) == (0.5, 0.75)
    assert schedule(0.5, 1, None) == (0.5,)
    assert schedule(0.1, None, None) == (0.1,)
    assert len(schedule(0.5, None, None)) == 7  # 0.9**7 < 0.5
    assert schedule(0.5, 5, 0.5) == (0.5,)
    assert schedule(1e-8, 3, None) == (1e-8,)  # no rounds to 0
    assert schedule(3e-6, 6, None) == (1e-6, 2e-6, 3e-6)  # and none twice
    with pytest.raises(NoSchedule, match=r"2 rounds at a rate of 0.1 reach 0.19, not 0.5"):
        schedule(0.5, 2, 0.1)
    for rounds, rate in ((0, None), (101, None), (None, 0.0), (None, 1.0), (None, 1e-6)):
        with pytest.raises(NoSchedule):
            schedule(0.5, rounds, rate)


# --- bad input, and the command ---------------------------------------------------------------


def test_settings_that_have_no_meaning(data: Path) -> None:
    with pytest.raises(InvalidOption, match="does not train"):
        LotterySettings(EvalSettings(metric="perplexity"))
    with pytest.raises(InvalidOption, match="does not train"):
        LotterySettings(EvalSettings(metric="classification", training=Training(epochs=0)))
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(InvalidSparsity):
            settings_of(data, sparsity=bad)
    for seed in (-1, 2**32):  # numpy draws from none of these
        with pytest.raises(InvalidOption, match="--seeds"):
            settings_of(data, seeds=(seed,))


@pytest.mark.parametrize(("gain", "told"), [(0.1, "is better by"), (-0.1, "1 training is lost")])
def test_one_seed_is_said_to_be_one(
    found: tuple[Path, LotteryResult], gain: float, told: str
) -> None:
    """The interval over samples does not hold what another training would change."""
    for seeds in ({"0": 0.5}, {"0": 0.5, "1": 0.5}):
        scored = Scored(0.5, 0.4, 0.6, dict(seeds), 1.0)
        last = Round(1, 0.4, scored, scored, gain, gain - 0.01, gain + 0.01, {}, {})
        result = replace(found[1], rounds=(last,), trainings=1, majority=None)
        assert told in verdict(result)
        assert ("what another seed would change" in verdict(result)) == (len(seeds) == 1)


@pytest.mark.full
def test_a_training_that_fails_ends_the_search(model: Path, data: Path, tmp_path: Path) -> None:
    """The learning rate explodes: what is known is kept, and said."""
    wild = Training(epochs=1, learning_rate=1e30, train_batch_size=8, max_grad_norm=0)
    evaluation = EvalSettings(metric="classification", data=(str(data),), training=wild)
    found = lottery(model, tmp_path / "t", LotterySettings(evaluation, sparsity=0.5, rounds=2))
    assert found.dense.score is None
    assert found.dense.failed
    assert found.rounds == ()


def test_the_command(
    model: Path, data: Path, typed: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    options = ("--data", data, "--epochs", "1", "-s", "0.4", "--rounds", "1", "-o", "ticket")
    code, out, err = typed("lottery", model, *options)
    assert code == 0
    assert "Each round's ticket, and one-shot pruning" in out
    assert "round 1 of 1, 40.0%" in err
    code, out, _ = typed("lottery", model, *options, "--json", "-q")
    document = json.loads(out)
    assert (code, document["schema"]) == (0, "prunectl.lottery/1")
    assert document["rounds"][0]["overlaps"]["0"]["weights"] == document["weights"]
    code, _, _ = typed("prune", model, "--mask", "ticket/masks/seed-0-round-01.safetensors",
                       "-o", "out")  # fmt: skip
    assert code == 0
    assert (tmp_path / "out/prunectl.json").exists()
    code, out, err = typed("lottery", model, *options[:-4], "--rounds", "2", "-o", "ticket")
    assert (code, out) == (2, "")
    assert "another model, other data or other settings" in err
    code, out, err = typed("lottery", model, "--metric", "perplexity", "-o", "t")
    assert (code, out) == (2, "")
    assert "does not train" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        code, out, err = typed("lottery", model, *options[:-1], "t")
    assert (code, out) == (2, "")
    assert "a lottery runs in one process" in err
    (tmp_path / "file").write_text("")
    code, out, err = typed("lottery", model, *options[:-1], "file")
    assert code != 0
    assert out == ""
