"""``--remote``: what is known of a model on the Hub from its headers, and that all of it is true.

The Hub is a real server on 127.0.0.1. huggingface_hub reads its settings when it is imported, so
each look at the Hub is made by a process of its own, as a user's would be.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from full import few
from hubserver import STRANGER, WRITER, Hub, python, serve
from safetensors.torch import save as to_safetensors

from prunectl.analysis.remote import remote_space
from prunectl.checkpoint.remote import FIRST_BYTES, LARGE_HEADER, REQUESTS, RemoteModel
from prunectl.cli.run import run
from prunectl.hub.files import HubFile, HubListing

LOOK = """
import json, sys
from prunectl.checkpoint.remote import open_remote
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import PrunectlError
def described(c):
    return {
        "format": c.format, "tensors": [[t.name, t.spec.dtype.name, list(t.spec.shape), t.file,
        t.offset] for t in c.tensors], "side_files": list(c.side_files), "commit": c.commit,
        "files": [[f.name, f.size, f.sha256] for f in c.files], "revision": c.revision,
        "quantization": c.quantization, "metadata": c.metadata,
    }
for line in sys.stdin:
    how, model, kwargs = json.loads(line)
    try:
        if how == "local":
            answer = described(open_checkpoint(model, **kwargs))
        else:
            remote = open_remote(model, **kwargs)
            answer = {
                "cached": sorted(remote.cached), "all": [f.name for f in remote.files],
                "download": remote.download_bytes, "weights": [f.name for f in remote.weights],
                "format": remote.format, "folder": str(remote.cache),
            }
            if remote.checkpoint is not None:
                answer |= {"headers": described(remote.checkpoint)}
    except PrunectlError as error:
        answer = {"error": type(error).__name__, "text": str(error), "hint": error.hint}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serve(tmp_path / "served") as running:
        yield running


def looks(hub_url: str, *asked: tuple[str, str, dict[str, Any]], offline: bool = False) -> Any:
    """Open models in a new process: ``remote`` or ``local``, the model, and keyword arguments."""
    given = "\n".join(json.dumps(one) for one in asked)
    done = python(hub_url, "-c", LOOK, offline=offline, input=given)
    return [json.loads(line) for line in done.stdout.splitlines()]


def look(hub_url: str, model: str, offline: bool = False, **kwargs: Any) -> dict[str, Any]:
    (answer,) = looks(hub_url, ("remote", model, kwargs), offline=offline)
    return answer  # type: ignore[no-any-return]


def prunectl(hub_url: str, *arguments: str, code: int = 0, cwd: Path | None = None) -> Any:
    """Run a command; what it prints on stdout, read as JSON if it is some, and stderr."""
    done = python(hub_url, "-m", "prunectl", *arguments, code=code, cwd=cwd)
    printed = json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout
    return printed, done.stderr


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def framed(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header, bytes or anything that JSON can say, and this data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def wide(header_bytes: int, *, seed: int = 0) -> bytes:
    """A safetensors file whose header has about this size, with a few bytes of weights."""
    torch.manual_seed(seed)
    tensors = {f"t{seed}.{number}": torch.rand(2) for number in range(3)}
    return to_safetensors(tensors, {"padding": "x" * header_bytes})


def sharded(count: int) -> dict[str, bytes]:
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    weight_map = {f"t{i}.{n}": name for i, name in enumerate(names) for n in range(3)}
    index = {"metadata": {}, "weight_map": weight_map}
    shards = {name: wide(10, seed=i) for i, name in enumerate(names)}
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "tokenizer.json": b'{"a": 1}',
        **shards,
    }


# --- what is said is what a download would have shown -------------------------------------------


