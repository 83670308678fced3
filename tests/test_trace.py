"""``trace``: numbers of each checkpoint, their order, abrupt changes and trends."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import reference
import tiny_models
import torch
from full import few
from hypothesis import given
from hypothesis import strategies as st

from prunectl import NM, PruneSettings, TraceSettings, open_checkpoint, prune, trace
from prunectl.errors import InvalidSparsity, MissingLibrary, NaNWeights
from prunectl.events import Event, Note
from prunectl.studies.errors import DifferentCheckpoints, SameStep, TooFewCheckpoints
from prunectl.studies.trace.result import LEAST, abrupt, trend
from prunectl.studies.trace.steps import course, expanded, step_of

if TYPE_CHECKING:
    from hubserver import Hub, Worker


def run(folder: Path, steps: Sequence[int], scale: Callable[[int], float]) -> Path:
    """A training's output: each checkpoint has a share of its weights made a thousandth."""
    tiny_models.build("llama", folder / "first")
    tensors = reference.stored(folder / "first")
    config = (folder / "first/config.json").read_bytes()
    for step in steps:
        torch.manual_seed(0)
        changed = {
            name: torch.where(torch.rand(one.shape) < scale(step), one / 1000, one)
            for name, one in tensors.items()
        }
        target = folder / f"checkpoint-{step}"
        reference.save(target, changed)
        (target / "config.json").write_bytes(config)
    return folder


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten checkpoints of which the sixth is suddenly sparser."""
    folder = tmp_path_factory.mktemp("training")
    return run(folder, range(100, 1100, 100), lambda step: 0.1 + 0.0001 * step + 0.3 * (step > 500))


def test_the_numbers_are_those_of_the_tensors(training: Path) -> None:
    """In the order of the steps, which is not that of the names."""
    found = trace([training])
    assert [point.step for point in found.points] == list(range(100, 1100, 100))
    assert found.steps_known
    names = [n for n in reference.stored(training / "first") if n.endswith("proj.weight")]
    assert (found.tensors, found.weights) == (len(names), found.points[0].stats.weights)
    for at, point in enumerate(found.points):
        tensors = reference.stored(training / f"checkpoint-{point.step}")
        flat = torch.cat([tensors[name].double().reshape(-1) for name in names])
        size, std = flat.abs(), flat.std(correction=0)
        assert point.stats.weights == flat.numel()
        values = {one.name: one.values[at] for one in found.series}
        assert values["near zero 0.001"] == int((size <= 0.001).sum()) / flat.numel()
        assert values["near zero 0.01*std"] == pytest.approx(
            int((size <= 0.01 * std).sum()) / flat.numel(), abs=1e-12
        )
        norm = float((flat**2).sum())
        for label, made in (
            ("lost at 0.4", reference.together(tensors, names, 0.4)),
            ("lost by 2:4", {n: reference.nm(tensors[n], 2, 4) for n in names}),
        ):
            kept = sum(float((made[name].double() ** 2).sum()) for name in names)
            assert values[label] == pytest.approx(1 - kept / norm, abs=1e-9)


def test_the_abrupt_step_and_the_trend_are_found(training: Path) -> None:
    found = trace([training])
    near = next(one for one in found.series if one.name == "near zero 0.01*std")
    assert near.change is not None
    assert (near.change.start, near.change.end) == (500, 600)
    assert (near.change.before, near.change.after) == (near.values[4], near.values[5])
    assert near.trend is not None
    assert near.trend.tau == pytest.approx(1.0)
    assert near.trend.p < 0.001
    texts = " ".join(found.findings)
    assert "Abrupt: between step 500 and 600" in texts
    assert "later checkpoints are more prunable" in texts


def test_the_same_weights_throughout(tmp_path: Path) -> None:
    """Neither a change nor a trend, and a warning for each pair."""
    run(tmp_path, range(1, 8), lambda _: 0.2)
    events: list[Event] = []
    found = trace([tmp_path], on_event=events.append)
    assert all(one.change is None and one.trend is None for one in found.series)
    notes = [one.text for one in events if isinstance(one, Note) and one.warning]
    assert sum("hold the same weights" in text for text in notes) == 6
    assert any("change nowhere abruptly" in text for text in found.findings)


def notes_of(models: Sequence[Path]) -> list[str]:
    events: list[Event] = []
    trace(models, on_event=events.append)
    return [one.text for one in events if isinstance(one, Note) and one.warning]


def test_what_is_no_training_is_said(training: Path, tmp_path: Path) -> None:
    """A pruned checkpoint, one in another type, and one that is there twice, far apart."""
    first, second, third = (training / f"checkpoint-{step}" for step in (100, 200, 300))
    assert notes_of([first, second]) == []
    prune(second, tmp_path / "checkpoint-400", PruneSettings(sparsity=0.5))
    shutil.copytree(first, tmp_path / "checkpoint-500")
    half = {name: one.bfloat16() for name, one in reference.stored(third).items()}
    reference.save(tmp_path / "checkpoint-600", half)
    shutil.copy(first / "config.json", tmp_path / "checkpoint-600")
    paths = [tmp_path / f"checkpoint-{step}" for step in (400, 500, 600)]
    assert notes_of([first, second, *paths]) == [
        f"{paths[0]} is pruned: its zeros are not of the training",
        f"{paths[2]} is stored as bf16, and fp32 in {first}: rounding alone moves weights to and "
        "from zero",
        f"{first} and {paths[1]} hold the same weights",
    ]


def test_places_are_not_called_steps(training: Path, tmp_path: Path) -> None:
    """In notes, labels and sentences; and step 0 is one."""
    for at in range(8):
        source = training / f"checkpoint-{100 + 100 * at}"
        shutil.copytree(source, tmp_path / ("step" + "i" * at))
    models = [tmp_path / ("step" + "i" * at) for at in range(8)]
    found = trace(models)
    assert not found.steps_known
    assert [point.label for point in found.points] == list(map(str, models))
    assert "Abrupt: between checkpoint 5 and 6" in found.findings[0]
    shutil.copytree(models[0], tmp_path / "step0")
    found = trace([tmp_path / "step0", training / "checkpoint-100"])
    assert [point.label for point in found.points] == ["step 0", "step 100"]


def test_a_trend_needs_five_checkpoints(training: Path) -> None:
    """Of four in perfect order the test gives 0.08, which would be called no trend."""
    for count, told in ((4, "fewer than 5 checkpoints cannot show a trend"), (5, "more prunable")):
        found = trace([training / f"checkpoint-{100 + 100 * at}" for at in range(count)])
        assert found.findings[1].count(told) == 1


# --- steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500), ("step1000", 1000), ("global_step_20", 20), ("run.ckpt-7", 7),
        ("step20000-tokens84B", 20000), ("epoch_3", 3), ("iter-0012", 12), ("4000", 4000),
        ("my-run-step-9", 9), ("vicuna-7b-v1.3", None), ("main", None), ("model-2", None),
        ("step", None), ("step5-final", None),
    ],
)  # fmt: skip
def test_steps_in_names(tmp_path: Path, name: str, step: int | None) -> None:
    (tmp_path / name).mkdir()
    assert step_of(str(tmp_path / name)) == step
    assert step_of(f"org/name@{name}") == step


def test_the_trainers_own_word_goes_before_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    for text, step in (
        ('{"global_step": 70}', 70), ('{"global_step": -1}', 5), ('{"global_step": "9"}', 5),
        ('{"global_step": true}', 5), ("[]", 5), ("{", 5), ('{"global_step": 1e400}', 5),
    ):  # fmt: skip
        (folder / "trainer_state.json").write_text(text)
        assert step_of(str(folder)) == step, text
    assert step_of("org/name") is None


def test_a_folder_of_checkpoints_stands_for_them(training: Path, tmp_path: Path) -> None:
    assert [Path(one).name for one in expanded(str(training))][:2] == [
        "checkpoint-100", "checkpoint-200"
    ]  # fmt: skip
    one = str(training / "checkpoint-100")
    assert expanded(one) == [one]
    # Another name of one of them is none more.
    (tmp_path / "checkpoint-1").symlink_to(one)
    shutil.copytree(training / "checkpoint-200", tmp_path / "checkpoint-200")
    for name in ("a-latest", "latest"):
        (tmp_path / name).symlink_to("checkpoint-200")
    assert [Path(one).name for one in expanded(str(tmp_path))] == [
        "checkpoint-1", "checkpoint-200"
    ]  # fmt: skip
    assert expanded("org/name@step1") == ["org/name@step1"]


def test_order(training: Path) -> None:
    given = [str(training / f"checkpoint-{step}") for step in (300, 100)]
    found = course(given)
    assert ([one.step for one in found.checkpoints], found.sorted) == ([100, 300], True)
    # A model that tells no step: all are counted as given.
    found = course([str(training / "first"), given[0]])
    assert ([one.step for one in found.checkpoints], found.known) == ([1, 2], False)
    events: list[Event] = []
    trace([training / "first", given[0]], on_event=events.append)
    assert any("counted as they were given" in str(one) for one in events)


# --- changes and trends -----------------------------------------------------------------------


def test_a_jump_a_ramp_a_line_and_noise() -> None:
    rng = np.random.default_rng(0)
    steps = list(range(0, 2400, 100))
    jump = [0.0] * 12 + [1.0] * 12
    found = abrupt(steps, jump)
    assert found is not None
    assert (found.start, found.end, found.before, found.after) == (1100, 1200, 0.0, 1.0)
    assert found.times is None  # nothing moves elsewhere
    ramp = np.r_[np.zeros(10), np.linspace(0, 5, 5)[1:], 5 + np.zeros(10)]
    found = abrupt(steps, list(ramp + rng.normal(0, 0.02, len(ramp))))
    assert found is not None
    assert (found.start, found.end) == (900, 1300)
    assert found.times is not None
    assert found.times > 3
    falls = abrupt(steps, [-one for one in jump])
    assert falls is not None
    assert (falls.before, falls.after) == (0.0, -1.0)
    assert abrupt(steps, [0.001 * step for step in steps]) is None
    assert abrupt(steps[: LEAST - 1], jump[10 : 10 + LEAST - 1]) is None
    assert abrupt(steps, [0.5] * len(steps)) is None


@pytest.mark.parametrize(("count", "most"), few([(8, 0.1), (12, 0.06), (30, 0.02)]))
def test_noise_is_rarely_called_a_change(count: int, most: float) -> None:
    """Noise around a line has none; noise alone has one rarely, and with few checkpoints more."""
    rng = np.random.default_rng(1)
    steps = list(range(count))
    line = [abrupt(steps, list(steps + rng.normal(0, 0.3, count))) for _ in range(100)]
    alone = [abrupt(steps, list(rng.normal(5, 1, count))) for _ in range(100)]
    assert np.mean([one is not None for one in line]) <= 0.01
    assert np.mean([one is not None for one in alone]) < most


@pytest.mark.parametrize("steps", [
    [0, *(2**at for at in range(10)), *range(1000, 20001, 1000)], [2**at for at in range(16)]
])  # fmt: skip
def test_noise_between_close_checkpoints_is_none(steps: list[int]) -> None:
    """As of Pythia's revisions: step 1 and 2 are a thousandth of the way of 1000 and 2000."""
    rng = np.random.default_rng(0)
    found = [abrupt(steps, list(rng.normal(5, 0.5, len(steps)))) for _ in range(100)]
    assert np.mean([one is not None for one in found]) <= 0.05
    jump = 5 + (np.arange(len(steps)) > len(steps) // 2) + rng.normal(0, 0.02, len(steps))
    change = abrupt(steps, list(jump))
    assert change is not None
    assert change.start == steps[len(steps) // 2]


def test_a_small_change_is_none_however_sudden() -> None:
    steps = list(range(20))
    assert abrupt(steps, [1.0] * 10 + [1.05] * 10) is None
    assert abrupt(steps, [1.0] * 10 + [1.2] * 10) is not None


def test_uneven_steps_are_taken_as_they_are() -> None:
    """A long way between two checkpoints is no jump."""
    steps = [0, 10, 20, 30, 1000, 1010, 1020, 1030]
    assert abrupt(steps, [float(step) for step in steps]) is None


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_the_trend_is_kendalls_tau(values: list[float]) -> None:
    """Tau-b by its definition: pairs in order minus pairs out of order."""
    found = trend(range(len(values)), values)
    if len(set(values)) < 2:
        assert found is None
        return
    signs = [np.sign(b - a) for i, a in enumerate(values) for b in values[i + 1 :]]
    pairs, untied = len(signs), sum(sign != 0 for sign in signs)
    assert found is not None
    assert found.tau == pytest.approx(sum(signs) / math.sqrt(pairs * untied))


# --- bad input, the command, the Hub ----------------------------------------------------------


def test_checkpoints_that_are_no_course(training: Path, tmp_path: Path) -> None:
    one = training / "checkpoint-100"
    for library in ("ruptures", "scipy"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, library, None)  # as if it were not installed
            with pytest.raises(MissingLibrary) as caught:
                trace([training])
        assert caught.value.hint == "pip install 'prunectl[trace]'"
    with pytest.raises(TooFewCheckpoints, match="1 checkpoint given, and a trace needs at least 2"):
        trace([one])
    with pytest.raises(SameStep, match="both of step 100"):
        trace([one, one])
    tiny_models.build("bert", tmp_path / "checkpoint-2")
    with pytest.raises(DifferentCheckpoints, match="has no prunable"):
        trace([one, tmp_path / "checkpoint-2"])
    tensors = reference.stored(one)
    name = next(n for n in tensors if n.endswith("proj.weight"))
    reference.save(tmp_path / "checkpoint-3", tensors | {name: torch.randn(8, 8)})
    with pytest.raises(DifferentCheckpoints, match=rf"'{name}' has shape \[.*\], not \[8, 8\]"):
        trace([one, tmp_path / "checkpoint-3"], TraceSettings(include=("re:proj.weight$",)))
    tensors[name][0, 0] = math.nan
    reference.save(tmp_path / "checkpoint-4", tensors)
    (tmp_path / "checkpoint-4/config.json").write_bytes((one / "config.json").read_bytes())
    with pytest.raises(NaNWeights, match=rf"{tmp_path / 'checkpoint-4'}: tensor '{name}'"):
        trace([one, tmp_path / "checkpoint-4"])
    with pytest.raises(InvalidSparsity):
        TraceSettings(sparsities=(1.0,))


def test_the_command(
    training: Path, typed: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = typed(
        "trace", training, "-s", "0.5", "-p", "none", "-p", "1:4", "-o", "t.json"
    )
    assert code == 0
    assert "10 checkpoints of" in out
    assert "Abrupt: between step 500 and 600" in out
    assert err.count(": measured") == 10
    saved = json.loads((tmp_path / "t.json").read_text())
    names = [one["name"] for one in saved["series"]]
    assert names[-2:] == ["lost at 0.5", "lost by 1:4"]
    code, out, _ = typed("trace", training, "--json", "-q")
    document = json.loads(out)
    assert (code, document["schema"]) == (0, "prunectl.trace/1")
    assert len(document["points"]) == 10
    code, out, err = typed("trace", training / "checkpoint-100")
    assert (code, out) == (2, "")
    assert "needs at least 2" in err
    for models in ((training, training), (training,), ("org/name@main",)):
        code, out, err = typed("trace", *models, "--revisions", "step1,step2")
        assert (code, out) == (2, "")
        assert "--revisions needs one MODEL" in err


def test_revisions_of_the_hub_are_dropped_in_turn(
    training: Path, hub: Hub, repo: str, pusher: Worker, tmp_path: Path
) -> None:
    """What was in the cache before stays; what is downloaded for the trace goes, if asked."""
    commits = []
    for step in (100, 500, 1000):
        folder = training / f"checkpoint-{step}"
        files = {one.name: one.read_bytes() for one in folder.iterdir()}
        commits.append(hub.put(repo, dict(files)).oid)

    def held() -> set[str]:
        """Commits whose weights are in the cache."""
        cached = pusher.home / "hub" / f"models--{repo.replace('/', '--')}"
        return {one.parent.name for one in cached.glob("snapshots/*/*.safetensors")}

    assert pusher.type(tmp_path, "analyze", f"{repo}@{commits[0]}").code == 0
    assert held() == {commits[0]}
    words = ("trace", repo, "--revisions", ",".join(commits), "--json")
    found = pusher.type(tmp_path, *words, "--drop").document
    assert [point["revision"] for point in found["points"]] == commits
    assert held() == {commits[0]}
    local = trace([training / f"checkpoint-{step}" for step in (100, 500, 1000)])
    assert [one["values"] for one in found["series"]] == [list(one.values) for one in local.series]
    assert pusher.type(tmp_path, *words).code == 0
    assert held() == set(commits)


def test_settings_take_what_people_write() -> None:
    settings = TraceSettings(sparsities=(0.5, 0.1, 0.5), patterns=("4:8", NM(4, 8)))  # type: ignore[arg-type]
    assert (settings.sparsities, settings.patterns) == ((0.1, 0.5), (NM(4, 8),))


def test_every_checkpoint_is_opened_once_and_closed(training: Path) -> None:
    """Memory of one: the next is opened when the last was measured."""
    order: list[str] = []

    def open_one(model: str) -> object:
        order.append(f"open {Path(model).name}")
        return open_checkpoint(model)

    trace(
        [training / "checkpoint-100", training / "checkpoint-200"],
        open_one=open_one,  # type: ignore[arg-type]
        on_point=lambda point: order.append(f"done {Path(point.model).name}"),
    )
    assert order == [
        "open checkpoint-100", "done checkpoint-100", "open checkpoint-200", "done checkpoint-200"
    ]  # fmt: skip


def test_a_turn_on_the_way_is_told() -> None:
    from prunectl.studies.trace.result import _turn

    labels = ["step 1", "step 2", "step 3"]
    assert _turn([0.4, 0.32, 0.36], labels) == "32.00% at step 2 "
    assert _turn([0.3, 0.4, 0.32], labels) == "40.00% at step 2 "
    assert _turn([0.3, 0.31, 0.32], labels) == ""
    assert _turn([0.3, 0.299, 0.301], labels) == ""
    assert _turn([0.0, 0.0, 0.0], labels) == ""
