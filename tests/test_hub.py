"""The Hub, against a real server on 127.0.0.1: what is fetched, what is kept, what can go wrong.

huggingface_hub reads its settings when it is imported, so it is looked at by processes of their own
(hubserver/worker.py). Each test has a cache of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full import few
from hubserver import WRITER, Hub, Worker
from safetensors.torch import save as to_safetensors

from prunectl.hub.snapshot import is_repo_id, split_revision

Look = Callable[..., dict[str, Any]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def look(pusher: Worker, cache: Path) -> Look:
    """Opens a model of the Hub, through this test's cache."""
    return lambda model, **options: pusher.look(model, **{"cache_dir": str(cache)} | options)


def weights(*names: str) -> bytes:
    return to_safetensors({name: torch.ones(2, 2) for name in names})


def single() -> dict[str, bytes]:
    """A repository with the same weights in many formats, and much that is none of our business."""
    return {
        ".gitattributes": b"* lfs",
        "README.md": b"# card",
        "LICENSE": b"free",
        "config.json": b"{}",
        # Equal files would be fetched once.
        "tokenizer.json": b'{"a": 1}',
        "1_Pooling/config.json": b'{"b": 2}',
        "model.safetensors": weights("a", "b"),
        "pytorch_model.bin": b"pickle",
        "tf_model.h5": b"h5",
        "flax_model.msgpack": b"flax",
        "rust_model.ot": b"rust",
        "onnx/model.onnx": b"onnx",
        "optimizer.pt": b"state",
        "training_args.bin": b"args",
        "checkpoint-500/model.safetensors": b"old",
    }


WANTED = [
    ".gitattributes",
    "1_Pooling/config.json",
    "LICENSE",
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
]


def sharded() -> dict[str, bytes]:
    shards = {f"model-0000{i}-of-00002.safetensors": weights(f"t{i}") for i in (1, 2)}
    names = {f"t{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    index = json.dumps({"metadata": {}, "weight_map": names}).encode()
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        "pytorch_model.bin": b"pickle",
        **shards,
    }


def test_only_what_is_needed_is_fetched_once(
    hub: Hub, repo: str, look: Look, pusher: Worker, cache: Path
) -> None:
    commit = hub.put(repo, single(), lfs=()).oid
    found = look(repo)
    assert hub.fetched() == WANTED
    assert found["files"] == ["model.safetensors"]
    assert found["tensors"] == ["a", "b"]
    assert found["kind"] == "hub"
    assert (found["repo_id"], found["revision"], found["commit"]) == (repo, None, commit)
    assert found["identity"]["commit"] == commit
    # In huggingface_hub's own cache, or the one that is given.
    folder = cache / f"models--{repo.replace('/', '--')}"
    assert Path(found["folder"]) == folder / "snapshots" / commit
    assert (folder / "refs" / "main").read_text() == commit
    assert pusher.home in Path(pusher.look(repo)["folder"]).parents
    assert set(found["side_files"]) == set(WANTED) - {"model.safetensors", "README.md"}

    hub.requests.clear()
    assert look(repo) | {"heard": 0} == found | {"heard": 0}
    assert hub.fetched() == []


@pytest.mark.full
def test_shards_are_those_of_the_index(hub: Hub, repo: str, look: Look) -> None:
    hub.put(repo, sharded() | {"model-00003-of-00003.safetensors": b"stray"}, lfs=())
    assert look(repo)["tensors"] == ["t1", "t2"]
    assert hub.fetched() == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


@pytest.mark.parametrize("how", ["offline", "refused", *few(["500", "503", "429"])])
def test_without_the_hub_the_cache_answers(
    hub: Hub, repo: str, look: Look, cache: Path, unreached: dict[str, Worker], how: str
) -> None:
    commit = hub.put(repo, sharded(), lfs=()).oid
    found = look(repo)
    if how.isdecimal():
        hub.fail("*", status=int(how), times=99)
    hub.requests.clear()

    def without(model: str) -> dict[str, Any]:
        by = unreached[how].look if how in unreached else look
        return by(model, cache_dir=str(cache))

    cached = without(repo)
    assert cached | {"notes": [], "heard": 0} == found | {"heard": 0}
    status = f" (HTTP {how})" if how.isdecimal() else ""
    note = f"the Hub cannot be reached{status}; using commit {commit[:7]} from the cache"
    assert cached["notes"] == ([] if how == "offline" else [note])
    assert how != "offline" or hub.requests == []
    assert without(f"{repo}@{commit}")["commit"] == commit


