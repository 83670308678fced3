"""The Hub, against a real server on 127.0.0.1: what is fetched, what is kept, what can go wrong.

huggingface_hub reads its settings when it is imported, so each look at the Hub is made by a process
of its own, as a user's would be.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from full import few
from hubserver import STRANGER, WRITER, Hub, environment, python, serve
from safetensors.torch import save as to_safetensors

from prunectl.hub.snapshot import is_repo_id, split_revision

LOOK = """
import json, sys
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import PrunectlError
model, kwargs = json.loads(sys.argv[1])
try:
    c = open_checkpoint(model, **kwargs)
except PrunectlError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error), "hint": error.hint}))
else:
    print(json.dumps({
        "model": c.model, "kind": c.kind, "folder": str(c.folder), "format": c.format,
        "files": [f.name for f in c.files], "tensors": [t.name for t in c.tensors],
        "side_files": list(c.side_files), "repo_id": c.repo_id, "revision": c.revision,
        "commit": c.commit, "identity": c.identity(),
        "notes": list(c.notes), "sha256": [f.sha256 for f in c.files],
    }))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serve(tmp_path / "served") as running:
        yield running


def look(hub_url: str, model: str, offline: bool = False, **kwargs: Any) -> dict[str, Any]:
    """Open ``model`` in a new process, whose Hub is at ``hub_url``."""
    done = python(hub_url, "-c", LOOK, json.dumps([model, kwargs]), offline=offline)
    assert kwargs.get("token", WRITER) not in done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


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


def test_only_what_is_needed_is_fetched_once(hub: Hub) -> None:
    commit = hub.put("org/name", single(), lfs=()).oid
    found = look(hub.url, "org/name")
    assert hub.fetched() == WANTED
    assert found["files"] == ["model.safetensors"]
    assert found["tensors"] == ["a", "b"]
    assert found["kind"] == "hub"
    assert (found["repo_id"], found["revision"], found["commit"]) == ("org/name", None, commit)
    assert found["identity"]["commit"] == commit
    assert Path(found["folder"]).name == commit
    assert set(found["side_files"]) == set(WANTED) - {"model.safetensors", "README.md"}

    hub.requests.clear()
    assert look(hub.url, "org/name") == found
    assert hub.fetched() == []


