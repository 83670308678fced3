"""A user without rights, full disks, few files and threads, jumping clocks: it works or is said."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
from numba.core import caching

import prunectl
from prunectl.cli.errors import describe
from prunectl.errors import CannotWrite
from prunectl.jit import jit
from prunectl.output.osfiles import os_errors
from prunectl.plan.settings import PruneSettings
from prunectl.userdirs import KEPT_PER_KIND, cache_dir, write_cache_file

HALF = PruneSettings(sparsity=0.5)
NOBODY = 65534
Tiny = Callable[[str], Path]
Typed = Callable[..., tuple[int, str, str]]


def tripled(value: int) -> int:
    return 3 * value


# --- numba's cache ------------------------------------------------------------------------------


def test_kernels_run_without_a_place_to_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert jit(tripled)(14) == 42


def test_kernels_run_where_the_place_to_keep_them_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def full(*args: object) -> None:
        asked.append(args)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.FunctionCache, "save_overload", full)
    monkeypatch.setattr(caching.FunctionCache, "load_overload", lambda *args: None)
    assert jit(tripled)(14) == 42
    assert asked


# --- the user's cache and the clock -------------------------------------------------------------


def test_a_clock_that_was_set_back_loses_no_fresh_cache_file() -> None:
    """All others look newer than what has just been written."""
    cache_dir().mkdir(parents=True)
    others = [cache_dir() / f"roles-{number}.json" for number in range(KEPT_PER_KIND + 3)]
    for other in others:
        other.touch()
        os.utime(other, (time.time() + 1e6,) * 2)
    fresh = write_cache_file("roles-fresh.json", lambda file: file.write(b"{}"))
    assert fresh is not None
    assert fresh.exists()
    assert len(list(cache_dir().iterdir())) == KEPT_PER_KIND


@pytest.mark.parametrize("step", [0.0, -3600.0, 1e7])
def test_clocks_that_stand_or_jump(
    tiny: Tiny, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The wall clock by any step; the monotonic one, which cannot go back, stands or leaps."""
    now = [1.7e9]

    def jumped() -> float:
        now[0] += step
        return now[0]

    monkeypatch.setattr(time, "time", jumped)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumped() * 1e9))
    for name in ("monotonic", "perf_counter") if step >= 0 else ():
        monkeypatch.setattr(time, name, jumped)
    for command in (
        "analyze --no-cache",
        "prune -s 0.5 -o out",
        "export --layout packed -o packed",
    ):
        verb, *more = command.split()
        code, _, errors = typed(verb, tiny("bert"), *more)
        assert code == 0, errors
    assert prunectl.verify(tmp_path / "out").ok


# --- what the system refuses --------------------------------------------------------------------


def test_a_current_folder_that_is_gone(typed: Typed, tmp_path: Path, tiny: Tiny) -> None:
    source = tiny("bert")
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    code, _, errors = typed("prune", source, "-s", "0.5", "-o", "out")
    assert code == 1
    assert "bug" not in errors
    with pytest.raises(FileNotFoundError) as caught:
        os.getcwd()  # noqa: PTH109
    assert "the current folder no longer exists" in describe(caught.value, [])[1]


def test_too_many_open_files_are_no_bad_place(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite) as caught, os_errors(tmp_path):
        raise OSError(errno.EMFILE, "Too many open files")
    assert "ulimit -n" in caught.value.hint


def test_too_few_threads_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = describe(RuntimeError("can't start new thread"), [])
    assert code == 1
    assert "start more threads" in text
    assert "bug" not in text


def test_an_unreadable_file_is_named_as_the_source_s(
    tiny: Tiny, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root reads everything, the system's refusal is pretended."""
    source = shutil.copytree(tiny("bert"), tmp_path / "source")
    (source / "LICENSE").write_text("free")
    opened, refused = Path.open, ["LICENSE"]

    def refusing(path: Path, *args: Any, **more: Any) -> Any:
        if path.name in refused and path.parent == source:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **more)

    monkeypatch.setattr(Path, "open", refusing)
    for name in ("LICENSE", "config.json"):
        refused[:] = [name]
        code, _, errors = typed("prune", source, "-s", "0.5", "-o", "out")
        assert code == 1
        assert f"source/{name}: cannot be read: Permission denied" in errors
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- processes of their own ---------------------------------------------------------------------


def as_user(user: int) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []


