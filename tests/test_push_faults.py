"""Everything that can go wrong with a push: what is said, what the Hub shows, and the next try."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from hubserver import PLAIN, READER, SECRETS, STRANGER, UNKNOWN, WRITER, Hub, Worker, worker
from hubserver.server import ROUTES

import prunectl

pytestmark = pytest.mark.full

# The client waits a second longer than it is told to.
AT_ONCE = {"Retry-After": "0"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two outputs of the same model, each of several shards."""
    home = tmp_path_factory.mktemp("outputs")
    tiny_models.build("bert", home / "source")
    opened = prunectl.open_checkpoint(home / "source")
    for name, sparsity in (("old", 0.25), ("new", 0.5)):
        settings = prunectl.PruneSettings(
            sparsity=sparsity, pattern=prunectl.parse_pattern("unstructured")
        )
        assert prunectl.prune(opened, home / name, settings, max_shard_size=30_000).shards == 3
    return home / "old", home / "new"


class Case:
    """A repository of the test's own that holds the old output; the new one is to replace it."""

    def __init__(self, hub: Hub, pusher: Worker, outputs: tuple[Path, Path], repo: str) -> None:
        self.hub, self.pusher, self.repo = hub, pusher, repo
        self.old, self.new = outputs
        assert pusher.push(self.old, repo, WRITER)["changed"]
        hub.requests.clear()

    def push(self, token: str | None = WRITER, **options: Any) -> dict[str, Any]:
        found = self.pusher.push(self.new, self.repo, token, **options)
        assert not [secret for secret in SECRETS if secret in str(found)]
        return found

    def shows(self, folder: Path) -> bool:
        """Whether main is this output, whole."""
        files = self.hub.files(self.repo)
        return files == files | contents(folder)

    def check_states(self) -> None:
        """The Hub never showed anything but its own first commit and whole outputs."""
        known = [contents(self.old), contents(self.new)]
        for state in self.hub.states(self.repo)[1:]:
            own = {k: v for k, v in state.items() if k not in (".gitattributes", "README.md")}
            own.pop("theirs.txt", None)
            assert own in known

    def check_retry(self) -> None:
        """The same command again does what is left to do, and a third time nothing."""
        assert self.hub.faults.left == []
        found = self.push()
        assert "error" not in found, found
        assert self.shows(self.new)
        assert not self.push()["changed"]
        self.check_states()


def contents(folder: Path) -> dict[str, bytes]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {name: (folder / name).read_bytes() for name in names if name != "README.md"}


@pytest.fixture
def case(hub: Hub, pusher: Worker, outputs: tuple[Path, Path], repo: str) -> Iterator[Case]:
    yield Case(hub, pusher, outputs, repo)
    hub.faults.clear()


# --- who may ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (UNKNOWN, "the Hub does not accept the token"),
        (PLAIN, "the Hub does not accept the token"),
        (None, "or there is none (HTTP 401"),
        (READER, "the token may not write there (HTTP 403"),
        (STRANGER, "the token may not write there (HTTP 403"),
    ],
)
def test_a_token_that_is_not_enough(case: Case, token: str | None, said: str) -> None:
    found = case.push(token)
    assert (found["error"], found["exit"]) == ("PushDenied", 1)
    assert said in found["text"]
    assert "hint: give a token with the role write" in found["text"]
    assert case.shows(case.old)
    case.check_retry()


def test_a_token_that_no_header_can_carry(case: Case) -> None:
    found = case.pusher.push(case.new, case.repo, token="hf_bäd\nX-Evil: 1")
    assert found["error"] == "PushDenied"
    assert "characters that no token has" in found["text"]
    assert "Evil" not in found["text"]
    assert case.hub.requests == []


def test_a_new_repository_in_a_namespace_of_others(case: Case) -> None:
    found = case.pusher.push(case.new, "others/model", WRITER)
    assert (found["error"], found["exit"]) == ("PushDenied", 1)
    assert 'under the namespace "others"' in found["text"]


def test_a_gated_repository_takes_a_push_from_its_owner_only(case: Case) -> None:
    case.hub.repo(case.repo).gated = True
    found = case.push(STRANGER, create_pr=True)
    assert (found["error"], found["exit"]) == ("PushDenied", 1)
    assert "gated" in found["text"]
    case.check_retry()


def test_a_hub_that_repeats_the_token(case: Case) -> None:
    accounts = case.hub.store.accounts
    accounts[PLAIN] = accounts[WRITER]
    for token in (WRITER, PLAIN):
        words = f"bad header: Bearer {token}"
        for route, status in (("create", 400), ("info", 403), ("put", 400), ("commit", 403)):
            case.hub.fail(route, status=status, message=words)
            assert "bad header: Bearer ***" in case.push(token)["text"]
        case.hub.repo(case.repo).large.clear()
    del accounts[PLAIN]
    # The key of a signed address is no one's business either.
    case.hub.fail("put", status=400, message="http://s3/x?X-Amz-Security-Token=abc is wrong")
    assert "(HTTP 400: http://s3/x is wrong)" in case.push()["text"]
    case.check_retry()


