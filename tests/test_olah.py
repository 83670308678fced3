"""Downloads from a server that is none of ours: olah, a mirror of the Hub over git repositories.

It runs offline, and knows a repository by its branches, tags and commits only: ``org/name`` alone
it would look up on the Hub. It answers no ranges, and lists no sizes beside the names.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hubserver import Hub, Store, Worker, worker

pytestmark = [pytest.mark.real, pytest.mark.full]

PATIENCE_S = 300

CONFIG = """
[basic]
host = "127.0.0.1"
port = {port}
hf-scheme = "http"
hf-netloc = "127.0.0.1:9"
hf-lfs-netloc = "127.0.0.1:9"
mirror-scheme = "http"
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
repos-path = "{folder}/repos"
mirrors-path = ["{folder}/mirrors"]

[accessibility]
offline = true
"""


class Mirror(NamedTuple):
    """A running olah, and the commits of its repository ``org/minilm`` by their branch or tag."""

    url: str
    commits: dict[str, str]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=no"]
    done = subprocess.run(
        ["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def mirror(
    real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("olah")
    repo = folder / "mirrors" / "models" / "org" / "minilm"
    shutil.copytree(real_model("minilm"), repo)
    git(repo, "init", "--quiet", "--initial-branch", "main")
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "--message", "first")
    git(repo, "tag", "v1.0")
    (repo / "vocab.txt").write_text("changed")
    git(repo, "commit", "--quiet", "--all", "--message", "second")
    commits = {name: git(repo, "rev-parse", name) for name in ("main", "v1.0")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    (folder / "olah.toml").write_text(CONFIG.format(port=port, folder=folder))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "olah-cli", "-c", "olah.toml"],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/api/models/org/minilm/revision/main", process, folder / "log")
            yield Mirror(url, commits)
        finally:
            process.terminate()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)


@pytest.fixture
def client(mirror: Mirror, tmp_path: Path) -> Iterator[Worker]:
    with worker(Hub(Store(tmp_path / "none"), mirror.url), tmp_path / "client") as running:
        yield running


def test_branches_tags_and_commits_are_downloaded(
    mirror: Mirror, client: Worker, real_model: Callable[[str], Path]
) -> None:
    first = mirror.commits["v1.0"]
    names = ("main", "v1.0", first)
    answers = [client.look(f"org/minilm@{name}") for name in names]
    assert [a["commit"] for a in answers] == [mirror.commits["main"], first, first]
    assert [len(answer["tensors"]) for answer in answers] == [104] * 3
    snapshots = client.home / "hub" / "models--org--minilm" / "snapshots"
    source = real_model("minilm")
    for name in ("model.safetensors", "vocab.txt", "1_Pooling/config.json"):
        found = (snapshots / first / name).read_bytes()
        assert (
            hashlib.sha256(found).digest() == hashlib.sha256((source / name).read_bytes()).digest()
        )
    assert (snapshots / mirror.commits["main"] / "vocab.txt").read_text() == "changed"


def test_headers_are_those_of_the_download(client: Worker) -> None:
    remote = client.look("org/minilm@v1.0", "remote")
    assert remote["cached"] == ["config.json"]
    assert remote["headers"] == client.look("org/minilm@v1.0")["headers"]


def test_what_the_mirror_lacks_is_said(client: Worker) -> None:
    for model in ("org/missing@main", "org/minilm@v9"):
        assert client.look(model)["error"] in ("AccessDenied", "ModelNotFound")
