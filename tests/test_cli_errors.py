"""What ends a command: exit codes, one or two lines on stderr, and never a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from full import few
from safetensors.numpy import load_file, save_file

from prunectl.checkpoint import opening as checkpoint_module
from prunectl.cli.run import run
from prunectl.errors import NoModelGiven

ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe() -> None:
    Path("r.toml").write_text("sparsity = 0.3\n")
    Path("bad.toml").write_text("sparsitty = 0.3\n")
    Path("empty").mkdir()
    Path("model.gguf").touch()


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(
    ("argv", "code", "error", "hint"),
    [
        ("analyze", 2, "no MODEL given", "PRUNECTL_MODEL"),
        ("analyze ''", 2, "MODEL is empty", ""),
        ("analyze ./nothing", 1, "no such file or folder", "org/name"),
        ("analyze empty", 1, "the folder is empty", ""),
        ("analyze model.gguf", 1, "GGUF", "safetensors"),
        ("analyze org/name", 1, "offline mode is on", "HF_HUB_OFFLINE"),
        ("analyze m --pattern 4:2", 2, "did you mean 2:4?", "N kept of every M"),
        ("analyze m --pattern none --pattern unstructured", 2, "an N:M pattern", ""),
        ("analyze m -o no/such/folder.json", 1, "there is no folder no/such", "writable place"),
        ("analyze m -o empty", 1, "it is a folder", "writable place"),
        ("analyze m --html empty", 1, "it is a folder", "writable place"),
        ("analyze m --jobs 0", 2, "invalid value for '--jobs'", "prunectl analyze --help"),
        ("prune m -s 0.4", 2, "no output folder given", "--dry-run"),
        ("prune m -o out", 2, "no sparsity given", "--sparsity"),
        ("prune m -s 40 -o out", 2, "sparsity 40 is not valid", "did you mean 0.4?"),
        ("prune m -s -0.1 -o out", 2, "sparsity -0.1 is not valid", ""),
        ("prune m -s nan -o out", 2, "sparsity nan is not valid", ""),
        (
            "prune m -s half -o out",
            2,
            "invalid value for '--sparsity' / '-s': it is no number",
            "prunectl prune --help",
        ),
        (
            "prune m -s 0.4 --method wnada",
            2,
            "invalid value for '--method': 'wnada' is not one of",
            "prunectl prune --help",
        ),
        (
            "analyze m --jobs two",
            2,
            "invalid value for '--jobs': it is no integer",
            "prunectl analyze --help",
        ),
        ("trace demo demo -s 0.2 0.4", 2, "MODEL '0.4' is a number", "-s 0.2,0.4"),
        (
            "prune demo -s 0.4 --method wanda --dtype int8 --dry-run",
            2,
            "dtype 'int8' is not known",
            "bfloat16",
        ),
        ("prune m -s 0.6 -p 2:4 -o out", 2, "reaches at most 0.5", "lower --sparsity"),
        ("prune m -p 4:2 -o out", 2, "did you mean 2:4?", ""),
        ("prune m -p 0:4 -o out", 2, "pattern '0:4' is not valid", ""),
        ("prune m -p 3:3 -o out", 2, "prunes nothing", ""),
        ("prune m -p 2:4 --scope row -o out", 2, "scope 'row' has no meaning", ""),
        ("prune m -s 0.4 --scope column -o out", 2, "'column' is not", "prune --help"),
        ("prune m -s 0.4 --exclude re:( -o out", 2, "not a regular expression", ""),
        ("prune m -s 0.4 --max-shard-size 5 -o out", 2, "size '5'", "5GB"),
        ("prune m -s 0.4 --recipe r.toml -o out", 2, "--sparsity and the recipe", "leave one"),
        ("prune m --recipe bad.toml -o out", 2, "unknown key 'sparsitty'", "recipes.md"),
        ("prune m --recipe none.toml -o out", 2, "cannot be read", ""),
        ("prune m --sparsty 0.4 -o out", 2, "no such option: --sparsty", "prune --help"),
        ("prune m n -s 0.4 -o out", 2, "unexpected extra argument", "prune --help"),
        ("verify", 2, "missing argument 'DIR'", "verify --help"),
        ("verify out --source m --no-source", 2, "--source, --no-source and --mask-of exclude", ""),
        ("verify out --revision v1", 2, "--revision needs", "--source"),
        ("prone", 2, "no such command 'prone'", "prunectl --help"),
        ("--verson", 2, "no such option: --verson", "prunectl --help"),
    ],
)
def test_known_errors(
    argv: str, code: int, error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["" if word == "''" else word for word in argv.split()]) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("looking for ")]
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2
    assert hint in lines[-1]
    assert not Path("out").exists()


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let opening a checkpoint, which all commands do, end like this."""

    def raise_it(*args: object, **options: object) -> NoReturn:
        raise error

    monkeypatch.setattr(checkpoint_module, "open_checkpoint", raise_it)