@pytest.mark.parametrize("token", [PLAIN, READER])
def test_a_traceback_shows_no_token(case: Case, tmp_path: Path, token: str) -> None:
    environment = case.hub.environment(token) | {"PRUNECTL_DEBUG": "1", "HF_DEBUG": "1"}
    done = run_push(case.new, case.repo, environment, tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "PushDenied" in done.stderr
    assert token not in done.stdout + done.stderr


# --- what it is called ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a/b/c", "org/", "/x", "org/-x", "org/a--b", "org/a..b", "org/x.git", "o r/x", "",
             "org/" + "x" * 97, "datasets/org/x", "org/ä"],
)  # fmt: skip
def test_a_name_that_cannot_be(case: Case, name: str) -> None:
    found = case.pusher.push(case.new, name, WRITER)
    assert (found["error"], found["exit"]) == ("InvalidRepository", 2)
    assert "hint: name it ORG/NAME" in found["text"]


def test_a_name_that_only_the_hub_refuses(case: Case) -> None:
    case.hub.fail("create", status=400, message="the name is reserved")
    found = case.push()
    assert (found["error"], found["exit"]) == ("InvalidRepository", 2)
    assert "the name is reserved" in found["text"]
    case.check_retry()


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_name_that_something_else_has(case: Case, kind: str) -> None:
    name = f"org/a-{kind}"
    case.hub.store.create(name, kind)
    found = case.pusher.push(case.new, name, WRITER)
    assert (found["error"], found["exit"]) == ("InvalidRepository", 2)
    assert "taken on the Hub, and not by a model" in found["text"]


# --- the connection ---------------------------------------------------------------------------

# The client repeats these by itself.
REPEATED = ["preupload", "batch", "put", "verify"]
ONCE = ["create", "info", "resolve", "validate", "commit"]
CUTS = [
    *((route, cut) for route in ONCE for cut in ("before", "after")),
    *((route, "before") for route in REPEATED),
    ("put", "middle"),
    ("put", "after"),
    ("commit", "middle"),
]


@pytest.mark.parametrize(("route", "cut"), CUTS)
def test_the_connection_dies(case: Case, route: str, cut: Any) -> None:
    case.hub.fail(route, cut=cut)
    found = case.push()
    if route in REPEATED:
        assert "error" not in found, found
    else:
        assert (found["error"], found["exit"]) == ("PushError", 1)
        assert "the connection broke off" in found["text"]
        assert "hint: repeat the command" in found["text"]
        # A commit whose answer was lost has happened all the same.
        is_done = (route, cut) == ("commit", "after")
        assert case.shows(case.new if is_done else case.old)
    case.check_retry()


def test_every_route_of_a_push_is_cut_somewhere(case: Case) -> None:
    case.push()
    used = {one.route for one in case.hub.requests}
    assert used <= {route for route, _ in CUTS} <= set(ROUTES)


def test_a_hub_that_is_not_there(case: Case, tmp_path: Path) -> None:
    environment = case.hub.environment(WRITER)
    for change, said in (
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is on (HF_HUB_OFFLINE)"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the connection broke off (ConnectError)"),
    ):
        done = run_push(case.new, case.repo, environment | change, tmp_path)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert case.shows(case.old)


def test_what_answers_is_not_the_hub(case: Case) -> None:
    case.hub.fail("info", status=200, message="<html>please log in</html>")
    assert "what answers is not the Hub (no JSON)" in case.push()["text"]
    case.check_retry()


def run_push(
    folder: Path, repo: str, environment: dict[str, str], home: Path, **more: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prunectl", "push", str(folder), repo],
        env=os.environ | {"HF_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **more,
    )


# --- what the Hub refuses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "status", "error", "said"),
    [
        ("commit", 409, "PushConflict", "somebody else has committed meanwhile (HTTP 409"),
        ("commit", 412, "PushConflict", "somebody else has committed meanwhile (HTTP 412"),
        ("commit", 413, "PushError", "the Hub has no room for it (HTTP 413"),
        ("commit", 500, "PushError", "the Hub cannot take it now (HTTP 500"),
        ("commit", 400, "PushError", "the Hub refuses it (HTTP 400"),
        ("put", 413, "PushError", "the Hub has no room for it (HTTP 413"),
        ("put", 507, "PushError", "the Hub has no room for it (HTTP 507"),
        ("put", 403, "PushDenied", "the token may not write there (HTTP 403"),
        ("batch", 402, "PushError", "the Hub has no room for it (HTTP 402"),
        ("create", 429, "PushError", "the Hub cannot take it now (HTTP 429"),
        ("info", 503, "PushError", "the Hub cannot take it now (HTTP 503"),
        ("validate", 502, "PushError", "the Hub cannot take it now (HTTP 502"),
    ],
)
def test_the_hub_refuses(case: Case, route: str, status: int, error: str, said: str) -> None:
    case.hub.fail(route, status=status, message="the disk is full", headers=AT_ONCE)
    found = case.push()
    assert (found["error"], found["exit"]) == (error, 1)
    assert f"{case.repo}: {said}: the disk is full)" in found["text"]
    assert "hint: " in found["text"]
    assert case.shows(case.old)
    case.check_retry()