@pytest.mark.parametrize("how", ["offline", "refused", *few(["500", "503", "html"])])
def test_unreachable_and_not_cached(
    hub: Hub, repo: str, look: Look, cache: Path, unreached: dict[str, Worker], how: str
) -> None:
    hub.put(repo, single(), lfs=())
    if how in ("500", "503", "html"):
        status = 200 if how == "html" else int(how)
        hub.fail("*", status=status, message="<html>please log in</html>", times=99)
    by = unreached[how].look if how in unreached else look
    found = by(repo, cache_dir=str(cache))
    assert found["error"] == "HubUnreachable"
    assert found["text"].startswith(f"{repo}: ")
    expected = {"offline": "HF_HUB_OFFLINE", "html": "not the Hub"}
    assert expected.get(how, "not in the local cache") in found["text"]


@pytest.mark.parametrize("lost", few(["model-00002-of-00002.safetensors", "tokenizer.json"]))
def test_an_interrupted_download_is_not_taken_for_the_model(
    hub: Hub, repo: str, look: Look, cache: Path, unreached: dict[str, Worker], lost: str
) -> None:
    hub.put(repo, sharded() | {"tokenizer.json": b"{}"}, lfs=())
    folder = Path(look(repo)["folder"])
    (folder / lost).unlink()
    found = unreached["offline"].look(repo, cache_dir=str(cache))
    assert found["error"] == "HubUnreachable"
    assert f"the cache lacks {lost}" in found["text"]
    assert look(repo)["tensors"] == ["t1", "t2"], "online, it is fetched again"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    shutil.rmtree(folder.parents[1] / "trees")  # others need not have kept the listing
    found = unreached["offline"].look(repo, cache_dir=str(cache))
    assert found["error"] == "HubUnreachable"


def test_a_download_that_is_cut_off_again_and_again(hub: Hub, repo: str, look: Look) -> None:
    hub.put(repo, single(), lfs=())
    hub.fail("resolve", name="model.safetensors", cut="answer", times=99)
    found = look(repo)
    assert found["error"] == "HubUnreachable"
    assert f"{repo}: the download was cut off" in found["text"]
    hub.faults.clear()
    assert look(repo)["tensors"] == ["a", "b"]


def test_a_revision_is_pinned_to_its_commit(
    hub: Hub, repo: str, look: Look, cache: Path, unreached: dict[str, Worker]
) -> None:
    commit = hub.put(repo, single(), lfs=()).oid
    hub.repo(repo).refs |= {"refs/heads/v1": commit, "refs/pr/4": commit}
    for revision in ("v1", "refs/pr/4", commit):
        found = look(f"{repo}@{revision}")
        assert (found["revision"], found["commit"]) == (revision, commit)
        assert look(repo, revision=revision)["commit"] == commit
        offline = unreached["offline"].look(f"{repo}@{revision}", cache_dir=str(cache))
        assert offline["commit"] == commit


def test_a_token_opens_and_is_sent_with_every_request(
    hub: Hub, repo: str, look: Look, cache: Path
) -> None:
    hub.put(repo, single(), private=True, lfs=())
    for given in ("token", "hf_token"):  # the option, or HF_TOKEN
        hub.requests.clear()
        assert look(repo, **{given: WRITER})["tensors"] == ["a", "b"]
        assert {one.token for one in hub.requests} == {WRITER}
        shutil.rmtree(cache)