@pytest.mark.full
def test_the_cache_is_hf_s_own_and_the_given_one(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put("org/name", single(), lfs=()).oid
    folder = Path(look(hub.url, "org/name")["folder"])
    home = Path(os.environ["HF_HOME"])
    assert folder == home / "hub" / "models--org--name" / "snapshots" / commit
    assert (home / "hub" / "models--org--name" / "refs" / "main").read_text() == commit

    other = Path(look(hub.url, "org/name", cache_dir=str(tmp_path))["folder"])
    assert other == tmp_path / "models--org--name" / "snapshots" / commit
    shutil.rmtree(home / "hub")
    found = look(hub.url, "org/name", offline=True, cache_dir=str(tmp_path))
    assert Path(found["folder"]) == other


@pytest.mark.full
def test_shards_are_those_of_the_index(hub: Hub) -> None:
    files = sharded() | {"model-00003-of-00003.safetensors": b"stray"}
    hub.put("org/name", files, lfs=())
    found = look(hub.url, "org/name")
    assert found["tensors"] == ["t1", "t2"]
    assert hub.fetched() == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


@pytest.mark.parametrize("offline", few(["asked for", "refused", "500", "503", "429"], "refused"))
def test_without_the_hub_the_cache_answers(hub: Hub, offline: str) -> None:
    commit = hub.put("org/name", sharded(), lfs=()).oid
    found = look(hub.url, "org/name")
    if offline.isdecimal():
        hub.fail("*", status=int(offline), times=99)
    url = closed_port() if offline == "refused" else hub.url
    hub.requests.clear()
    cached = look(url, "org/name", offline=offline == "asked for")
    assert cached | {"notes": []} == found
    status = f" (HTTP {offline})" if offline.isdecimal() else ""
    note = f"the Hub cannot be reached{status}; using commit {commit[:7]} from the cache"
    assert cached["notes"] == ([] if offline == "asked for" else [note])
    assert offline != "asked for" or hub.requests == []
    by_commit = look(url, f"org/name@{commit}", offline=offline == "asked for")
    assert by_commit["commit"] == commit


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.full
@pytest.mark.parametrize("how", ["offline", "refused", "500", "503", "html"])
def test_unreachable_and_not_cached(hub: Hub, how: str) -> None:
    hub.put("org/name", single(), lfs=())
    if how in ("500", "503", "html"):
        status = 200 if how == "html" else int(how)
        hub.fail("*", status=status, message="<html>please log in</html>", times=99)
    url = closed_port() if how == "refused" else hub.url
    found = look(url, "org/name", offline=how == "offline")
    assert found["error"] == "HubUnreachable"
    assert found["text"].startswith("org/name: ")
    expected = {"offline": "HF_HUB_OFFLINE", "html": "not the Hub"}.get(
        how, "not in the local cache"
    )
    assert expected in found["text"]


@pytest.mark.parametrize("lost", few(["model-00002-of-00002.safetensors", "tokenizer.json"]))
def test_an_interrupted_download_is_not_taken_for_the_model(hub: Hub, lost: str) -> None:
    hub.put("org/name", sharded() | {"tokenizer.json": b"{}"}, lfs=())
    folder = Path(look(hub.url, "org/name")["folder"])
    (folder / lost).unlink()
    found = look(hub.url, "org/name", offline=True)
    assert found["error"] == "HubUnreachable"
    assert lost in found["text"]
    assert look(hub.url, "org/name")["tensors"] == ["t1", "t2"], "online, it is fetched again"


@pytest.mark.full
def test_a_cache_that_others_filled_partly(hub: Hub) -> None:
    hub.put("org/name", single(), lfs=())
    folder = Path(look(hub.url, "org/name")["folder"])
    (folder / "model.safetensors").unlink()
    found = look(hub.url, "org/name", offline=True)
    assert found["error"] == "HubUnreachable"
    assert "the cache lacks model.safetensors" in found["text"]
    shutil.rmtree(folder.parents[1] / "trees")  # others need not have kept the listing
    found = look(hub.url, "org/name", offline=True)
    assert found["error"] == "HubUnreachable"
    assert "the cache has no weights of it" in found["text"]


@pytest.mark.full
def test_a_download_that_is_cut_off_again_and_again(hub: Hub) -> None:
    hub.put("org/name", single(), lfs=())
    hub.fail("resolve", name="model.safetensors", cut="answer", times=99)
    found = look(hub.url, "org/name")
    assert found["error"] == "HubUnreachable"
    assert "org/name: the download was cut off" in found["text"]
    assert look(hub.url, "org/name", offline=True)["error"] == "HubUnreachable"
    hub.faults.clear()
    assert look(hub.url, "org/name")["tensors"] == ["a", "b"]


def test_an_unknown_repository(hub: Hub) -> None:
    found = look(hub.url, "org/missing", token=WRITER)
    assert found["error"] == "ModelNotFound"
    assert "org/missing: neither a local path nor a repository on the Hub" in found["text"]
    # The real Hub does not tell strangers whether a repository exists.
    found = look(hub.url, "org/missing")
    assert found["error"] == "AccessDenied"
    assert "org/missing: not on the Hub, or private" in found["text"]
    assert "HF_TOKEN" in found["hint"]


@pytest.mark.full
@pytest.mark.parametrize("given", ["inline", "option"])
def test_an_unknown_revision(hub: Hub, given: str) -> None:
    hub.put("org/name", single(), lfs=())
    found = (
        look(hub.url, "org/name@v9")
        if given == "inline"
        else look(hub.url, "org/name", revision="v9")
    )
    assert found["error"] == "ModelNotFound"
    assert "org/name@v9: the repository has no such revision" in found["text"]


@pytest.mark.parametrize("revision", few(["v1", "refs/pr/4", "commit"]))
def test_a_revision_is_pinned_to_its_commit(hub: Hub, revision: str) -> None:
    commit = hub.put("org/name", single(), lfs=()).oid
    hub.repo("org/name").refs |= {"refs/heads/v1": commit, "refs/pr/4": commit}
    revision = commit if revision == "commit" else revision
    found = look(hub.url, f"org/name@{revision}")
    assert (found["revision"], found["commit"]) == (revision, commit)
    assert look(hub.url, "org/name", revision=revision)["commit"] == commit
    assert look(hub.url, f"org/name@{revision}", offline=True)["commit"] == commit


@pytest.mark.full
def test_revisions_that_contradict_each_other(hub: Hub) -> None:
    found = look(hub.url, "org/name@v1", revision="v2")
    assert found["error"] == "ModelNotFound"
    assert "v1" in found["text"]
    assert "v2" in found["text"]
    assert hub.requests == []


def test_private_and_gated_repositories(hub: Hub) -> None:
    hub.put("org/private", single(), private=True, lfs=())
    hub.put("org/gated", single(), lfs=())
    hub.repo("org/gated").gated = True
    for model, kwargs in (
        ("org/private", {}),
        ("org/private", {"token": "hf_ofSomebodyElse"}),
        ("org/gated", {}),
        ("org/gated", {"token": STRANGER}),
    ):
        found = look(hub.url, model, **kwargs)
        assert found["error"] == "AccessDenied", (model, kwargs)
        assert found["text"].startswith(f"{model}: ")
        assert "HF_TOKEN" in found["hint"]
        assert model != "org/gated" or "gated" in found["text"]


def test_a_token_opens_and_is_sent_with_every_request(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/private", single(), private=True, lfs=())
    assert look(hub.url, "org/private", token=WRITER)["tensors"] == ["a", "b"]
    assert {one.token for one in hub.requests} == {WRITER}

    hub.requests.clear()
    shutil.rmtree(os.environ["HF_HOME"])
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert look(hub.url, "org/private")["tensors"] == ["a", "b"]
    assert {one.token for one in hub.requests} == {WRITER}


@pytest.mark.full
@pytest.mark.parametrize("token", ["hf_new\nline", "hf_\u00e9t\u00e9", "hf_null\0"])
def test_a_token_that_cannot_be_sent_is_not_shown(hub: Hub, token: str) -> None:
    hub.put("org/name", single(), lfs=())
    found = look(hub.url, "org/name", token=token)
    assert found["error"] == "AccessDenied"
    assert hub.requests == []


@pytest.mark.full
def test_a_repository_without_weights(hub: Hub) -> None:
    hub.put("org/name", {"config.json": b"{}", "tf_model.h5": b"x"}, lfs=())
    found = look(hub.url, "org/name")
    assert found["error"] == "NoWeights"
    assert "tf_model.h5" in found["text"]
    assert hub.fetched() == []


@pytest.mark.full
def test_a_repository_that_is_quantized_for_llama_cpp(hub: Hub) -> None:
    hub.put("org/name", {"README.md": b"", "model.Q4_K_M.gguf": b"x"}, lfs=())
    found = look(hub.url, "org/name")
    assert found["error"] == "UnsupportedCheckpoint"
    assert "GGUF" in found["text"]
    assert hub.fetched() == []


@pytest.mark.full
def test_an_index_that_names_a_shard_the_repository_lacks(hub: Hub) -> None:
    files = sharded()
    del files["model-00002-of-00002.safetensors"]
    hub.put("org/name", files, lfs=())
    found = look(hub.url, "org/name")
    assert found["error"] == "BadCheckpoint"
    assert "model-00002-of-00002.safetensors, which is missing" in found["text"]


def test_the_hub_s_own_sha256_is_kept(hub: Hub) -> None:
    files = sharded()
    _, second = sorted(name for name in files if name.endswith("2.safetensors"))
    hub.put("org/name", files, lfs=(second,))
    expected = [None, hashlib.sha256(files[second]).hexdigest()]
    assert look(hub.url, "org/name")["sha256"] == expected
    assert look(hub.url, "org/name", offline=True)["sha256"] == expected


@pytest.mark.full
def test_names_are_no_patterns(hub: Hub) -> None:
    name = "model[1]*.safetensors"
    hub.put("org/name", {name: weights("a"), "model1x.h5": b"no", "config.json": b"{}"}, lfs=())
    assert look(hub.url, "org/name")["files"] == [name]
    assert hub.fetched() == ["config.json", name]


@pytest.mark.full
def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    hub.put("org/name", single(), lfs=())
    (tmp_path / "file").write_text("in the way")
    found = look(hub.url, "org/name", cache_dir=str(tmp_path / "file"))
    assert found["error"] == "SourceError"
    assert "org/name: the download cannot be stored" in found["text"]
    assert "--cache-dir" in found["hint"]


# --- long downloads -----------------------------------------------------------------------------

CHUNK = 10 << 20
"""As much of a file as huggingface_hub takes from the connection at once."""

LISTEN = """
import json, sys
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.events import Advanced, PhaseDone, PhaseStarted
seen = []
c = open_checkpoint(sys.argv[1], on_event=seen.append)
print(json.dumps({
    "started": [e.total for e in seen if isinstance(e, PhaseStarted)],
    "advanced": sum(e.count for e in seen if isinstance(e, Advanced)),
    "done": len([e for e in seen if isinstance(e, PhaseDone)]),
    "sha256": c.files[0].sha256,
}))
"""


def large(nbytes: int) -> bytes:
    """A safetensors file of this many bytes of random weights."""
    generator = torch.Generator().manual_seed(nbytes)
    return to_safetensors(
        {"a": torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)}
    )


def listen(hub_url: str, model: str) -> tuple[dict[str, Any], str]:
    """What the listener of a download hears, and what stands on stderr."""
    done = python(hub_url, "-c", LISTEN, model)
    return json.loads(done.stdout), done.stderr


@pytest.mark.full
def test_a_file_that_breaks_off_goes_on_where_it_broke(hub: Hub) -> None:
    body = large(4 * CHUNK)
    hub.put("org/name", {"model.safetensors": body}, lfs=("model.safetensors",))
    hub.fail("cdn", cut="answer")
    heard, _ = listen(hub.url, "org/name")
    (span,) = hub.ranges
    first = int(span[1].removeprefix("bytes=").removesuffix("-"))
    assert first >= CHUNK
    assert first % CHUNK == 0
    assert hub.sent["model.safetensors"] == len(body) // 2 + len(body) - first
    blob = Path(os.environ["HF_HOME"], "hub", "models--org--name", "blobs", heard["sha256"])
    assert blob.read_bytes() == body
    assert heard["advanced"] == len(body), "what came twice is counted once"


def test_a_download_that_was_killed_keeps_its_finished_files(hub: Hub) -> None:
    files = sharded() | {"tokenizer.json": b"[]"}
    commit = hub.put("org/name", files, lfs=()).oid
    last = "model-00002-of-00002.safetensors"
    # The answer to the last shard comes when the others are there, and then never.
    asked = threading.Event()
    go_on = threading.Event()

    def wait() -> None:
        asked.set()
        go_on.wait(60)

    hub.fail("resolve", name=last, call=wait)
    command = [sys.executable, "-c", LISTEN, "org/name"]
    process = subprocess.Popen(command, env=environment(hub.url))
    assert asked.wait(60)
    snapshot = Path(os.environ["HF_HOME"], "hub", "models--org--name", "snapshots", commit)
    others = [name for name in files if name not in (last, "pytorch_model.bin")]
    end = time.monotonic() + 60
    while not all((snapshot / name).exists() for name in others):
        assert time.monotonic() < end, "the other files do not come"
        time.sleep(0.02)
    process.kill()
    process.wait()
    go_on.set()
    hub.requests.clear()
    assert look(hub.url, "org/name")["tensors"] == ["t1", "t2"]
    assert hub.fetched() == [last]


@pytest.mark.full
def test_a_download_tells_how_far_it_is(hub: Hub) -> None:
    files = {"model.safetensors": large(CHUNK), "config.json": b"{}", "vocab.txt": b"abc"}
    hub.put("org/name", files, lfs=("model.safetensors",))
    heard, stderr = listen(hub.url, "org/name")
    whole = sum(map(len, files.values()))
    assert (heard["started"], heard["advanced"], heard["done"]) == ([whole], whole, 1)
    assert stderr == "", "no bar is drawn"
    heard, _ = listen(hub.url, "org/name")
    assert (heard["started"], heard["advanced"], heard["done"]) == ([0], 0, 1)


@pytest.mark.full
@pytest.mark.parametrize("quiet", [False, True])
def test_a_command_in_a_log_draws_nothing(hub: Hub, quiet: bool) -> None:
    hub.put("org/name", {"model.safetensors": weights("a"), "config.json": b"{}"}, lfs=())
    done = python(hub.url, "-m", "prunectl", "analyze", "org/name", *(["-q"] if quiet else []))
    assert not re.search(r"\r|\x1b|%\|", done.stdout + done.stderr)
    told = done.stderr.splitlines()
    if quiet:
        assert all(line.startswith("warning: ") for line in told)
        assert done.stdout == ""
    else:
        assert told[0] == "looking for org/name on the Hub and in its cache"


# The real listener for logs, which says something each minute; here at every chunk that comes.
IMPATIENT = """
import sys
from prunectl.cli import progress
from prunectl.cli.run import run
progress.INTERVAL = 0
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.full
def test_a_long_download_leaves_lines_in_a_log(hub: Hub) -> None:
    hub.put("org/name", {"model.safetensors": large(2 * CHUNK)}, lfs=())
    for options, lines in ((), 2), (("-q",), 0):
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
        command = ["-c", IMPATIENT, "prune", "org/name", "-s", "0.3", "--dry-run", *options]
        done = python(hub.url, *command, code=None)
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