@pytest.mark.full
@pytest.mark.real
def test_a_real_model_is_described_from_its_first_bytes(
    hub: Hub, real_model: Callable[[str], Path]
) -> None:
    folder = real_model("minilm")
    commit = hub.put("org/minilm", files_of(folder), lfs=("model.safetensors",)).oid
    remote, stderr = prunectl(hub.url, "analyze", "org/minilm", "--remote", "--json")
    assert hub.ranges == [("model.safetensors", f"bytes=0-{FIRST_BYTES - 1}")]
    assert hub.sent["model.safetensors"] == FIRST_BYTES
    assert hub.fetched() == ["config.json", "model.safetensors"]
    assert "\r" not in stderr

    local, _ = prunectl(hub.url, "analyze", str(folder), "--json", "--pattern", "none")
    same = {
        key
        for key in remote["source"]
        if key not in ("model", "kind", "repo_id", "revision", "commit")
    }
    assert {key: remote["source"][key] for key in same} == {
        key: local["source"][key] for key in same
    }
    assert remote["schema"] == "prunectl.remote/1"
    assert (remote["repo_id"], remote["commit"]) == ("org/minilm", commit)
    for role, group in local["roles"].items():
        if role != "position":  # it has a tensor of integers, which analyze does not measure
            fields = ("tensors", "weights", "prunable_weights", "nbytes")
            assert remote["roles"][role] == {key: group[key] for key in fields}
    said = [(t["name"], t["role"], t["layer"], t["prunable"]) for t in remote["tensors"]]
    assert said == [(t["name"], t["role"], t["layer"], t["prunable"]) for t in local["tensors"]]
    space = remote["space"]
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*")}
    assert {f["name"]: f["nbytes"] for f in space["files"]}.items() <= sizes.items()
    assert space["download_bytes"] == space["hub_bytes"] - sizes["config.json"]


def test_the_plan_is_that_of_a_download_and_the_sizes_come_true(hub: Hub, tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path / "model")
    hub.put("org/tiny", files_of(tmp_path / "model"), lfs=("model.safetensors",))
    arguments = ("prune", "org/tiny", "-s", "0.3", "--exclude", "*.down_proj.weight")
    plan, _ = prunectl(hub.url, *arguments, "--dry-run", "--remote", "--json", cwd=tmp_path)
    space = plan.pop("space")
    assert "model.safetensors" not in [
        path.name for path in (tmp_path / "hf").rglob("*") if path.is_file()
    ]
    downloaded, _ = prunectl(hub.url, *arguments, "--dry-run", "--json")
    assert plan == downloaded

    prunectl(hub.url, *arguments, "-o", str(tmp_path / "out"))
    copied = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    written = sum(copied[name] for name in copied if name not in ("prunectl.json", "README.md"))
    assert space["output_bytes"] == written
    blobs = sum(
        path.stat().st_size for path in (tmp_path / "hf").rglob("blobs/*") if path.is_file()
    )
    assert space["hub_bytes"] == blobs
    config = len(hub.files("org/tiny")["config.json"])
    assert space["download_bytes"] == blobs - config


@pytest.mark.full
def test_the_library_says_what_the_command_line_says(hub: Hub, tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path / "model")
    hub.put("org/tiny", files_of(tmp_path / "model"), lfs=("model.safetensors",))
    code = """
import json, prunectl
remote = prunectl.open_remote("org/tiny")
settings = prunectl.PruneSettings(sparsity=0.3)
plan = prunectl.plan_prune(remote.headers(), settings).to_json()
plan["space"] = prunectl.remote_space(remote, "out", 20_000).to_json()
print(json.dumps([prunectl.analyze_remote(remote).to_json(), plan]))
"""
    done = python(hub.url, "-c", code, cwd=tmp_path)
    analysis, _ = prunectl(hub.url, "analyze", "org/tiny", "--remote", "--json", cwd=tmp_path)
    words = "prune org/tiny -s 0.3 -o out --max-shard-size 20KB --dry-run --remote --json"
    plan, _ = prunectl(hub.url, *words.split(), cwd=tmp_path)
    found = json.loads(done.stdout)
    for document in (analysis, plan, *found):
        for disk in document["space"]["disks"]:
            del disk["free"]  # others write to it too
    assert found[0] == analysis
    assert {"dry_run": True, "model": "org/tiny", **found[1]} == plan


@pytest.mark.full
def test_screens_say_what_is_there_and_what_it_takes(hub: Hub, tmp_path: Path) -> None:
    hub.put("org/many", sharded(20), lfs=())
    shown, stderr = prunectl(hub.url, "analyze", "org/many", "--remote", cwd=tmp_path)
    assert "reading the headers of org/many on the Hub" in stderr
    assert "60 tensors" in shown
    assert "8 more (--all shows them)" in shown
    assert "1 file without weights" not in shown, "config.json, the index and the tokenizer"
    assert "3 files without weights" in shown
    assert f"fits ({tmp_path / 'hf' / 'hub'} and {tmp_path})" in shown
    assert shown.endswith("No weights were read: headers, sizes and config.json only.\n")
    command = ("analyze", "org/many", "--remote", "--all", "-o", "x.json")
    every, _ = prunectl(hub.url, *command, cwd=tmp_path)
    assert "model-00020-of-00020.safetensors" in every
    assert "t19.2 " in every
    assert json.loads((tmp_path / "x.json").read_text())["schema"] == "prunectl.remote/1"


