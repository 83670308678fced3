"""Ranks as people start them: by torchrun on two hosts, by accelerate; and what each one says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import typer
from forked_ranks import SECONDS, Rank, ends, start, until
from full import few
from test_ranks import bytes_in

from prunectl.cli.app import COMMANDS
from prunectl.cli.run import run
from prunectl.cli.several import ALONE, SHARED, TRAINED, joined, words_of_rank
from prunectl.errors import UsageError
from prunectl.parallel.errors import RankFailed, RanksDiffer, RanksLost
from prunectl.parallel.joining import _interruptible, joined_ranks
from prunectl.parallel.link import _own_address
from prunectl.parallel.waiting import answer_to

BIN = Path(sys.executable).parent
PRUNE = ("prune", "model", "--sparsity", "0.4", "-o", "out", "--max-shard-size", "20KB", "--json")
HOSTS = ("10.83.61.1", "10.83.61.2")


def launched(commands: Sequence[Sequence[str | Path]], folder: Path) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each launcher; none of them is left behind."""
    processes = [
        subprocess.Popen(
            list(map(str, command)),
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=SECONDS) for process in processes]
        return [(one.returncode, *both) for one, both in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def alone(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and what one process makes of it."""
    from prunectl.cli.run import run

    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(tiny("llama"), folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PRUNECTL_CACHE_DIR", str(folder / "cache"))
        assert run(PRUNE) == 0
    return folder


@pytest.fixture
def folder(alone: Path, tmp_path: Path) -> Path:
    shutil.copytree(alone / "model", tmp_path / "model")
    return tmp_path


# --- two hosts ----------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces that reach each other by a cable, and nothing else."""
    names = [f"prunectl-{os.getpid()}-{number}" for number in range(2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ends_of_cable = ["netns", names[0], "type", "veth", "peer", "name", "cable1"]
            ip("link", "add", "cable0", *ends_of_cable, "netns", names[1])
            for number, (name, address) in enumerate(zip(names, HOSTS, strict=True)):
                ip("-n", name, "address", "add", f"{address}/24", "dev", f"cable{number}")
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", f"cable{number}", "up")
        except OSError as error:
            pytest.skip(f"no command ip: {error}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield names
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.full
def test_two_hosts_write_the_bytes_that_one_process_writes(
    hosts: list[str], folder: Path, alone: Path
) -> None:
    """The interface is found without GLOO_SOCKET_IFNAME: each host's name may stand for itself."""
    launcher = [BIN / "torchrun", "--nnodes=2", "--nproc-per-node=1", f"--master-addr={HOSTS[0]}"]
    commands = [
        ["ip", "netns", "exec", name, *launcher, f"--node-rank={number}", "--master-port=29417",
         "-m", "prunectl", *PRUNE]
        for number, name in enumerate(hosts)
    ]  # fmt: skip
    (code, out, err), (second, other_out, other_err) = launched(commands, folder)
    assert (code, second) == (0, 0), err + other_err
    assert json.loads(out)["output"] == "out"
    assert other_out == ""
    assert bytes_in(folder / "out") == bytes_in(alone / "out")


def test_a_host_that_cannot_be_found_leaves_the_address_to_gloo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert _own_address() == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "no such host")
    assert _own_address() == ""


# --- accelerate ---------------------------------------------------------------------------------


@pytest.mark.full
def test_processes_of_accelerate_say_one_document(folder: Path, alone: Path) -> None:
    """With --multi_gpu, which needs no GPU; with --cpu it starts one process, or MPI's."""
    launcher = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes=2"]
    more = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command = [*launcher, *more, "--main_process_port=0", "-m", "prunectl", *PRUNE]
    ((code, out, err),) = launched([command], folder)
    assert code == 0, err
    assert json.loads(out)["output"] == "out"
    assert "rank 1" not in err
    assert bytes_in(folder / "out") == bytes_in(alone / "out")


@pytest.mark.full
def test_masks_of_an_output_are_written_by_the_first_alone(folder: Path, alone: Path) -> None:
    words = ["export", str(alone / "out"), "--masks-only", "-o"]
    both = ends(start(2, [*words, "masks.safetensors", "--json"], folder))
    assert [code for code, _, _ in both] == [0, 0], both
    assert json.loads(both[0][1])["schema"] == "prunectl.masks/1"
    assert both[1][1:] == ("", "")
    assert run([*words, str(folder / "one.safetensors"), "-q"]) == 0
    made = [(folder / name).read_bytes() for name in ("masks.safetensors", "one.safetensors")]
    assert made[0] == made[1]


# --- exit codes, and who says it ----------------------------------------------------------------


def test_all_ranks_end_with_what_verify_has_found(folder: Path, alone: Path) -> None:
    shutil.copytree(alone / "out", folder / "out")
    shard = sorted((folder / "out").glob("*.safetensors"))[-1]  # the second rank's
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    first, (second, other_out, other_err) = ends(start(2, ["verify", "out", "--json"], folder))
    code, out, _ = first
    assert (code, second) == (3, 3)
    assert json.loads(out)["ok"] is False
    assert (other_out, other_err) == ("", "")


@pytest.mark.full
def test_a_usage_error_of_all_ranks_is_said_once(folder: Path) -> None:
    (code, out, err), other = ends(start(2, ["prune", "model", "--sparsty", "0.4"], folder))
    assert (code, out) == (2, "")
    assert "--sparsty" in err
    assert other == (2, "", "")


@pytest.mark.parametrize("rank", few([0, 1]))
def test_a_command_for_one_process_is_refused_once(
    rank: int, typed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    code, out, err = typed("compare", "demo", "demo")
    assert (code, out) == (2, "")
    words = "error: compare runs in one process\nhint: start it without accelerate launch or torc"
    assert err.startswith(words) if rank == 0 else err == ""
    # What accelerate shares out by itself, and what asks for no work, is not joined here.
    for argv in (["evaluate", "x"], ["sweep"], ["--version"], [], ["no-such-command"]):
        with joined(argv) as ranks:
            assert ranks is None
    for argv in (["--version"], ["--help"], []):
        code, out, err = typed(*argv)
        assert (code, err) == (0, "")
        assert bool(out) == (rank == 0), "said once"
    code, out, err = typed("no-such-command")
    assert (code, out) == (2, "")
    assert err.startswith("error: no such command") if rank == 0 else err == ""
    names = set(COMMANDS)
    assert names == {*SHARED, *TRAINED, *ALONE}
    monkeypatch.delenv("MASTER_ADDR")  # a batch system's variables alone make no ranks
    for command in SHARED:
        with joined([command]) as ranks:
            assert ranks is None


def test_what_the_first_rank_says_no_other_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    quiet = (
        UsageError("x"),
        typer.BadParameter("x"),
        RankFailed(0, "a", "x"),
        RanksDiffer("weights", 1, hint=""),
    )
    for error in quiet:
        assert words_of_rank(error, "error: x") == "", error
    assert (
        words_of_rank(ValueError("x"), "error: x\nhint: y") == "rank 1: error: x\nrank 1: hint: y"
    )
    monkeypatch.setenv("RANK", "0")
    for error in quiet:
        assert words_of_rank(error, "error: x") == "error: x"


# --- one that stops -------------------------------------------------------------------------------

STOPS = """
import ctypes, os, signal, sys
from prunectl.cli.run import run
from prunectl.parallel import heartbeat, ranks
stops, number, *silent = map(int, sys.argv[1].split())
check = ranks.Ranks.check_source
def check_source(self, *what):
    heartbeat._SILENT = float(silent[self.number])
    if self.number == stops:
        os.kill(os.getpid(), number)
    check(self, *what)
ranks.Ranks.check_source = check_source
code = run(sys.argv[2:])
ctypes.pythonapi.Py_Exit(code)  # what the end of the interpreter destroys must not wait
"""


@pytest.mark.full
def test_of_one_that_is_interrupted_the_others_learn(folder: Path) -> None:
    """typer makes an exit code of the interrupt, which once was taken for an end of the work."""
    how = f"1 {int(signal.SIGTERM)} 600 600"
    first, second = ends(start(2, [how, *PRUNE], folder, STOPS))
    host = socket.gethostname()
    assert first == (130, "", f"error: rank 1 on {host}: was interrupted\n")
    assert second == (130, "", "")
    assert not (folder / "out").exists()


@pytest.mark.full
def test_of_one_that_is_silent_the_others_do_not_wait(folder: Path) -> None:
    """Neither for its part, nor when they end: gloo would, until the other's host is back."""
    silent, others = one_stopped(1, "2 600 600", folder)
    first, third = ends(others, [silent])
    assert first[:2] == (1, "")
    assert re.match("error: rank 1 on its host: has sent no heartbeat for 2 s\nhint: ", first[2])
    assert third == (1, "", "")


@pytest.mark.full
def test_of_the_first_the_others_do_not_wait_either(folder: Path) -> None:
    """It holds the store, of which every call waits. One finds out; another is interrupted."""
    silent, others = one_stopped(0, "600 2 600", folder)
    interrupt(others[1])
    second, third = ends(others, [silent])
    assert second[:2] == (1, "")
    lost = "rank 1: error: the processes lost one another: the rendezvous store has not answered"
    assert re.match(f"{lost} for 2 s\nrank 1: hint: ", second[2]), second[2]
    assert third == (130, "", ""), "the first says it, or nobody"


def one_stopped(stops: int, silent: str, folder: Path) -> tuple[Rank, list[Rank]]:
    """Three ranks, once one of them stands still: that one, and the others."""
    others = start(3, [f"{stops} {int(signal.SIGSTOP)} {silent}", *PRUNE], folder, STOPS)
    stopped = psutil.Process(others[stops].process.pid)
    until(lambda: stopped.status() == psutil.STATUS_STOPPED)
    return others.pop(stops), others


def interrupt(rank: Rank) -> None:
    assert rank.process.pid is not None
    os.kill(rank.process.pid, signal.SIGINT)


def test_a_question_is_waited_for_as_long_as_it_may_be() -> None:
    assert answer_to(lambda: 7, 5.0) == 7
    with pytest.raises(KeyError, match="what the store raises"):
        answer_to(lambda: {}["what the store raises"], 5.0)
    never, stop = threading.Event(), threading.Event()
    with pytest.raises(TimeoutError):
        answer_to(never.wait, 0.2)
    stop.set()
    with pytest.raises(TimeoutError):
        answer_to(never.wait, 600.0, stop)
    never.set()


WAITS = """
import sys
from prunectl.cli.run import run
from prunectl.parallel import rendezvous
rendezvous._PATIENCE = 0.2
note = rendezvous.Note
rendezvous.Note = lambda text: (print("now", flush=True), note(text))[1]
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("quiet", few([False, True]))
def test_waiting_for_the_others_is_told_and_can_be_interrupted(folder: Path, quiet: bool) -> None:
    place = {"WORLD_SIZE": "2", "MASTER_PORT": "0"}
    (rank,) = start(1, [*PRUNE, *["-q"] * quiet], folder, WAITS, **place)
    told = "" if quiet else "rank 0 of 2 waits for the others at 127.0.0.1:0\n"
    until(lambda: rank.out.exists() and rank.out.read_text() == "now\n")
    until(lambda: rank.err.read_text() == told)
    interrupt(rank)
    assert ends([rank]) == [(130, "now\n", f"{told}interrupted\n")]


# --- in a script ----------------------------------------------------------------------------------

SCRIPT = """
import sys
import prunectl
said = []
try:
    with prunectl.joined_ranks() as ranks:
        sys.exit(0)
except SystemExit as error:
    said.append(f"exit {error.code}")
try:
    with prunectl.joined_ranks() as ranks:
        if not ranks.is_first:
            sys.exit(3)
        prunectl.analyze("model", ranks=ranks)
except (SystemExit, prunectl.PrunectlError) as error:
    said.append(f"{type(error).__name__}: {error}")
with prunectl.joined_ranks() as outer, prunectl.joined_ranks() as inner:
    said += [prunectl.analyze("model", ranks=one).source.architecture for one in (inner, outer)]
try:
    with prunectl.joined_ranks() as ranks:
        if ranks.is_first:
            prunectl.prune("model", "out", prunectl.PruneSettings(sparsity=0.4), ranks=ranks)
except prunectl.PrunectlError as error:
    said.append(str(error))
print("\\n".join(said))
"""


@pytest.mark.full
def test_ways_to_leave_the_block(folder: Path) -> None:
    first, second = ends(start(2, [], folder, SCRIPT))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    uneven = "rank 1 and rank 0 do not see the same work to do"
    said = f"RankFailed: rank 1 on {socket.gethostname()}: has ended by itself (3)"
    assert first[1].splitlines() == ["exit 0", said, *2 * ["LlamaForCausalLM"], uneven]
    assert second[1].splitlines() == ["exit 0", "SystemExit: 3", *2 * ["LlamaForCausalLM"], uneven]


RESTARTED = """
import os, signal, sys, time
from prunectl.cli.run import run
from prunectl.parallel.ranks import Ranks
check = Ranks.check_source
def check_source(self, *what):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
        time.sleep(1.2)  # until it has looked for the others' errors twice
    elif not self.is_first:
        os.kill(os.getpid(), signal.SIGKILL)
    check(self, *what)
Ranks.check_source = check_source
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.full
def test_what_torchrun_starts_again_meets_anew(folder: Path, alone: Path) -> None:
    """In the same store, which holds who came the first time, and how they failed."""
    (folder / "script.py").write_text(RESTARTED)
    command = [BIN / "torchrun", "--max-restarts=1", "--nproc-per-node=2", "script.py", *PRUNE]
    ((code, out, err),) = launched([command], folder)
    assert code == 0, err
    assert json.loads(out)["output"] == "out"
    assert "exitcode: -9" in err
    assert bytes_in(folder / "out") == bytes_in(alone / "out")


def test_a_place_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RanksLost, match="'x'") as caught, joined_ranks():
        pass
    assert caught.value.hint.startswith("torchrun and accelerate launch set RANK")


def test_signals_that_come_together_are_one() -> None:
    """The terminal's, and the launcher's for it: the second would end what drops half a shard."""
    dropped = []

    def half_done() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            dropped.append("half a shard")

    with pytest.raises(KeyboardInterrupt), _interruptible():
        half_done()
    assert dropped
