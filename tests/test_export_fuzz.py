"""Damaged copies of compressed folders: a typed error, or the very tensors; nothing else, ever."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export_cases as cases
import pytest
import reference
import torch
from export_cases import WEIGHTS
from reference import Tensors

from prunectl import PrunectlError, export, load_state_dict, open_weights, verify

pytestmark = pytest.mark.full

FOLDERS = ("bitmask", "nm", "packed", "shards")
Damage = Callable[[random.Random, bytes], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of several dtypes and kinds of tensors, exported to every layout."""
    place = tmp_path_factory.mktemp("fuzz")
    torch.manual_seed(0)
    weights = torch.randn(64, 64)
    tensors = {
        "model.layers.0.mlp.up_proj.weight": reference.nm(weights, 2, 4).bfloat16(),
        "model.layers.0.mlp.down_proj.weight": reference.nm(weights[:24], 1, 4).half(),
        "model.layers.0.mlp.gate_proj.weight": reference.alone(weights[:, :30], 0.7),
        "model.layers.1.mlp.up_proj.weight": torch.zeros(40, 40, dtype=torch.float16),
        "model.embed_tokens.weight": weights.bfloat16() * 3,
        "model.norm.weight": torch.ones(30),
        "model.ids": torch.arange(9),
    }
    reference.save(place / "source", tensors)
    for layout in FOLDERS[:3]:
        export(place / "source", place / layout, layout)
    export(place / "source", place / "shards", "auto", max_shard_size=9_000)
    return place


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    """To be set before each case: a call that hangs ends with TimeoutError."""

    def ring(*_: object) -> None:
        raise TimeoutError("a damaged file was worked on for ten minutes")

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: signal.alarm(600) and None
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- kinds of damage ----------------------------------------------------------------------------


def flips(chance: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def flips_of_the_header(chance: random.Random, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end].rstrip()  # what follows it is padding
    return data[:8] + flips(chance, text) + data[8 + len(text) :]


def truncation(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def bytes_put_in(chance: random.Random, data: bytes) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + chance.randbytes(chance.randrange(1, 200)) + data[start:]


def a_run_overwritten(chance: random.Random, data: bytes) -> bytes:
    start, size = chance.randrange(len(data)), chance.randrange(1, 600)
    run = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size)])
    return (data[:start] + run + data[start + size :])[: len(data)]


JUNK: list[Any] = [None, True, -1, 0, 1, 7, 8, 64, 1 << 31, 1 << 63, 1 << 64, 0.5, "", "x", "F32"]
JUNK += ["BF16", "I64", "U8", "packed", "nm", "bitmask", "data", "values", [], [0], [64, 64], {}]
JUNK += [[1 << 40, 1 << 40], {"": 1}, [None], "\ud800", "0" * 64, [[]], 1e308]


def _edited(chance: random.Random, value: Any) -> Any:
    """The JSON value with one member somewhere in it changed, dropped, doubled or exchanged."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        found = dict(value)
        what = chance.random()
        if what < 0.08:
            del found[key]
        elif what < 0.14:
            found[key + chance.choice([".data", "x", ""])] = found.pop(key)
        elif what < 0.24:
            other = chance.choice(list(value))
            found[key], found[other] = found[other], found[key]
        else:
            found[key] = _edited(chance, value[key])
        return found
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        new = [] if chance.random() < 0.2 else [_edited(chance, value[place])]
        return [*value[:place], *new, *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.6:
        return value + chance.choice([-64, -8, -1, 1, 2, 8, 64])
    return chance.choice(JUNK)


def an_edited_header(chance: random.Random, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if chance.random() < 0.6:
        document = json.loads(header["__metadata__"]["prunectl"])
        header["__metadata__"]["prunectl"] = json.dumps(_edited(chance, document))
    else:
        header = _edited(chance, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


def _edited_json(chance: random.Random, data: bytes) -> bytes:
    return json.dumps(_edited(chance, json.loads(data))).encode()


OF_WEIGHTS: list[Damage] = [flips, flips_of_the_header, truncation, bytes_put_in, a_run_overwritten]
OF_WEIGHTS += [an_edited_header] * 3
OF_TEXTS: list[Damage] = [flips, truncation, _edited_json, _edited_json]


# --- what may come of it ------------------------------------------------------------------------


def damage_one(chance: random.Random, folder: Path, whole: dict[str, bytes]) -> str:
    """Write one file of the folder again, damaged; says which, and how."""
    names = sorted(name for name in whole if name.endswith((".safetensors", ".json")))
    weights = [name for name in names if name.endswith(".safetensors")]
    name = chance.choice(weights if chance.random() < 0.85 else names)
    how = chance.choice(OF_WEIGHTS if name in weights else OF_TEXTS)
    (folder / name).write_bytes(how(chance, whole[name]))
    return f"{how.__name__} of {name}"


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or its typed error; anything else ends the test."""
    try:
        return call()
    except PrunectlError as error:
        return error