def child(
    *args: object, user: int = 0, files: int = 0, threads: int = 0, home: object = "/nonexistent"
) -> tuple[int, str]:
    """``prunectl ARGS`` as a user, with at most so many open files or threads; 0: as they are."""

    def limit() -> None:
        if files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        if threads:
            resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))

    kept = ("NUMBA_CACHE_DIR", "PRUNECTL_CACHE_DIR", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in kept}
    env |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [*as_user(user), sys.executable, "-m", "prunectl", *map(str, args)]
    found = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, cwd="/", preexec_fn=limit
    )
    assert "bug" not in found.stderr, found.stderr
    return found.returncode, found.stderr


@pytest.fixture
def open_home(tiny: Tiny) -> Iterator[Path]:
    """A folder that everybody may enter, with a model that everybody may read.

    Skips the test where this process cannot run Python as another user.
    """
    if subprocess.run([*as_user(NOBODY), sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("only root can become another user, who may run this Python")
    # Each run of pytest closes the folder of all runs to others.
    with tempfile.TemporaryDirectory(prefix="prunectl-tests-") as name:
        home = Path(name)
        home.chmod(0o755)
        for file in shutil.copytree(tiny("bert"), home / "source").iterdir():
            file.chmod(0o644)  # the library writes weights for their owner alone
        yield home


@pytest.mark.slow
def test_a_user_without_a_home_or_a_cache(open_home: Path) -> None:
    source, own, closed = open_home / "source", open_home / "own", open_home / "closed"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    closed.mkdir()
    code, errors = child("prune", source, "-s", "0.5", "-o", own / "out", user=NOBODY)
    assert code == 0, errors
    prunectl.prune(source, open_home / "whole", HALF)
    whole, out = reference.contents(open_home / "whole"), reference.contents(own / "out")
    assert out["model.safetensors"] == whole["model.safetensors"]
    code, errors = child("prune", source, "-s", "0.5", "-o", closed / "out", user=NOBODY)
    assert code == 1
    assert f"{closed}/out: cannot write: Permission denied" in errors
    (source / "model.safetensors").chmod(0o600)
    code, errors = child("analyze", source, user=NOBODY)
    assert code == 1
    assert f"{source}/model.safetensors: cannot be read: Permission denied" in errors


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"files": n} for n in (8, 10, 12, 16, 64)]
                         + [{"threads": n} for n in (1, 2, 3, 8)], ids=str)  # fmt: skip
def test_few_files_and_threads(open_home: Path, limits: dict[str, int]) -> None:
    """Each works, or ends in a sentence that names the limit; the output is complete or absent."""
    own = open_home / "own"
    own.mkdir()
    user = NOBODY - 1 if "threads" in limits else 0  # root has as many as there are
    os.chown(own, user, user)
    more = ["-s", "0.5", "--max-shard-size", "10KB", "-o", own / "out"]
    code, errors = child("prune", open_home / "source", *more, user=user, home=own, **limits)
    assert code == 0 or "Too many open files" in errors or "start more threads" in errors
    assert (own / "out").exists() == (code == 0)
    if not code:
        assert prunectl.verify(own / "out").ok


FULL = """
import os, sys
from pathlib import Path
import prunectl
from prunectl.errors import NoSpace
from prunectl.events import Advanced
source, out = Path(sys.argv[1]), Path(sys.argv[2]) / "out"
filler = out.parent / "filler"

def fill(event):
    if isinstance(event, Advanced) and "writing" in event.phase and not filler.exists():
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

settings = prunectl.PruneSettings(sparsity=0.5)
try:
    prunectl.prune(source, out, settings, max_shard_size=10_000, jobs=1, on_event=fill)
    sys.exit("it was not full")
except NoSpace as error:
    assert str(out) in error.message, error.message
assert not out.exists()
filler.unlink()
prunectl.prune(source, out, settings, max_shard_size=10_000)
assert prunectl.verify(out).ok
assert os.listdir(out.parent) == ["out"]
"""


@pytest.mark.slow
def test_a_file_system_that_runs_full_half_way(tiny: Tiny, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    own = ["unshare", "-m", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=2m none {mounted}"
    if not shutil.which("unshare") or subprocess.run([*own, mount]).returncode:
        pytest.skip("no file system can be mounted here")
    script = f'{mount} && exec "$@"'
    found = subprocess.run(
        [*own, script, "sh", sys.executable, "-c", FULL, tiny("bert"), mounted],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
