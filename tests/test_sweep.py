"""A sweep from end to end on a tiny model and its own text: curves, resuming, failures, files."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import own_words
import pytest
import tiny_models
import tiny_tokenizers
import torch
from full import few

from prunectl.cli.output import Output
from prunectl.errors import CannotWrite, InvalidOption, NothingPrunable
from prunectl.evaluation.errors import MetricMismatch
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate
from prunectl.events import Event, Note, PhaseStarted
from prunectl.exporting.verb import export
from prunectl.plan.settings import Calibration, Method, PruneSettings
from prunectl.pruning.verb import prune
from prunectl.report.sweep_page import sweep_page
from prunectl.studies.sweep.result import Status, SweepResult
from prunectl.studies.sweep.settings import SweepSettings, Tolerance
from prunectl.studies.sweep.verb import sweep

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "docs" / "sweep.schema.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.usefixtures("one_thread")

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and beside it ``speaker.txt``."""
    folder = tmp_path_factory.mktemp("own") / "speaker"
    own_words.build(folder, windows=40)
    return folder


def settings_for(folder: Path, **options: Any) -> SweepSettings:
    data = (f"text:{folder.with_suffix('.txt')}",)
    given: dict[str, Any] = {"tolerance": Tolerance(0.05), "step": 0.02} | options
    return SweepSettings(EvalSettings(data=data, batch_size=20), **given)