@pytest.mark.parametrize("token", ["hf_new\nline", "hf_\u00e9t\u00e9", "hf_null\0"])
def test_a_token_that_cannot_be_sent_is_not_shown(
    hub: Hub, repo: str, look: Look, token: str
) -> None:
    hub.put(repo, single(), lfs=())
    found = look(repo, token=token)
    assert found["error"] == "AccessDenied"
    assert token not in str(found)
    assert hub.requests == []


def test_repositories_that_are_no_model(hub: Hub, repo: str, look: Look) -> None:
    without = sharded()
    del without["model-00002-of-00002.safetensors"]
    for number, (files, fetched, error, text) in enumerate((
        ({"config.json": b"{}", "tf_model.h5": b"x"}, 0, "NoWeights", "tf_model.h5"),
        ({"README.md": b"", "model.Q4_K_M.gguf": b"x"}, 0, "UnsupportedCheckpoint", "GGUF"),
        (without, 3, "BadCheckpoint", "model-00002-of-00002.safetensors, which is missing"),
    )):  # fmt: skip
        hub.put(f"{repo}-{number}", files, lfs=())
        found = look(f"{repo}-{number}")
        assert found["error"] == error
        assert text in found["text"]
        assert len(hub.fetched()) == fetched


def test_the_hub_s_own_sha256_is_kept(
    hub: Hub, repo: str, look: Look, cache: Path, unreached: dict[str, Worker]
) -> None:
    files = sharded()
    _, second = sorted(name for name in files if name.endswith("2.safetensors"))
    hub.put(repo, files, lfs=(second,))
    expected = [None, hashlib.sha256(files[second]).hexdigest()]
    assert look(repo)["sha256"] == expected
    assert unreached["offline"].look(repo, cache_dir=str(cache))["sha256"] == expected


def test_names_are_no_patterns(hub: Hub, repo: str, look: Look) -> None:
    name = "model[1]*.safetensors"
    hub.put(repo, {name: weights("a"), "model1x.h5": b"no", "config.json": b"{}"}, lfs=())
    assert look(repo)["files"] == [name]
    assert hub.fetched() == ["config.json", name]


def test_a_cache_that_cannot_be_written(hub: Hub, repo: str, look: Look, tmp_path: Path) -> None:
    hub.put(repo, single(), lfs=())
    (tmp_path / "file").write_text("in the way")
    found = look(repo, cache_dir=str(tmp_path / "file"))
    assert found["error"] == "SourceError"
    assert f"{repo}: the download cannot be stored" in found["text"]
    assert "--cache-dir" in found["hint"]


# --- long downloads -----------------------------------------------------------------------------

CHUNK = 10 << 20
"""As much of a file as huggingface_hub takes from the connection at once."""


def large(nbytes: int) -> bytes:
    """A safetensors file of this many bytes of random weights."""
    generator = torch.Generator().manual_seed(nbytes)
    return to_safetensors(
        {"a": torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)}
    )


def test_a_file_that_breaks_off_goes_on_where_it_broke(
    hub: Hub, repo: str, look: Look, cache: Path
) -> None:
    body = large(4 * CHUNK)
    hub.put(repo, {"model.safetensors": body}, lfs=("model.safetensors",))
    hub.fail("cdn", cut="answer")
    found = look(repo)
    (span,) = hub.ranges
    first = int(span[1].removeprefix("bytes=").removesuffix("-"))
    assert first >= CHUNK
    assert first % CHUNK == 0
    assert hub.sent["model.safetensors"] == len(body) // 2 + len(body) - first
    (blob,) = cache.glob(f"*/blobs/{found['sha256'][0]}")
    assert blob.read_bytes() == body
    assert found["heard"]["advanced"] == len(body), "what came twice is counted once"