@pytest.mark.full
def test_what_the_cache_has_is_not_counted_again(hub: Hub) -> None:
    files = sharded(2)
    hub.put("org/name", files, lfs=("model-00001-of-00002.safetensors",))
    first, local, second = looks(
        hub.url, ("remote", "org/name", {}), ("local", "org/name", {}), ("remote", "org/name", {})
    )
    sizes = {name: len(data) for name, data in files.items()}
    fetched = ["config.json", "model.safetensors.index.json"]
    assert first["cached"] == fetched
    assert first["download"] == sum(sizes.values()) - sum(sizes[name] for name in fetched)
    assert second["cached"] == sorted(sizes) == second["all"]
    assert second["download"] == 0
    assert first["headers"] == local
    # Another commit: what has not changed is in the cache under its content.
    hub.put("org/name", {"tokenizer.json": b"[]"})
    assert set(sizes) - set(look(hub.url, "org/name")["cached"]) == {"tokenizer.json"}


@pytest.mark.full
@pytest.mark.parametrize("lists_sizes", [True, False])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_mirrors_that_can_less(hub: Hub, lists_sizes: bool, knows_ranges: bool) -> None:
    files = sharded(3) | {"model-00002-of-00003.safetensors": wide(FIRST_BYTES * 2, seed=1)}
    huge = 64 << 20
    raw = {"big": {"dtype": "U8", "shape": [huge], "data_offsets": [0, huge]}}
    hub.put("org/name", files, lfs=())
    hub.put("org/huge", {"model.safetensors": framed(raw, bytes(huge))}, lfs=())
    hub.lists_sizes, hub.knows_ranges = lists_sizes, knows_ranges
    name, local, big = looks(
        hub.url, ("remote", "org/name", {}), ("local", "org/name", {}), ("remote", "org/huge", {})
    )
    assert name["headers"] == local
    assert big["headers"]["files"] == [["model.safetensors", huge + 8 + len(json.dumps(raw)), None]]
    assert hub.sent["model.safetensors"] < huge / 2, "who has the header hangs up"


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("header", few([10, FIRST_BYTES, LARGE_HEADER + 10]))
def test_a_longer_header_is_read_by_exactly_one_more_request(hub: Hub, header: int) -> None:
    body = wide(header)
    length = int.from_bytes(body[:8], "little")
    hub.put("org/name", {"model.safetensors": body}, lfs=())
    (remote, local) = looks(hub.url, ("remote", "org/name", {}), ("local", "org/name", {}))
    assert remote["headers"] == local
    more = [] if header < FIRST_BYTES else [f"bytes={FIRST_BYTES}-{length + 7}"]
    asked = [f"bytes=0-{FIRST_BYTES - 1}", *more]
    assert [span for _, span in hub.ranges] == asked


@pytest.mark.full
def test_shards_are_read_side_by_side_and_not_all_at_once(hub: Hub) -> None:
    shards = 3 * REQUESTS
    hub.put("org/name", sharded(shards), lfs=())
    # Nobody is answered before as many ask as may ask at the same time.
    together = threading.Barrier(REQUESTS)
    lock, waiting, most = threading.Lock(), [0], [0]

    def wait() -> None:
        with lock:
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
        together.wait(timeout=60)
        with lock:
            waiting[0] -= 1

    hub.fail("resolve", name=".safetensors", call=wait, times=shards)
    found = look(hub.url, "org/name")
    assert [file[0] for file in found["headers"]["files"]] == sorted(
        name for name in hub.files("org/name") if name.endswith(".safetensors")
    )
    assert len(hub.ranges) == shards
    assert most[0] == REQUESTS