class Listener:
    """Counts what is scored, and interrupts at an event."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.events: list[Event] = []
        self._at = interrupt_at

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self._at is not None and len(self.events) == self._at:
            raise KeyboardInterrupt

    @property
    def scored(self) -> int:
        return sum(isinstance(one, PhaseStarted) and one.phase == "perplexity"
                   for one in self.events)  # fmt: skip

    @property
    def warnings(self) -> list[str]:
        return [one.text for one in self.events if isinstance(one, Note) and one.warning]


def told(result: SweepResult) -> dict[str, Any]:
    """All of a result but what differs from run to run."""
    document = result.to_json()
    for curve in document["curves"]:
        for point in curve["points"]:
            del point["seconds"]
    return {key: value for key, value in document.items() if key not in ("seconds", "machine")}


def check_document(document: dict[str, Any]) -> None:
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    json.dumps(document, allow_nan=False)
    for curve in document["curves"]:
        places = [point["requested"] for point in curve["points"]]
        assert places[0] == 0
        assert places == sorted(set(places))
        achieved = [point["sparsity"] for point in curve["points"]]
        assert achieved == sorted(achieved)
        assert curve["dense"] == {key: curve["points"][0][key] for key in ("score", "low", "high")}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


# --- the curve ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(speaker: Path) -> SweepResult:
    """A whole search, with nothing kept."""
    return sweep(speaker, settings_for(speaker), use_cache=False)


def test_a_search_finds_where_the_score_turns(speaker: Path, whole: SweepResult) -> None:
    check_document(whole.to_json())
    (curve,) = whole.curves
    assert whole.models[0].dtype == "float32"  # what auto means here
    dense = evaluate(speaker, settings_for(speaker).evaluation)
    assert curve.dense.score == dense.score
    assert dense.interval is not None
    assert (curve.dense.low, curve.dense.high) == (dense.interval.low, dense.interval.high)
    assert curve.bound == pytest.approx(1.05 * dense.score)
    places = [point.requested for point in curve.points]
    assert set(places) > {0, *(i / 10 for i in range(1, 10))}
    within = [p for p in curve.points if p.score is not None and p.score <= 1.05 * dense.score]
    assert curve.essential.sparsity == within[-1].sparsity
    after = curve.points[curve.points.index(within[-1]) + 1]
    assert curve.essential.beyond == after.sparsity
    assert after.requested - within[-1].requested == pytest.approx(0.02)
    assert curve.essential.low is not None
    assert curve.essential.low <= within[-1].sparsity
    for point in curve.points[1:]:
        assert point.score is not None
        assert point.change == pytest.approx((point.score - dense.score) / dense.score)
        assert point.sparsity == pytest.approx(point.requested, abs=1e-3)
        assert point.seeds == {"0": point.score}
    assert curve.command == (f"prunectl prune {speaker} --sparsity {within[-1].requested} -o out/")


def test_its_points_are_those_of_pruned_folders(
    speaker: Path, whole: SweepResult, tmp_path: Path
) -> None:
    (curve,) = whole.curves
    for at in (3, -2):
        point = curve.points[at]
        out = tmp_path / f"out{at}"
        prune(speaker, out, PruneSettings(sparsity=point.requested))
        found = evaluate(out, settings_for(speaker).evaluation)
        assert found.score == point.score
        assert found.sparsity == point.sparsity


def test_patterns_and_models_are_curves_of_one_result(speaker: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    own_words.build(other, windows=40, seed=1)
    seen: list[SweepResult] = []
    settings = settings_for(speaker, sparsity="0.1:0.9:0.2", patterns=("unstructured", "2:4"))
    result = sweep([speaker, other], settings, use_cache=False, on_result=seen.append)
    check_document(result.to_json())
    assert [(one.model, one.pattern) for one in result.curves] == [
        (str(model), pattern) for model in (speaker, other) for pattern in ("unstructured", "2:4")
    ]
    assert [[p.requested for p in one.points] for one in result.curves] == [
        [0, 0.1, 0.3, 0.5, 0.7, 0.9], [0, 0.1, 0.3, 0.5]
    ] * 2  # fmt: skip
    # The dense score is one, of all patterns; nothing else is.
    first, second, third, _ = result.curves
    assert first.dense.score == second.dense.score != third.dense.score
    assert first.points[2].score != second.points[2].score
    # What is told after each point grows by that point.
    assert [sum(len(curve.points) for curve in one.curves) for one in seen] == list(range(1, 21))
    assert len(seen[-1].curves) == 4
    for model, record in zip((speaker, other), result.models, strict=True):
        assert record.model == str(model)
        assert record.prunable < record.parameters


def test_a_budget_of_whole_matrices_is_said_as_it_is(speaker: Path) -> None:
    result = sweep(speaker, settings_for(speaker, patterns=("2:4",)), use_cache=False)
    check_document(result.to_json())
    (curve,) = result.curves
    last = curve.points[-1]
    assert (last.requested, last.sparsity) == (0.5, 0.5)
    assert all(abs(one.sparsity - one.requested) < 0.2 for one in curve.points)


def test_seeds_are_those_of_calibration(speaker: Path) -> None:
    data = f"text:{speaker.with_suffix('.txt')}"
    calibrated = PruneSettings(
        sparsity=0.5,
        method=Method.WANDA,
        calibration=Calibration((data,), samples=2, sequence_length=8),
    )
    listener = Listener()
    settings = settings_for(speaker, pruning=calibrated, seeds=(3, 5), sparsity="0.5,0.7")
    result = sweep(speaker, settings, use_cache=False, on_event=listener)
    check_document(result.to_json())
    (curve,) = result.curves
    assert curve.method == "wanda"
    assert listener.scored == 1 + 2 * 2  # the dense model once
    for point in curve.points[1:]:
        assert set(point.seeds) == {"3", "5"}
        values = [value for value in point.seeds.values() if value is not None]
        assert values[0] != values[1]
        assert point.score == pytest.approx(sum(values) / 2)
    assert curve.points[0].seeds == {"3": curve.dense.score, "5": curve.dense.score}
    # Without calibration one seed is as good as all.
    plain = sweep(speaker, settings_for(speaker, seeds=(3, 5), sparsity="0.5"), use_cache=False)
    assert set(plain.curves[0].points[1].seeds) == {"3"}


def test_a_compressed_folder_is_swept_as_the_dense_one(speaker: Path, tmp_path: Path) -> None:
    prune(speaker, tmp_path / "pruned", PruneSettings(sparsity=0.3))
    export(tmp_path / "pruned", tmp_path / "packed", layout="packed")
    settings = settings_for(speaker, sparsity="0.2,0.4")
    curves = [
        sweep(tmp_path / name, settings, use_cache=False).curves[0] for name in ("pruned", "packed")
    ]
    assert [p.score for p in curves[0].points] == [p.score for p in curves[1].points]
    # Zeros that were there stay: a lower sparsity cannot be had.
    places = [p.sparsity for p in curves[0].points]
    assert places == [pytest.approx(one, abs=1e-3) for one in (0.3, 0.3, 0.4)]
    low = sweep(tmp_path / "pruned", replace(settings, sparsity="0.1,0.2"), use_cache=False)
    command = f"prunectl prune {tmp_path / 'pruned'} --sparsity 0.2 -o out/"
    assert low.curves[0].command == command


def test_layers_that_the_config_leaves_out_are_warned_of_once(
    speaker: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(speaker, folder)
    config = json.loads((folder / "config.json").read_bytes())
    layers = config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers - 1}))
    settings = settings_for(speaker, sparsity="0.2")
    listener, other = Listener(), Listener()
    sweep(folder, settings, use_cache=False, on_event=listener)
    evaluate(folder, settings.evaluation, on_event=other)
    for events in (listener.events, other.events):
        said = [one.text for one in events if isinstance(one, Note) and one.warning]
        assert len(said) == 1
        assert said[0].startswith("7 prunable matrices are not in the model")
        assert f" model.layers.{layers - 1}." in said[0]


@pytest.mark.parametrize("packed", [False, True])
def test_the_command_of_a_compressed_folder_that_is_worked_in_runs(
    typed: Typed, speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    settings = replace(settings_for(speaker, sparsity="0.3"), tolerance=Tolerance(epsilon=9.0))
    folder = tmp_path / "model"
    if packed:
        export(speaker, folder, layout="packed")
    else:
        shutil.copytree(speaker, folder)
    monkeypatch.chdir(folder)
    curve = sweep(".", settings, use_cache=False).curves[0]
    assert curve.command is not None
    for command in curve.command.split(" && "):
        code, _, err = typed(*shlex.split(command)[1:])
        assert code == 0, err
    assert {one.name for one in tmp_path.iterdir()} >= {"model", "out"}
    assert evaluate(tmp_path / "out", settings.evaluation).score == curve.points[1].score


# --- going on -------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", few([1, 2, 7, 12, 25, 40, 61], 25))
def test_an_interrupted_sweep_goes_on(
    speaker: Path, whole: SweepResult, tmp_path: Path, moment: int
) -> None:
    path = tmp_path / "points.jsonl"
    first, second, third = Listener(moment), Listener(), Listener()
    settings = settings_for(speaker)
    partial = None
    try:
        partial = sweep(speaker, settings, results=path, on_event=first)
    except KeyboardInterrupt:
        assert not path.exists() or not path.read_bytes()
    kept = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    if partial is not None:
        assert partial.interrupted
        check_document(partial.to_json())
        assert sum(len(curve.points) for curve in partial.curves) == kept > 0
        assert sweep_page(partial.to_json()).startswith("<!")
    result = sweep(speaker, settings, results=path, on_event=second)
    assert told(result) == told(whole)
    total = len(result.curves[0].points)
    assert second.scored == total - kept
    assert len(path.read_text(encoding="utf-8").splitlines()) == total
    assert told(sweep(speaker, settings, results=path, on_event=third)) == told(whole)
    assert third.scored == 0


def test_a_finer_search_and_another_pattern_use_what_is_known(
    speaker: Path, tmp_path: Path
) -> None:
    path = tmp_path / "points.jsonl"
    listener = Listener()
    sweep(speaker, settings_for(speaker, sparsity="0:0.9:0.1"), results=path)
    sweep(speaker, settings_for(speaker), results=path, on_event=listener)
    assert 0 < listener.scored <= 3
    listener = Listener()
    settings = settings_for(speaker, sparsity="0.3", patterns=("2:4",), tolerance=Tolerance(0.5))
    sweep(speaker, settings, results=path, on_event=listener)
    assert listener.scored == 1


def test_points_of_something_else_are_not_taken(speaker: Path, tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    base = settings_for(speaker, sparsity="0.3,0.5")
    sweep(speaker, base, results=path)

    def measured(folder: Path, settings: SweepSettings) -> int:
        listener = Listener()
        sweep(folder, settings, results=path, on_event=listener)
        return listener.scored

    assert measured(speaker, base) == 0
    other = tmp_path / "other"
    shutil.copytree(speaker, other)
    assert measured(other, base) == 3  # another place may hold other weights
    for changes in ({"stride": 10}, {"samples": 9}, {"dtype": "float64"}, {"sequence_length": 9}):
        again = replace(base, evaluation=replace(base.evaluation, **changes))  # type: ignore[arg-type]
        assert measured(speaker, again) == 3, changes
    for pruning in (PruneSettings(sparsity=0.5, scope="row"),  # type: ignore[arg-type]
                    PruneSettings(sparsity=0.5, exclude=("*.q_proj.*",))):  # fmt: skip
        assert measured(speaker, replace(base, pruning=pruning)) == 2
    assert measured(other, base) == 0
    for name in ("sentencepiece.bpe.model", "own.py"):
        (other / name).write_text("# another", encoding="utf-8")
        assert measured(other, base) == 3, name
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}), encoding="utf-8")
    assert measured(other, base) == 3


def test_points_of_other_calibration_data_are_not_taken(speaker: Path, tmp_path: Path) -> None:
    """Whatever the file is called: what is in it decides."""
    text = tmp_path / "calibration.txt"
    words = speaker.with_suffix(".txt").read_text(encoding="utf-8").split()
    calibration = Calibration((f"text:{text}",), samples=2, sequence_length=8)
    pruning = PruneSettings(sparsity=0.5, method=Method.WANDA, calibration=calibration)
    settings = settings_for(speaker, pruning=pruning, sparsity="0.5")

    def measured(part: slice) -> int:
        text.write_text(" ".join(words[part]), encoding="utf-8")
        listener = Listener()
        sweep(speaker, settings, results=tmp_path / "points.jsonl", on_event=listener)
        return listener.scored

    assert measured(slice(0, 40)) == 2
    assert measured(slice(0, 40)) == 0
    assert measured(slice(40, 80)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"values": [[1.0, 2.0]] * 40},
        {"values": [[1.0, 2.0]]},
        {"values": [[1.0]] * 40},
        {"values": [[0.0, 0.0]] * 40},
        {"score": 1.0},
    ],
)
def test_a_kept_point_that_contradicts_itself_is_measured_again(
    speaker: Path, tmp_path: Path, damage: dict[str, Any]
) -> None:
    path = tmp_path / "points.jsonl"
    settings = settings_for(speaker, sparsity="0.3")
    first = sweep(speaker, settings, results=path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[1] |= damage
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    listener = Listener()
    assert told(sweep(speaker, settings, results=path, on_event=listener)) == told(first)
    assert listener.scored == 1


def test_the_cache_is_used_and_may_fail(
    speaker: Path, isolated_user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(speaker, sparsity="0.3")

    def measured(*, use_cache: bool = True) -> Listener:
        listener = Listener()
        sweep(speaker, settings, use_cache=use_cache, on_event=listener)
        return listener

    assert measured().scored == 2
    assert measured().scored == 0
    assert len(list((isolated_user / "prunectl").glob("sweep-*.jsonl"))) == 1
    assert measured(use_cache=False).scored == 2
    blocked = isolated_user / "blocked"
    blocked.touch()
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(blocked))
    settings = settings_for(speaker, sparsity="0.3,0.5", patterns=("unstructured", "2:4"))
    found = measured()
    assert found.scored == 1 + 2 + 2
    phases = [one.phase for one in found.events if isinstance(one, PhaseStarted)]
    # Weights are read for histograms once, and once more for the losses of the pattern's groups.
    assert phases.count("measuring weights") == 2
    assert any(text.startswith("points are not cached: ") for text in found.warnings)


def test_a_cache_that_goes_away_costs_nothing(speaker: Path, isolated_user: Path) -> None:
    class Vandal(Listener):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if event == PhaseStarted("perplexity", 40, "windows"):
                shutil.rmtree(isolated_user / "prunectl", ignore_errors=True)

    listener = Vandal()
    result = sweep(speaker, settings_for(speaker, sparsity="0.3,0.5"), on_event=listener)
    assert len(result.curves[0].points) == 3
    assert len([text for text in listener.warnings if "points are not cached" in text]) == 1


def test_results_that_cannot_be_written_end_it_at_once(speaker: Path, tmp_path: Path) -> None:
    listener = Listener()
    with pytest.raises(CannotWrite):
        sweep(speaker, settings_for(speaker), results=tmp_path, on_event=listener)
    assert listener.scored == 0


# --- what fails -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brittle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without its first head's queries, which go first, its norm divides 0 by 0."""
    folder = tmp_path_factory.mktemp("brittle") / "brittle"
    model: Any = tiny_models.make("qwen3")
    model.config.rms_norm_eps = 0.0
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[:6] *= 1e-6
    model.save_pretrained(folder)
    tiny_tokenizers.save(folder, bert=False)
    text = " ".join(tiny_tokenizers.WORDS * 4)
    folder.with_suffix(".txt").write_text(text, encoding="utf-8")
    return folder


