"""Roles remembered between runs, and forgotten as soon as anything they depend on changes."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import build

from prunectl.checkpoint import role_cache
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.checkpoint.roles import RoleMap, roles_from_headers
from prunectl.errors import UnknownArchitecture
from prunectl.userdirs import cache_dir, write_cache_file


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A model whose class is in no table (known_trees.py), so that its module tree is built."""
    build("bart", tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that the module tree is really built."""
    calls: list[str] = []
    original = role_cache._build

    def counted(checkpoint: object) -> RoleMap:
        calls.append("built")
        return original(checkpoint)  # type: ignore[arg-type]

    monkeypatch.setattr(role_cache, "_build", counted)
    return calls


def cached() -> list[Path]:
    return sorted(cache_dir().glob("roles-*.json"))


def test_the_second_time_they_are_remembered(bert: Path, builds: list[str]) -> None:
    first = open_checkpoint(bert).roles
    assert first.origin == "modules"
    second = open_checkpoint(bert)
    assert second.roles == first
    assert second.roles is second.roles
    assert builds == ["built"]
    assert len(cached()) == 1


@pytest.mark.parametrize("change", ["config", "tensors", "version"])
def test_what_they_depend_on(
    bert: Path, builds: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_checkpoint(bert).roles.origin == "modules"
    if change == "config":
        with (bert / "config.json").open("a") as file:
            file.write("\n")
    elif change == "tensors":
        (bert / "model.safetensors").unlink()
        save_file({"x": torch.ones(2, 2)}, bert / "model.safetensors")
    else:
        monkeypatch.setattr(role_cache, "version", lambda package: f"{package} of tomorrow")
    open_checkpoint(bert).roles  # noqa: B018
    assert builds == ["built", "built"]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"roles": {}}', b'{"roles": 3}',
     b'{"origin": "modules", "detail": "", "roles": {"a": {"role": "norm"}}}',
     b'{"origin": "modules", "detail": "", "roles": {"a": {"role": "king"}}}',
     b'{"origin": "modules", "detail": "", "roles": {"a": {"role": "norm", "x": 1}}}'],
)  # fmt: skip
def test_a_damaged_cache_costs_only_time(bert: Path, builds: list[str], damaged: bytes) -> None:
    expected = open_checkpoint(bert).roles
    (path,) = cached()
    good = path.read_bytes()
    path.write_bytes(damaged)
    assert open_checkpoint(bert).roles == expected
    assert builds == ["built", "built"]
    assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written(
    bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(tmp_path / "file"))
    assert open_checkpoint(bert).roles.origin == "modules"


def test_trusted_code_is_asked_each_time(bert: Path, builds: list[str]) -> None:
    for _ in range(2):
        assert open_checkpoint(bert, trust_remote_code=True).roles.origin == "modules"
    assert builds == ["built", "built"]
    assert cached() == []


def test_without_config_the_headers_decide(bert: Path, builds: list[str]) -> None:
    (bert / "config.json").unlink()
    checkpoint = open_checkpoint(bert)
    assert checkpoint.roles.roles == roles_from_headers([t.spec for t in checkpoint.tensors]).roles
    assert (checkpoint.roles.origin, checkpoint.roles.detail) == (
        "headers",
        "there is no config.json",
    )
    assert builds == []


def test_an_unknown_architecture_falls_back_and_says_why(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(
        json.dumps(config | {"model_type": "zzz", "architectures": ["ZzzModel"]})
    )
    found = open_checkpoint(bert).roles
    assert found.origin == "headers"
    assert "zzz" in found.detail.lower()
    assert open_checkpoint(bert).roles == found


def test_what_failed_is_tried_again(
    bert: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> RoleMap:
        raise UnknownArchitecture("a package is missing")

    with monkeypatch.context() as broken:
        broken.setattr("prunectl.checkpoint.modules.roles_from_modules", fail)
        assert open_checkpoint(bert).roles.detail == "a package is missing"
    assert cached() == []
    assert open_checkpoint(bert).roles.origin == "modules"
    assert builds == ["built", "built"]


def test_many_threads_build_once(bert: Path, builds: list[str]) -> None:
    checkpoint = open_checkpoint(bert, trust_remote_code=True)
    start = threading.Barrier(8)

    def ask(_: int) -> int:
        start.wait()
        return id(checkpoint.roles)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert builds == ["built"]


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", "~/somewhere")
    assert cache_dir() == Path.home() / "somewhere"
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", "~nobody_of_that_name/x")
    assert cache_dir() == Path("~nobody_of_that_name/x")
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", "")
    assert cache_dir().name == "prunectl"
    assert os.environ["XDG_CACHE_HOME"] in str(cache_dir())


def test_a_cache_file_is_whole_or_absent(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    assert write_cache_file("x", lambda file: file.write(b"old")) == cache_dir() / "x"
    assert write_cache_file("x", fail) is None
    assert (cache_dir() / "x").read_bytes() == b"old"
    with pytest.raises(KeyError):
        write_cache_file("x", lambda _: {}["bug"])
    assert [path.name for path in cache_dir().iterdir()] == ["x"]


@pytest.mark.parametrize("damage", [{"input_axis": 7}, {"input_axis": "0"}, {"layer": -1}])
def test_remembered_roles_that_no_tensor_can_have_are_ignored(
    tmp_path: Path, damage: dict[str, object]
) -> None:
    build("bart", tmp_path / "model")
    right = open_checkpoint(tmp_path / "model").roles
    (file,) = cache_dir().glob("roles-*.json")
    record = json.loads(file.read_bytes())
    for role in record["roles"].values():
        role.update(damage)
    file.write_text(json.dumps(record))
    assert open_checkpoint(tmp_path / "model").roles == right


def test_a_config_of_a_billion_layers_is_not_built(tmp_path: Path) -> None:
    build("albert", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"num_hidden_layers": 10**9}))
    roles = open_checkpoint(tmp_path / "model").roles
    assert roles.origin == "headers"
    assert "num_hidden_layers" in roles.detail


def test_a_link_that_is_left_out_is_said(tmp_path: Path) -> None:
    build("llama", tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model" / "extra").symlink_to(tmp_path / "elsewhere")
    (note,) = open_checkpoint(tmp_path / "model").notes
    assert "extra" in note
