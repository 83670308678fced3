"""Errors stay short, whatever a file holds; the base of all errors cuts them in the middle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prunectl import PruneSettings, open_checkpoint, prune
from prunectl.checkpoint.opening import open_stored
from prunectl.errors import MAX_MESSAGE, PrunectlError, shortened

LONG = "n" * 100_000
FINE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def header(members: Any) -> Callable[[Path], object]:
    """Opens a safetensors file with this header, bytes or anything that JSON can say."""

    def read(folder: Path) -> object:
        raw = members if isinstance(members, bytes) else json.dumps(members).encode()
        content = len(raw).to_bytes(8, "little") + raw + bytes(4)
        (folder / "model.safetensors").write_bytes(content)
        return open_checkpoint(folder)

    return read


def pickled(value: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "pytorch_model.bin").write_bytes(value)
        return open_checkpoint(folder)

    return read


def config(**members: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        save_file({"w": torch.ones(1)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(members))
        return prune(folder, folder / "out", PruneSettings(sparsity=0.5))

    return read


READERS: dict[str, Callable[[Path], object]] = {
    "name": header({LONG: FINE}),
    "name of surrogates": header({"\ud800" * 900: FINE}),
    "nested dtype": header({"w": FINE | {"dtype": [LONG] * 3}}),
    "number": header(b'{"a": ' + b"9" * 100_000 + b"}"),
    "constant": header(b'{"a": 1e' + b"9" * 100_000 + b"}"),
    "no UTF-8": header(b"\xff" * 100_000),
    "names twice": header(b'{"%b": 1, "%b": 1}' % (LONG.encode(), LONG.encode())),
    "function": pickled(b"\x80\x02c" + LONG.encode() + b"\nn\n."),
    "damage": pickled(b"\x80\x02I" + LONG.encode() + b"\n."),
    "nested quant_method": config(quantization_config={"format": {LONG: LONG}}),
    "model": lambda folder: open_checkpoint(folder / LONG),
    "no model": lambda folder: open_checkpoint("/".join(["n" * 100] * 50)),
}


@pytest.mark.parametrize("case", READERS)
def test_what_a_file_holds_is_cut(tmp_path: Path, case: str) -> None:
    with pytest.raises(PrunectlError) as caught:
        READERS[case](tmp_path)
    assert len(str(caught.value)) <= MAX_MESSAGE
    assert str(caught.value) == caught.value.message
    assert len(caught.value.hint) <= MAX_MESSAGE


def test_what_is_not_an_error_is_cut_too(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    method = {"quantization_config": {"quant_method": LONG}}
    (tmp_path / "config.json").write_text(json.dumps(method | {"model_type": LONG}))
    found = open_stored(tmp_path)
    assert len(found.quantization) < 100
    assert len(found.roles.detail) < 700


def test_the_middle_is_cut() -> None:
    assert shortened("a" * 500) == "a" * 500
    cut = shortened("b" * 300 + "c" * 201 + "d" * 100)
    assert len(cut) == 500
    assert cut.startswith("b" * 290)
    assert cut.endswith("c" * 90 + "d" * 100)
    assert " ... " in cut