def test_a_point_whose_loss_is_no_number_leaves_the_others(brittle: Path, tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    listener = Listener()
    settings = settings_for(brittle, sparsity="0.001,0.1,0.5", patterns=("unstructured", "2:4"))
    result = sweep(brittle, settings, results=path, on_event=listener)
    document = result.to_json()
    check_document(document)
    assert sweep_page(document).startswith("<!")
    broken, fine = result.curves
    assert [bool(point.failed) for point in broken.points] == [False, False, True, True]
    assert broken.points[2].failed == "perplexity: the loss of 10 windows is NaN"
    assert broken.points[2].seeds == {"0": None}
    assert broken.essential.text.endswith("Not measured: 0.1, 0.5.")
    assert [bool(point.failed) for point in fine.points] == [False] * 4  # the model is loaded anew
    assert f"{brittle}, sparsity 0.1: perplexity: the loss of 10 windows is NaN; this point is " \
        "left out" in listener.warnings  # fmt: skip
    # What failed is no point that is kept: it may do another time.
    again = Listener()
    assert told(sweep(brittle, settings, results=path, on_event=again)) == told(result)
    assert again.scored == 2


def test_a_dense_model_without_a_score_has_no_curve(brittle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "brittle"
    shutil.copytree(brittle, folder)
    shutil.copy(brittle.with_suffix(".txt"), folder.with_suffix(".txt"))
    model: Any = tiny_models.make("qwen3")
    model.config.rms_norm_eps = 0.0
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[:6] = 0
    model.save_pretrained(folder)
    result = sweep(folder, settings_for(folder), use_cache=False)
    check_document(result.to_json())
    (curve,) = result.curves
    assert len(curve.points) == 1
    assert curve.essential.status is Status.FAILED
    assert sweep_page(result.to_json()).startswith("<!")


def test_what_does_not_fit_is_said_before_anything_is_measured(
    speaker: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    def refused(kind: type[Exception], words: str, models: Any, **options: Any) -> None:
        listener = Listener()
        with pytest.raises(kind, match=words):
            sweep(models, settings_for(speaker, **options), use_cache=False, on_event=listener)
        assert not listener.scored

    refused(MetricMismatch, "does not fit", [speaker, tiny("bert")])
    refused(InvalidOption, "matches no tensor", speaker,
            pruning=PruneSettings(sparsity=0.5, include=("nothing",)))  # fmt: skip
    refused(NothingPrunable, "nothing to prune", speaker,
            pruning=PruneSettings(sparsity=0.5, exclude=("*",)))  # fmt: skip
    refused(NothingPrunable, "7", speaker, patterns=("unstructured", "6:7"))


# --- the command ----------------------------------------------------------------------------


def words(speaker: Path, *more: str | Path) -> list[str | Path]:
    return ["sweep", speaker, "--data", f"text:{speaker.with_suffix('.txt')}", "-s", "0.1,0.5",
            "--epsilon", "0.05", *more]  # fmt: skip


def test_the_command_saves_what_it_prints(typed: Typed, speaker: Path, tmp_path: Path) -> None:
    files = ["-o", "a.json", "--csv", "a.csv", "--html", "a.html", "--svg", "a.svg"]
    code, out, err = typed(*words(speaker, "--json", "-p", "unstructured,2:4", *files))
    assert code == 0, err
    document = json.loads(out, parse_constant=pytest.fail)
    check_document(document)
    assert document == json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert document["command"].startswith(f"prunectl sweep {speaker} --data text:")
    assert document["settings"]["sparsity"] == "0.1,0.5"
    assert document["settings"]["epsilon"] == 0.05
    assert document["metric"]["samples"] == 40
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    points = [point for curve in document["curves"] for point in curve["points"]]
    assert [float(row["score"]) for row in rows] == [point["score"] for point in points]
    assert [float(row["requested"]) for row in rows] == [0, 0.1, 0.5] * 2
    assert "essential" in (tmp_path / "a.html").read_text(encoding="utf-8").lower()
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()[:500]
    assert err.splitlines()[-4:] == [f"saved: {name}" for name in files[1::2]]


def test_the_screen_ends_with_the_command_to_run(typed: Typed, speaker: Path) -> None:
    code, out, err = typed(*words(speaker))
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "speaker, unstructured" in lines
    assert f"prunectl prune {speaker} --sparsity 0.1 -o out/" in lines
    assert any(line.startswith("dense 0.0% ") for line in lines)
    assert any(line.startswith("50.0% ") for line in lines)
    assert "perplexity over sparsity" in out
    # Each point is told when it is known.
    noted = [line for line in err.splitlines() if line.startswith("speaker, unstructured, ")]
    assert [line.split(", ")[2].split(":")[0] for line in noted] == ["dense", "10.0%", "50.0%"]
    assert typed(*words(speaker, "-q")) == (0, "", "")
    code, out, _ = typed(*words(speaker, "-v"))
    assert "blake3" in out


def test_a_model_named_twice_is_one(typed: Typed, speaker: Path) -> None:
    code, out, _ = typed("sweep", speaker, *words(speaker, "--json")[1:])
    assert code == 0
    assert len(json.loads(out)["curves"]) == 1


def test_a_sweep_that_measured_nothing_has_failed(
    typed: Typed, brittle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(brittle, folder)
    model: Any = tiny_models.make("qwen3")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(folder)
    text = f"text:{brittle.with_suffix('.txt')}"
    code, out, err = typed("sweep", folder, "--data", text, "--json")
    assert code == 1
    assert json.loads(out)["curves"][0]["essential"]["status"] == "failed"
    assert "dense: perplexity: the loss of 10 windows is NaN; this point is left out" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "code", "error", "hint"),
    [
        ("-s half", 2, "--sparsity half: 'half' is no number", "auto, START:STOP:STEP"),
        ("-s 40", 2, "each is 0 or more, and below 1", ""),
        ("-s 0.9:0.1:0.1", 2, "is no range", ""),
        ("-s 0:0.9:1e-999999", 2, "is no range", ""),
        ("-s 0:0.9:0.0001", 2, "more than 1,000 points", ""),
        ("-s auto --step 0", 2, "--step 0 is not valid", ""),
        ("-s auto --step nan", 2, "--step nan is not valid", ""),
        ("--step half", 2, "invalid value for '--step'", "prunectl sweep --help"),
        ("--epsilon 0", 2, "--epsilon 0.0 is not valid", ""),
        ("--epsilon -1", 2, "--epsilon -1.0 is not valid", ""),
        ("--epsilon nan", 2, "--epsilon nan is not valid", ""),
        ("--epsilon-mode some", 2, "invalid value for '--epsilon-mode'", ""),
        ("--seeds one", 2, "--seeds 'one' is not valid", "0,1,2"),
        ("--seeds ,", 2, "--seeds ',' is not valid", ""),
        ("--seeds -1", 2, "--seeds: one or more whole numbers", ""),
        ("--seeds 99999999999999999999", 2, "--seeds: one or more whole numbers", ""),
        ("-p 4:2", 2, "did you mean 2:4?", ""),
        ("-p ,", 2, "pattern '' is not valid", ""),
        ("-p 2:4 -s 0.6", 2, "no point that pattern 2:4 can reach", "it ends at 0.5"),
        ("-p 2:4 --scope row", 2, "scope 'row' has no meaning", ""),
        ("-p 6:7", 2, "nothing to prune", ""),
        ("--method wanda", 2, "needs calibration samples", ""),
        ("--calibration text:TEXT", 2, "--calibration is for calibration", ""),
        ("--calibration-samples 5", 2, "--calibration-samples is for calibration", "--method"),
        ("--calibration-length 5", 2, "--calibration-length is for calibration", "--method"),
        ("-s 0.2 --step 0.5", 2, "--step is for --sparsity auto", "0:0.9:0.5"),
        ("--include nothing", 2, "'nothing' matches no tensor", ""),
        ("--exclude *", 2, "nothing to prune", ""),
        ("--metric guess", 2, "--metric 'guess' is not known", ""),
        ("--samples 1", 2, "--samples 1 is not valid", ""),
        ("--device tpu", 2, "--device 'tpu' is not known", ""),
        ("--dtype int4", 2, "dtype 'int4' is not known", ""),
        ("--jobs 0", 2, "invalid value for '--jobs'", ""),
        ("--calibration-samples 0", 2, "invalid value for '--calibration-samples'", ""),
        ("--html no/such.html", 1, "there is no folder no", ""),
        ("--png .", 1, "it is a folder", ""),
        ("-o a --csv ./a", 2, "is given for two files", ""),
        ("-o a --results a", 2, "is given for two files", ""),
        ("--results .", 1, "cannot write", ""),
        ("--results /dev/zero", 1, "it is no regular file", ""),
        ("--results /proc/no/such", 1, "cannot write", ""),
        ("--revision main other", 2, "--revision is for one model", ""),
        ("", 2, "MODEL is empty", ""),
    ],
)  # fmt: skip
def test_every_error_is_two_lines_at_most(
    typed: Typed, speaker: Path, argv: str, code: int, error: str, hint: str
) -> None:
    text = speaker.with_suffix(".txt")
    more = [one.replace("TEXT", str(text)) for one in argv.split()]
    model = str(speaker) if argv else ""
    found, out, err = typed("sweep", model, "--data", f"text:{text}", *more)
    assert (found, out) == (code, ""), err
    lines = err.splitlines()
    assert 1 <= len(lines) <= 2, err
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert hint in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_what_cannot_be_saved_is_shown_all_the_same(typed: Typed, speaker: Path) -> None:
    code, out, err = typed(*words(speaker, "--json", "--csv", "/dev/full"))
    assert code == 1
    assert len(json.loads(out)["curves"][0]["points"]) == 3
    assert f"error: /dev/full: cannot write: {os.strerror(28)}" in err.splitlines()


@pytest.mark.parametrize("results", [["--results", "points.jsonl"], ["--no-cache"]])
def test_ctrl_c_says_that_the_same_command_goes_on(
    typed: Typed, speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    results: list[str],
) -> None:  # fmt: skip
    note = Output.note

    def stop(self: Output, text: str) -> None:
        note(self, text)
        if ", 0.2%:" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(Output, "note", stop)
    argv = words(speaker, "-o", "a.json", *results)
    argv[argv.index("0.1,0.5")] = "0.001:0.5:0.001"
    code, out, err = typed(*argv)
    assert code == 130
    lines = err.splitlines()
    assert lines[-1] == "interrupted"
    kept = "warning: the measurements are kept: the same command continues from there"
    assert (kept in lines) == ("--no-cache" not in results)
    assert "Interrupted: these are the points so far." in out
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    check_document(document)
    assert document["interrupted"] is True
    points = document["curves"][0]["points"]
    assert len(points) == 3
    if "--results" in results:
        lines = (tmp_path / "points.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(points)
