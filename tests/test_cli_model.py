"""MODEL left out: what stands in for it, in which order, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.cli.model_argument import ModelChoice, choose_model, remember_model
from prunectl.cli.output import Output
from prunectl.errors import InvalidOption, NoModelGiven
from prunectl.userdirs import cache_dir


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test: nothing in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def checkpoint(model: str, **facts: str) -> Checkpoint:
    return Checkpoint(
        model=model,
        kind=facts.pop("kind", "hub"),
        folder=Path(),
        format="safetensors",
        files=(),
        tensors=(),
        aliases={},
        side_files=(),
        **facts,  # type: ignore[arg-type]
    )


def remember(content: bytes) -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    (cache_dir() / "last-model.json").write_bytes(content)


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_argument_is_not_the_current_folder(given: str) -> None:
    with pytest.raises(InvalidOption, match="MODEL is empty"):
        choose_model(given, None, Output())


def test_the_order_of_what_stands_in(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remember_model(checkpoint("org/last@v2", repo_id="org/last", revision="v2"))
    assert choose_model(None, None, Output()) == ("org/last", "v2")
    assert capsys.readouterr().err == "MODEL: org/last at v2 (the one analyzed last)\n"

    (empty_folder / "model.safetensors").touch()
    assert choose_model(None, None, Output()) == (".", None)
    assert capsys.readouterr().err == f"MODEL: {empty_folder} (the current folder)\n"

    monkeypatch.setenv("PRUNECTL_MODEL", "org/chosen")
    assert choose_model(None, None, Output()) == ("org/chosen", None)
    assert capsys.readouterr().err == "MODEL: org/chosen (from $PRUNECTL_MODEL)\n"

    monkeypatch.setenv("PRUNECTL_MODEL", "")
    assert choose_model(None, None, Output()) == (".", None)


def test_a_given_revision_goes_before_the_remembered_one() -> None:
    remember_model(checkpoint("org/last@v2", repo_id="org/last", revision="v2"))
    assert choose_model(None, "v3", Output()) == ("org/last", "v3")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    remember_model(checkpoint("org/last", repo_id="org/last"))
    assert choose_model(None, None, Output(quiet=True)) == ("org/last", None)
    assert capsys.readouterr() == ("", "")


def test_a_local_model_is_remembered_absolute(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "mine").mkdir()
    remember_model(checkpoint("./mine", kind="folder"))
    monkeypatch.chdir(empty_folder.parent)
    assert choose_model(None, None, Output()) == (str(empty_folder / "mine"), None)


def test_a_model_that_is_gone_is_ignored_with_a_note(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "mine").mkdir()
    remember_model(checkpoint("mine", kind="folder"))
    (empty_folder / "mine").rmdir()
    with pytest.raises(NoModelGiven):
        choose_model(None, None, Output())
    assert "analyzed last, no longer exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"model": "org/name"}',
        b'{"model": 3, "revision": null}',
        b'{"model": "org/name", "revision": ["main"]}',
        b'{"model": " ", "revision": null}',
        b'{"model": "org\\u0000name", "revision": null}',
        b'{"model": "org/name", "revision": "ma\\u0000in"}',
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_damaged_memory_is_ignored_with_a_note(
    content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(content)
    with pytest.raises(NoModelGiven):
        choose_model(None, None, Output())
    assert capsys.readouterr().err.endswith("last-model.json is damaged\n")


def test_a_cache_that_cannot_be_written_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(Path("file").resolve() / "below"))
    remember_model(checkpoint("org/last", repo_id="org/last"))
    with pytest.raises(NoModelGiven):
        choose_model(None, None, Output())


@pytest.mark.parametrize(
    ("files", "is_checkpoint"),
    [
        (["model.safetensors"], True),
        (["pytorch_model.bin", "config.json"], True),
        (["data.pt"], False),
        (["a.pt", "b.pt", "config.json"], False),
        (["model.gguf"], False),
        (["training_args.bin", "config.json"], False),
        (["notes.txt"], False),
    ],
)
def test_which_folders_hold_a_checkpoint(files: list[str], is_checkpoint: bool) -> None:
    for name in files:
        Path(name).touch()
    remember_model(checkpoint("org/last", repo_id="org/last"))
    expected = ModelChoice(".", None) if is_checkpoint else ModelChoice("org/last", None)
    assert choose_model(None, None, Output()) == expected
