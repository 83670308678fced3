"""A source that changes behind its measurements' back: never a wrong count of zeros, silently."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import prunectl
from prunectl.errors import SourceChanged
from prunectl.settings import PruneSettings

NAME = "model.layers.0.mlp.up_proj.weight"


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