def test_an_unexpected_error_is_one_line_and_says_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(ZeroDivisionError("first\nsecond"), monkeypatch)
    assert run(["analyze", "m"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-2] == "error: ZeroDivisionError: first second"
    assert "PRUNECTL_DEBUG=1" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "not enough mem",
        ),
        (RuntimeError("can't start new thread"), "start more threads"),
        (ImportError("libtorch_cpu.so: failed to map segment", name="torch._C"), "library 'torch'"),
    ],
    ids=["python", "torch", "thread", "library"],
)
def test_limits_of_the_system_are_no_bug(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert run(["analyze", "m"]) == 1
    first, hint = capsys.readouterr().err.splitlines()[-2:]
    assert said in first
    assert "ulimit -v" in hint


@pytest.mark.parametrize(
    ("name", "said", "advice"),
    [
        ("timm.layers", "the library 'timm' is not installed", "pip install timm"),
        ("prunectl.none", "ModuleNotFoundError: ", "this is a bug"),
    ],
)
def test_a_library_that_is_missing_is_named(
    name: str,
    said: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(ModuleNotFoundError(f"No module named '{name}'", name=name), monkeypatch)
    assert run(["analyze", "m"]) == 1
    first, hint = capsys.readouterr().err.splitlines()[-2:]
    assert said in first
    assert advice in hint


@pytest.mark.parametrize("error", ["ImportError", "OSError", "SystemError"])
def test_a_library_that_is_broken_is_named(
    error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.py").write_text(f"raise {error}('no part of it is ' + 'here ' * 1000)")
    monkeypatch.syspath_prepend(".")
    monkeypatch.setattr(
        checkpoint_module, "open_checkpoint", lambda *args, **options: __import__("broken")
    )
    assert run(["analyze", "m"]) == 1
    first, hint = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith(f"error: the library 'broken' cannot be loaded: {error}: no part of it")
    assert len(first) < 400
    assert "install prunectl again" in hint


@pytest.mark.parametrize("error", [ZeroDivisionError("what"), NoModelGiven()])
def test_debug_shows_the_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    monkeypatch.setenv("PRUNECTL_DEBUG", "1")
    assert run(["analyze", "m"]) in (1, 2)
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "raise_it" in err
    assert "\nerror: " in err


@pytest.mark.parametrize(
    ("debug", "token"), [("", TOKEN), ("1", TOKEN), ("1", "a-token-of-another-form")]
)
def test_no_token_is_shown(
    token: str, debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(RuntimeError(f"GET https://user:{token}@hub"), monkeypatch)
    monkeypatch.setenv("PRUNECTL_DEBUG", debug)
    assert run(["analyze", "m", "--token", token]) == 1
    out, err = capsys.readouterr()
    assert "user:***@hub" in err
    assert token not in out + err


def test_a_token_in_the_wrong_place_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", "m", TOKEN]) == 2
    assert TOKEN not in capsys.readouterr().err


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert run(["analyze", "./m", "-q"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize("command", few(["prune --help", "--help"]))
def test_a_closed_pipe_is_no_error_message(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "prunectl", *command.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        timeout=300,
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def with_closed(closing: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run prunectl from a shell that closes one of its streams."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {closing}', "sh", sys.executable, "-m", "prunectl", *argv],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        timeout=300,
        check=False,
    )


def small_model() -> None:
    weight = np.arange(64, dtype=np.float32).reshape(8, 8)
    Path("m").mkdir()
    save_file({"layers.0.up.weight": weight}, "m/model.safetensors")


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="needs sh")
def test_with_stderr_closed_only_the_document_is_on_stdout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_model()
    # MODEL is left out, of which a note goes to stderr.
    argv = ["-s", "0.3", "--dry-run", "--json", "--include", "*up*"]
    monkeypatch.chdir("m")
    done = with_closed("2>&-", "prune", *argv)
    assert done.returncode == 0
    assert json.loads(done.stdout)["dry_run"] is True
    failed = with_closed("2>&-", "prune", "./nothing", *argv)
    assert (failed.returncode, failed.stdout) == (1, "")


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="needs sh")
@pytest.mark.parametrize(("closing", "flags"), [(">&-", []), (">&- <&-", ["--json"])])
def test_with_stdout_closed_the_work_is_done(closing: str, flags: list[str]) -> None:
    small_model()
    argv = ["prune", "m", "-s", "0.3", "--include", "*up*", *flags]
    done = with_closed(closing, *argv, "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    zeros = int((load_file("out/model.safetensors")["layers.0.up.weight"] == 0).sum())
    assert zeros == 19


def test_a_device_is_written_into_and_not_replaced(tmp_path: Path) -> None:
    from prunectl.cli.output import save_text

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    save_text(pipe, "text\n")
    assert pipe.is_fifo()
    assert os.read(reader, 100) == b"text\n"
    os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_behind_stdout_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prunectl", "prune", "demo", "-s", "0.3", "-o", "out",
             "--dry-run", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {os.strerror(28)}", "hint: free space on that disk",
    ]  # fmt: skip


# --- names and links ----------------------------------------------------------------------------

LONG, LOOP = "n" * 256, "loop"
Typed = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", few([LONG, LOOP, f"{LOOP}/x", "n" * 5000], LONG, LOOP))
@pytest.mark.parametrize(
    "command",
    [
        "prune demo -s 0.5 -o",
        "prune demo -s 0.5 --dry-run -o",
        "export demo -o",
        "export demo --masks-only -o",
        "analyze demo -o",
        "analyze demo --html",
        "sweep demo --metric perplexity --data text:words.txt --csv",
        "evaluate demo --metric perplexity --data text:words.txt -o",
        "lottery demo --metric perplexity --data text:words.txt -o",
        "compare demo demo -s 0.5 -o",
        "trace demo demo --html",
        "bench demo -o",
        "analyze",
        "verify",
        "push",
        "prune demo -s 0.5 -o out --recipe",
        "prune demo -o out --mask",
        "analyze demo --cache-dir",
    ],
)
def test_a_path_that_cannot_be_has_a_sentence_of_its_own(
    typed: Typed, tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / LOOP).symlink_to(LOOP)
    (tmp_path / "words.txt").write_text("some words and more " * 300)
    _, _, said = typed(*command.split(), name)
    assert "this is a bug" not in said
    assert "Traceback" not in said


def test_a_path_with_a_null_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No system passes one on a command line; callers of the library may."""
    assert run(["analyze", "demo", "-o", "nul\0x"]) == 2
    assert capsys.readouterr().err.endswith("a path holds a null byte, which no system allows\n")