@pytest.mark.full
def test_connections_are_kept_for_the_next_request(hub: Hub) -> None:
    names = [f"model-{i:05}-of-00040.safetensors" for i in range(1, 41)]
    shards = {name: wide(FIRST_BYTES, seed=i) for i, name in enumerate(names)}
    hub.put("org/name", shards, lfs=tuple(names))
    assert len(look(hub.url, "org/name")["headers"]["tensors"]) == 120
    assert len(hub.ranges) == 2 * len(names)
    # One of each kind for each that asks at the same time, and a few.
    assert len(hub.connections) < len(names)


@pytest.mark.full
@pytest.mark.parametrize("times", [2, 3])
def test_a_connection_that_breaks_off_is_tried_again(hub: Hub, times: int) -> None:
    hub.put("org/name", {"model.safetensors": wide(50_000)}, lfs=())
    hub.fail("resolve", name="model.safetensors", cut="answer", times=times)
    found = look(hub.url, "org/name")
    if times == 2:
        assert len(found["headers"]["tensors"]) == 3
    else:
        assert found["error"] == "HubUnreachable"
        assert "org/name: the download was cut off" in found["text"]
        assert len(look(hub.url, "org/name")["headers"]["tensors"]) == 3


@pytest.mark.full
def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_us(hub: Hub) -> None:
    files = {"model.safetensors": wide(10), "config.json": b"{}"}
    hub.put("org/private", files, private=True, lfs=("model.safetensors",))
    found = look(hub.url, "org/private", token=WRITER)
    assert len(found["headers"]["tensors"]) == 3
    at_cdn = [one.token for one in hub.requests if one.route == "cdn"]
    assert {one.token for one in hub.requests if one.route != "cdn"} == {WRITER}
    assert at_cdn == [""]
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert found["headers"]["files"][0][2] == digest


@pytest.mark.parametrize("revision", few(["v1", "refs/pr/4", "commit"]))
def test_a_revision_is_pinned_to_its_commit(hub: Hub, revision: str) -> None:
    files = {"model.safetensors": wide(10)}
    commit = hub.put("org/name", files, lfs=()).oid
    hub.repo("org/name").refs |= {"refs/heads/v1": commit, "refs/pr/4": commit}
    revision = commit if revision == "commit" else revision
    for found in looks(
        hub.url,
        ("remote", f"org/name@{revision}", {}),
        ("remote", "org/name", {"revision": revision}),
    ):
        assert found["headers"]["revision"] == revision
        assert found["headers"]["commit"] == commit
    resolved = [one.path for one in hub.requests if one.route == "resolve"]
    assert {path.split("/")[4] for path in resolved} == {commit}


@pytest.mark.full
def test_code_that_comes_with_a_model_is_fetched_where_it_is_trusted(hub: Hub) -> None:
    files = {"model.safetensors": wide(10), "config.json": b"{}", "modeling_x.py": b"x = 1"}
    hub.put("org/name", files, lfs=())
    look(hub.url, "org/name")
    assert "modeling_x.py" not in hub.fetched()
    look(hub.url, "org/name", trust_remote_code=True)
    assert "modeling_x.py" in hub.fetched()


# --- what is refused ----------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
MASKS = {"format": "prunectl.masks/1"}
HOSTILE: dict[str, dict[str, bytes]] = {
    "empty file": {"model.safetensors": b""},
    "few bytes": {"model.safetensors": b"1234"},
    "impossible length": {"model.safetensors": b"\xff" * 8 + b"{}"},
    "a length beyond the file": {"model.safetensors": (9000).to_bytes(8, "little") + b"{}"},
    "no JSON": {"model.safetensors": framed(b"{'a'}")},
    "UTF-16": {"model.safetensors": framed('{"a": 1}'.encode("utf-16"))},
    "a list": {"model.safetensors": framed([1])},
    "a name twice": {"model.safetensors": framed(b'{"a": 1, "a": 2}')},
    "data cut off": {"model.safetensors": framed({"a": F32}, b"12")},
    "data left over": {"model.safetensors": framed({"a": F32}, b"12345")},
    "a gap": {"model.safetensors": framed({"a": F32 | {"data_offsets": [4, 8]}}, b"12345678")},
    "an overlap": {"model.safetensors": framed({"a": F32, "b": F32}, b"1234")},
    "a huge shape": {"model.safetensors": framed({"a": F32 | {"shape": [2**62, 2**62]}}, b"1234")},
    "a long name": {"model.safetensors": framed({"a" * 2000: F32}, b"1234")},
    "no tensors": {"model.safetensors": framed({})},
    "masks": {"model.safetensors": framed({"__metadata__": MASKS, "a": F32}, b"1234")},
    "GGUF": {"model.Q4_K_M.gguf": b"x"},
    "nothing": {"config.json": b"{}"},
    "a shard that is missing": {
        key: value for key, value in sharded(2).items() if "00002-of" not in key
    },
    "an index that is none": sharded(2) | {"model.safetensors.index.json": b"[]"},
    "an index that leads out": sharded(2)
    | {"model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}'},
    "an index that lies": sharded(2)
    | {
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"t0.0": "model-00002-of-00002.safetensors"}}
        ).encode()
    },
    "a tensor in two shards": sharded(2)
    | {"model-00002-of-00002.safetensors": sharded(2)["model-00001-of-00002.safetensors"]},
    "two exports": {"model.safetensors": wide(10), "model.prunectl.safetensors": wide(10)},
    "an export": {"model.prunectl.safetensors": wide(10)},
}