def test_a_download_that_was_killed_keeps_its_finished_files(
    hub: Hub, repo: str, look: Look, cache: Path
) -> None:
    files = sharded() | {"tokenizer.json": b"[]"}
    commit = hub.put(repo, files, lfs=()).oid
    last = "model-00002-of-00002.safetensors"
    # The answer to the last shard comes when the others are there, and then never.
    asked = threading.Event()
    go_on = threading.Event()

    def wait() -> None:
        asked.set()
        go_on.wait(300)

    hub.fail("resolve", name=last, call=wait)
    command = [sys.executable, "-m", "prunectl", "analyze", repo, "--cache-dir", cache]
    process = subprocess.Popen(command, env=os.environ | hub.environment())
    assert asked.wait(300)
    snapshot = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    others = [name for name in files if name not in (last, "pytorch_model.bin")]
    end = time.monotonic() + 300
    while not all((snapshot / name).exists() for name in others):
        assert time.monotonic() < end, "the other files do not come"
        time.sleep(0.02)
    process.kill()
    process.wait()
    go_on.set()
    hub.requests.clear()
    assert look(repo)["tensors"] == ["t1", "t2"]
    assert hub.fetched() == [last]


def test_a_download_tells_how_far_it_is(hub: Hub, repo: str, look: Look, pusher: Worker) -> None:
    files = {"model.safetensors": large(CHUNK), "config.json": b"{}", "vocab.txt": b"abc"}
    hub.put(repo, files, lfs=("model.safetensors",))
    said = pusher.said
    whole = sum(map(len, files.values()))
    assert look(repo)["heard"] == {"started": [whole], "advanced": whole, "done": 1}
    assert look(repo)["heard"] == {"started": [0], "advanced": 0, "done": 1}
    assert pusher.said == said, "no bar is drawn"


def test_a_command_in_a_log_draws_nothing(
    hub: Hub, repo: str, pusher: Worker, tmp_path: Path
) -> None:
    hub.put(repo, {"model.safetensors": weights("a"), "config.json": b"{}"}, lfs=())
    done = pusher.type(tmp_path, "analyze", repo)
    quiet = pusher.type(tmp_path, "analyze", repo, "-q")
    assert not re.search(r"\r|\x1b|%\|", done.out + done.err + quiet.out + quiet.err)
    assert done.err.splitlines()[0] == f"looking for {repo} on the Hub and in its cache"
    assert quiet.out == ""
    assert all(line.startswith("warning: ") for line in quiet.err.splitlines())


# The real listener for logs, which says something each minute; here at every chunk that comes.
IMPATIENT = """
import sys
from prunectl.cli import progress
from prunectl.cli.run import run
progress.INTERVAL = 0
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.full
def test_a_long_download_leaves_lines_in_a_log(hub: Hub, repo: str, tmp_path: Path) -> None:
    hub.put(repo, {"model.safetensors": large(2 * CHUNK)}, lfs=())
    for options, lines in ((), 2), (("-q",), 0):
        words = ["prune", repo, "-s", "0.3", "--dry-run", *options]
        done = subprocess.run(
            [sys.executable, "-c", IMPATIENT, *words, "--cache-dir", tmp_path / f"cache{lines}"],
            env=os.environ | hub.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "nothing to prune" in done.stderr, "bytes are no weights of a block"
        told = re.findall(r"^downloading: (.*)$", done.stderr, re.MULTILINE)
        assert len(told) == lines
        assert not told or told[0].startswith("10.5 MB of 21.0 MB (50%), ")


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("gpt2", True),
        ("org/name", True),
        ("org/name-1.5_b", True),
        ("a/b/c", False),
        ("", False),
        ("/etc/passwd", False),
        ("../x", False),
        ("org/..", False),
        ("org/a..b", False),
        ("org/a--b", False),
        ("org/na me", False),
        ("./org", False),
        ("-x/y", False),
        ("org/", False),
        ("org/name\n", False),
        (f"org/{'n' * 300}", False),
    ],
)
def test_what_looks_like_a_hub_id(text: str, is_id: bool) -> None:
    assert is_repo_id(text) == is_id


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@main", ("org/name", "main")),
        ("org/name@refs/pr/4", ("org/name", "refs/pr/4")),
        ("org/name@a@b", ("org/name", "a@b")),
        ("org/name@", ("org/name", None)),
    ],
)
def test_a_revision_behind_an_at(text: str, parts: tuple[str, str | None]) -> None:
    assert split_revision(text) == parts