def test_a_busy_hub_is_waited_for(case: Case) -> None:
    case.hub.fail("put", status=503, headers=AT_ONCE)
    case.hub.fail("preupload", status=429, headers=AT_ONCE)
    found = case.push()
    assert found["changed"]
    assert any("503" in note for note in found["notes"])
    # An address that is signed is a key; it is not shown.
    assert not any("X-Amz-Signature" in note for note in found["notes"])
    case.check_retry()


def test_what_was_uploaded_is_not_uploaded_again(case: Case) -> None:
    case.hub.fail("commit", status=500)
    assert case.push()["error"] == "PushError"
    assert case.hub.asked("put") == 3
    assert case.push()["changed"]
    assert case.hub.asked("put") == 3
    case.check_retry()


def test_a_hub_that_has_left_a_file_out(case: Case) -> None:
    def lose() -> None:
        head = case.hub.repo(case.repo).resolve("main")
        assert head is not None
        del head.files["prunectl.json"]

    # The second look is the one at the finished commit.
    case.hub.fail("info", skip=1, call=lose)
    found = case.push()
    assert (found["error"], found["exit"]) == ("PushError", 1)
    assert "without prunectl.json" in found["text"]
    assert case.push()["changed"]
    assert case.shows(case.new)


# --- others -----------------------------------------------------------------------------------


def test_somebody_commits_in_between(case: Case) -> None:
    case.hub.fail("commit", call=lambda: case.hub.put(case.repo, {"theirs.txt": b"theirs"}))
    found = case.push()
    assert (found["error"], found["exit"]) == ("PushConflict", 1)
    assert "somebody else has committed meanwhile" in found["text"]
    assert "hint: look at what changed, then repeat the command" in found["text"]
    assert case.shows(case.old)
    case.check_retry()
    assert case.hub.files(case.repo)["theirs.txt"] == b"theirs"


def test_a_branch_that_somebody_deletes_in_between(case: Case) -> None:
    refs = case.hub.repo(case.repo).refs
    case.hub.fail("commit", call=lambda: refs.pop("refs/heads/dev"))
    found = case.push(revision="dev")
    assert (found["error"], found["exit"]) == ("PushError", 1)
    assert case.push(revision="dev")["changed"]
    case.check_retry()


def test_two_pushes_at_once(case: Case, tmp_path: Path) -> None:
    """Both reach the commit with the same parent: one wins, the other one is told."""
    together = threading.Barrier(2, timeout=60)
    case.hub.fail("commit", times=2, call=together.wait)
    with worker(case.hub, tmp_path / "two") as other:
        other.start(case.new, case.repo, WRITER)
        case.pusher.start(case.new, case.repo, WRITER)
        found = sorted((other.result(), case.pusher.result()), key=lambda one: "error" in one)
        assert found[0]["changed"]
        assert found[1]["error"] == "PushConflict"
        assert case.shows(case.new)
        again = other.push(case.new, case.repo, WRITER)
        assert not again["changed"]
        assert not [secret for secret in SECRETS if secret in other.said]
    case.check_states()


def test_a_push_that_is_killed_goes_on_where_it_stopped(case: Case, tmp_path: Path) -> None:
    with ExitStack() as stack:
        reached = threading.Event()
        go_on = threading.Event()
        stack.callback(go_on.set)

        def hold() -> None:
            reached.set()
            go_on.wait(60)

        case.hub.fail("commit", call=hold, cut="before")
        process = subprocess.Popen(
            [sys.executable, "-m", "prunectl", "push", str(case.new), case.repo],
            env=os.environ | {"HF_HOME": str(tmp_path)} | case.hub.environment(WRITER),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert reached.wait(120), "the push did not come to its commit"
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert not [secret for secret in SECRETS if secret.encode() in out]
    assert case.shows(case.old)
    uploads = case.hub.asked("put")
    assert uploads == 3
    while case.hub.faults.left:  # the Hub's own thread still lets go of the dead connection
        time.sleep(0.01)
    case.check_retry()
    assert case.hub.asked("put") == uploads


def test_a_file_that_goes_away_while_it_is_pushed(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(case.new, folder)
    case.hub.fail("create", call=lambda: (folder / "config.json").unlink())
    found = case.pusher.push(folder, case.repo, WRITER)
    assert (found["error"], found["exit"]) == ("PushError", 1)
    assert "config.json" in found["text"]
    assert case.shows(case.old)
    case.check_retry()