@pytest.mark.full
def test_what_a_download_would_refuse_is_refused_in_the_same_words(hub: Hub) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []
    commits: list[str] = []
    for number, files in enumerate(HOSTILE.values()):
        commits.append(hub.put(f"org/h{number}", files, lfs=()).oid)
        asked += [("remote", f"org/h{number}", {}), ("local", f"org/h{number}", {})]
    answers = looks(hub.url, *asked)
    for number, what in enumerate(HOSTILE):
        remote, local = answers[2 * number : 2 * number + 2]
        assert "error" in remote, what
        snapshot = Path(os.environ["HF_HOME"], "hub", f"models--org--h{number}", "snapshots")
        # An index is fetched to be read, so its own faults are told of the file that was fetched.
        texts = [
            answer["text"].replace(str(snapshot / commits[number]), f"org/h{number}")
            for answer in (remote, local)
        ]
        assert (remote["error"], texts[0]) == (local["error"], texts[1]), what
        assert len(texts[0]) < 1000


@pytest.mark.full
def test_pickles_are_not_read_and_their_sizes_are_shown(hub: Hub, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"p" * 4321, "vocab.txt": b"v"}
    hub.put("org/name", files, lfs=())
    found, _ = prunectl(hub.url, "analyze", "org/name", "--remote", "--json")
    assert found["format"] == "pickle"
    assert found["source"] is None
    assert found["tensors"] == []
    sizes = {file["name"]: file["nbytes"] for file in found["space"]["files"]}
    assert sizes == {name: len(data) for name, data in files.items()}
    assert "pytorch_model.bin" not in hub.fetched()
    shown, _ = prunectl(hub.url, "analyze", "org/name", "--remote")
    assert "pickle: tensors cannot be listed without a download" in shown
    assert "4.32 kB" in shown
    command = ("prune", "org/name", "-s", "0.3", "--dry-run", "--remote")
    _, stderr = prunectl(hub.url, *command, code=1)
    assert "error: org/name: holds pickles; their tensors can be listed" in stderr
    assert "hint: leave --remote out" in stderr


def test_access_revisions_and_names(hub: Hub) -> None:
    files = {"model.safetensors": wide(10)}
    hub.put("org/name", files, lfs=())
    hub.put("org/private", files, private=True, lfs=())
    hub.put("org/gated", files, lfs=())
    hub.repo("org/gated").gated = True
    expected = [
        ("org/private", {}, "AccessDenied", "not on the Hub, or private"),
        ("org/private", {"token": "hf_ofSomebodyElse"}, "AccessDenied", "org/private: "),
        ("org/gated", {}, "AccessDenied", "gated"),
        ("org/gated", {"token": STRANGER}, "AccessDenied", "gated"),
        ("org/name", {"token": "hf_\n"}, "AccessDenied", "characters that no token has"),
        ("org/missing", {"token": WRITER}, "ModelNotFound", "org/missing: neither"),
        ("org/name@v9", {}, "ModelNotFound", "org/name@v9: the repository has no such revision"),
        ("org/name@v1", {"revision": "v2"}, "ModelNotFound", "names revision v1"),
        ("a/b/c", {}, "ModelNotFound", "nor a Hub id"),
        ("org/name/model.safetensors", {}, "ModelNotFound", "no such file"),
    ]
    answers = looks(hub.url, *(("remote", model, kwargs) for model, kwargs, _, _ in expected))
    for answer, (model, kwargs, error, text) in zip(answers, expected, strict=True):
        assert answer.get("error") == error, (model, kwargs)
        assert text in answer["text"]
        assert answer["hint"] or "names revision" in answer["text"]