def check_bare(folder: Path, chance: random.Random) -> None:
    """Without a manifest, names are what the headers say, and of dense tensors nothing is known."""
    (folder / "prunectl.json").unlink()
    back = folder.with_name("back")
    for result in (
        outcome(lambda: load_state_dict(folder, jobs=1)),
        outcome(lambda: export(folder, back, chance.choice(["dense", "nm", "auto"]), jobs=1)),
    ):
        assert not isinstance(result, PrunectlError) or str(result)
    if back.exists():
        load_state_dict(back)


def check(folder: Path, expected: Tensors, chance: random.Random) -> None:
    loaded = outcome(lambda: load_state_dict(folder, jobs=chance.choice([1, 2])))
    report = outcome(lambda: verify(folder, source=None, jobs=1))
    back = folder.with_name("back")
    exported = outcome(lambda: export(folder, back, chance.choice(["dense", "packed"]), jobs=1))
    if not isinstance(loaded, PrunectlError):
        reference.assert_same(loaded, expected)
    if not isinstance(report, PrunectlError) and report.ok:
        assert not isinstance(loaded, PrunectlError), loaded
    if not isinstance(exported, PrunectlError):
        reference.assert_same(load_state_dict(back), expected)
    elif back.exists():
        raise AssertionError(f"an export that failed has left its output: {exported}")
    name = chance.choice(sorted(expected))
    weights = outcome(lambda: open_weights(folder))
    if not isinstance(weights, PrunectlError):
        with weights:
            for found in (
                outcome(lambda: weights.get(name)),
                outcome(lambda: weights.rows(name, 1, 3) if name in weights else None),
            ):
                assert found is None or isinstance(found, (PrunectlError, torch.Tensor))


def fuzz(made: Path, place: Path, which: str, count: int, alarm: Callable[[], None]) -> None:
    expected = reference.stored(made / "source")
    whole = reference.contents(made / which)
    kinds = {"error": 0, "same": 0}
    for number in range(count):
        chance = random.Random(f"{which} {number}")
        folder = cases.copied(made / which, place / "copy")
        what = damage_one(chance, folder, whole)
        alarm()
        try:
            if number % 3 == 0:
                check_bare(folder, chance)
            else:
                check(folder, expected, chance)
            found = outcome(lambda: load_state_dict(folder))  # noqa: B023
        except Exception as error:
            error.add_note(f"{which}, number {number}: {what}")
            raise
        loads = not isinstance(found, PrunectlError)
        kinds["same" if loads else "error"] += 1
        for path in place.iterdir():
            for file in sorted(path.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            path.rmdir()
    # Damage that is never noticed, or always, would mean that nothing was tried.
    assert kinds["error"] > count / 2
    assert kinds["same"] > 0


@pytest.mark.parametrize("which", FOLDERS)
def test_damaged_folders(made: Path, tmp_path: Path, which: str, alarm: Callable[[], None]) -> None:
    fuzz(made, tmp_path, which, 100, alarm)


@pytest.mark.parametrize("layout", FOLDERS[:3])
def test_every_bit_of_a_small_part(made: Path, tmp_path: Path, layout: str) -> None:
    """Each bit of all that is stored for one tensor, flipped by itself: its hash knows all."""
    name = "model.layers.0.mlp.down_proj.weight"
    folder = cases.copied(made / layout, tmp_path / "copy")
    path = folder / WEIGHTS
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    header = cases.read_file(path)[0]
    expected = reference.stored(made / "source")[name]
    same = 0
    for suffix in cases.described(path)[name]["parts"]:
        start, stop = (begin + at for at in header[f"{name}.{suffix}"]["data_offsets"])
        for place in range(start, stop, max(1, (stop - start) // 60)):
            for bit in range(0, 8, 3):
                damaged = bytearray(whole)
                damaged[place] ^= 1 << bit
                path.write_bytes(damaged)
                found = outcome(lambda: open_weights(folder)[name])
                if isinstance(found, PrunectlError):
                    assert f"'{name}'" in str(found)
                else:  # padding, or bits that a decoder does not look at
                    same += 1
                    reference.assert_same({name: found}, {name: expected})
    assert same < 30
