"""A source that changes while it is read, or since it was measured: never an output of both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import prunectl
from prunectl.errors import BadCheckpoint, FileChanged, SourceChanged
from prunectl.events import Advanced, Event, OnEvent, PhaseDone
from prunectl.exporting.masks import export_masks
from prunectl.plan.settings import Calibration, Method, PruneSettings
from prunectl.userdirs import cache_dir

NAME = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
HALF = PruneSettings(sparsity=0.5)
SAMPLES = Calibration(("random",), samples=3, sequence_length=10)


def write(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    save_file({NAME: rng.standard_normal((64, 64), dtype=np.float32)}, path)


def test_weights_changed_under_the_same_size_and_time_are_noticed(tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    file = source / "model.safetensors"
    write(file, 1)
    stamp = file.stat()
    prunectl.analyze(str(source))
    write(file, 2)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    with pytest.raises(SourceChanged, match=NAME) as caught:
        prunectl.prune(str(source), out, PruneSettings(sparsity=0.5))
    assert caught.value.expected == 2048
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

    result = prunectl.prune(str(source), out, PruneSettings(sparsity=0.5), use_cache=False)
    assert result.prunable_zeros == 2048
    assert int((load_file(out / "model.safetensors")[NAME] == 0).sum()) == 2048


def test_bins_that_are_empty_by_now_are_not_looked_for_without_end(tmp_path: Path) -> None:
    """The same, where only exact statistics read the weights a second time."""
    file, done = tmp_path / "model.safetensors", []
    write(file, 1)

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseDone) and not done:
            done.append(event)
            save_file({NAME: np.full((64, 64), 1e30, np.float32)}, file)

    with pytest.raises(FileChanged, match="changed since it was measured"):
        prunectl.analyze(file, on_event=on_event)


# --- while it is read ---------------------------------------------------------------------------


def swap_two(folder: Path) -> None:
    """Two of the largest weights change places: no count and no threshold tells."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    flat = tensors[NAME].reshape(-1)
    first, second = np.argsort(np.abs(flat))[-2:]
    flat[[first, second]] = flat[[second, first]]
    file.write_bytes(saved(tensors))


def change_a_copied_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM] = tensors[NORM] + 1
    (folder / "model.safetensors").write_bytes(saved(tensors))


def saved(tensors: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save(tensors, {"format": "pt"})


def replace_by_rename(folder: Path) -> None:
    file = folder / "model.safetensors"
    shutil.copyfile(file, folder / "new")
    (folder / "new").replace(file)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 2000)


def delete(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def touch(folder: Path) -> None:
    (folder / "model.safetensors").touch()


def change_the_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"hidden_act"', '"was_hidden_act"'))


CHANGES = [
    swap_two, change_a_copied_tensor, replace_by_rename, truncate, delete, touch, change_the_config,
]  # fmt: skip


def prune_with(settings: PruneSettings) -> Callable[[Path, Path, OnEvent], object]:
    return lambda source, out, on_event: prunectl.prune(source, out, settings, on_event=on_event)


VERBS: dict[str, Callable[[Path, Path, OnEvent], object]] = {
    "global": prune_with(HALF),
    "rows": prune_with(PruneSettings(sparsity=0.5, scope="row")),  # type: ignore[arg-type]
    "2:4": prune_with(PruneSettings(pattern=prunectl.NM(2, 4))),
    "calibrated": prune_with(
        PruneSettings(sparsity=0.5, method=Method.SPARSEGPT, calibration=SAMPLES)
    ),
    "export": lambda source, out, on_event: prunectl.export(source, out, on_event=on_event),
    "masks": lambda source, out, on_event: export_masks(source, out, on_event=on_event),
    "analyze": lambda source, out, on_event: prunectl.analyze(source, on_event=on_event),
}


@pytest.fixture(scope="module")
def pruned(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of it is zero, so that there are masks to export."""
    folder = tmp_path_factory.mktemp("pruned") / "llama"
    prunectl.prune(tiny("llama"), folder, PruneSettings(sparsity=0.1))
    for name in ("prunectl.json", "README.md"):
        (folder / name).unlink()
    for file in folder.iterdir():  # what is written within a tick of the clock has the same time
        os.utime(file, (1e9, 1e9))
    return folder


@pytest.mark.parametrize(
    ("verb", "change"),
    [(verb, swap_two) for verb in VERBS] + [("global", change) for change in CHANGES[1:]],
)
def test_a_source_that_changes_while_it_is_read(
    pruned: Path, tmp_path: Path, verb: str, change: Callable[[Path], None]
) -> None:
    source, changed = tmp_path / "source", []
    shutil.copytree(pruned, source)

    def on_event(event: Event) -> None:
        if isinstance(event, Advanced) and not changed:
            changed.append(event)
            change(source)

    with pytest.raises(BadCheckpoint, match=r"changed since it was|truncated|cannot be opened"):
        VERBS[verb](source, tmp_path / "out", on_event)
    assert changed
    # New weights of a calibration are kept for a next run, which looks at what they were made from.
    assert [path.name for path in tmp_path.iterdir() if "calibrated" not in path.name] == ["source"]
    assert not list(cache_dir().glob("measured-*"))