@pytest.mark.full
@pytest.mark.parametrize("how", ["offline", "refused", "500", "html"])
def test_without_the_hub_there_is_nothing_to_say(hub: Hub, how: str) -> None:
    hub.put("org/name", {"model.safetensors": wide(10)}, lfs=())
    # A copy in the cache is no help: what is asked for is what the Hub has.
    assert looks(hub.url, ("local", "org/name", {}))[0]["commit"]
    if how in ("500", "html"):
        status = 200 if how == "html" else int(how)
        hub.fail("*", status=status, message="<html>please log in</html>", times=99)
    url = "http://127.0.0.1:9" if how == "refused" else hub.url
    found = look(url, "org/name", offline=how == "offline")
    assert found["error"] == "HubUnreachable"
    expected = {"offline": "offline mode is on (HF_HUB_OFFLINE)", "html": "is not the Hub",
                "500": "the Hub cannot be reached (HTTP 500)"}  # fmt: skip
    assert expected.get(how, "org/name: the Hub cannot be reached") in found["text"]


@pytest.mark.full
def test_a_file_that_the_hub_cannot_give(hub: Hub) -> None:
    hub.put("org/name", {"model.safetensors": wide(10)}, lfs=())
    hub.fail("resolve", name="model.safetensors", status=403)
    found = look(hub.url, "org/name")
    assert (found["error"], found["text"]) == (
        "AccessDenied",
        "org/name: the Hub refused access (HTTP 403)",
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("analyze demo --remote", "demo is on this machine"),
        ("analyze model --remote", "model is on this machine"),
        ("analyze org/name --remote --pattern 1:4", "--pattern is measured on the weights"),
        ("prune org/name -s 0.3 --remote -o out", "so it needs --dry-run"),
        ("prune ./model -s 0.3 --remote --dry-run", "./model is on this machine"),
    ],
)
def test_options_that_contradict_each_other(
    arguments: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert run(arguments.split()) == 2
    assert complaint in capsys.readouterr().err


# --- space --------------------------------------------------------------------------------------


def model_of(sizes: dict[str, int], cached: set[str], cache: Path) -> RemoteModel:
    files = {name: HubFile(name, size, None, "") for name, size in sizes.items()}
    listing = HubListing("org/name", None, "c" * 40, files)
    weights = tuple(file for file in files.values() if file.name.endswith(".bin"))
    every = tuple(files.values())
    return RemoteModel(
        "org/name", listing, "pickle", weights, every, frozenset(cached), cache, None
    )


def test_needs_on_one_disk_are_added_up(tmp_path: Path) -> None:
    sizes = {"a.bin": 1000, "b.bin": 200, "config.json": 30}
    remote = model_of(sizes, {"b.bin"}, tmp_path / "no" / "cache" / "yet")
    space = remote_space(remote, tmp_path / "out")
    assert (space.hub_bytes, space.download_bytes, space.output_bytes) == (1230, 1030, 1230)
    (disk,) = space.disks
    assert disk.purposes == ("download", "output")
    assert disk.folders == (str(tmp_path / "no" / "cache" / "yet"), str(tmp_path / "out"))
    assert disk.needed == 1030 + 1230
    # Others write to this disk too, so the number itself may move a little.
    assert disk.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert space.fits
    assert space.to_json()["disks"][0]["fits"] is True


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    space = remote_space(model_of({"a.bin": 10**18}, set(), tmp_path), tmp_path)
    assert not space.fits
    document = space.to_json()
    assert document["fits"] is document["disks"][0]["fits"] is False


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system")
def test_disks_are_told_apart(tmp_path: Path) -> None:
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("both are one file system")
    space = remote_space(model_of({"a.bin": 100}, set(), Path("/dev/shm")), tmp_path)
    assert [(disk.purposes, disk.needed) for disk in space.disks] == [
        (("download",), 100),
        (("output",), 100),
    ]
