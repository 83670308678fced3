"""``--remote``: what is known of a model on the Hub from its headers, and that all of it is true.

The Hub is a real server on 127.0.0.1, which processes of their own look at (hubserver/worker.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from full import few
from hubserver import STRANGER, WRITER, Hub, Worker, python
from safetensors.torch import save as to_safetensors

from prunectl.analysis.remote import remote_space
from prunectl.checkpoint.remote import FIRST_BYTES, LARGE_HEADER, REQUESTS, RemoteModel
from prunectl.cli.run import run
from prunectl.hub.files import HubFile, HubListing

Look = Callable[..., dict[str, Any]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def look(pusher: Worker, cache: Path) -> Look:
    """Opens a model of the Hub, through this test's cache; ``remote`` unless told otherwise."""

    def opened(model: str, how: str = "remote", **options: Any) -> dict[str, Any]:
        return pusher.look(model, how, **{"cache_dir": str(cache)} | options)

    return opened


def files_of(folder: Path) -> dict[str, bytes | Path | None]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


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
    hub: Hub, repo: str, pusher: Worker, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = real_model("minilm")
    commit = hub.put(repo, files_of(folder), lfs=("model.safetensors",)).oid
    done = pusher.type(tmp_path, "analyze", repo, "--remote", "--json")
    remote = done.document
    assert hub.ranges == [("model.safetensors", f"bytes=0-{FIRST_BYTES - 1}")]
    assert hub.sent["model.safetensors"] == FIRST_BYTES
    assert hub.fetched() == ["config.json", "model.safetensors"]
    assert "\r" not in done.err

    local = pusher.type(tmp_path, "analyze", folder, "--json", "--pattern", "none").document
    same = remote["source"].keys() - {"model", "kind", "repo_id", "revision", "commit"}
    assert {key: remote["source"][key] for key in same} == {
        key: local["source"][key] for key in same
    }
    assert remote["schema"] == "prunectl.remote/1"
    assert (remote["repo_id"], remote["commit"]) == (repo, commit)
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


def test_the_plan_is_that_of_a_download_and_the_sizes_come_true(
    hub: Hub, repo: str, pusher: Worker, tmp_path: Path
) -> None:
    tiny_models.build("llama", tmp_path / "model")
    hub.put(repo, files_of(tmp_path / "model"), lfs=("model.safetensors",))
    cached = pusher.home / "hub" / f"models--{repo.replace('/', '--')}"
    words = ("prune", repo, "-s", "0.3", "--exclude", "*.down_proj.weight")
    plan = pusher.type(tmp_path, *words, "--dry-run", "--remote", "--json").document
    space = plan.pop("space")
    assert not list(cached.rglob("model.safetensors"))
    assert plan == pusher.type(tmp_path, *words, "--dry-run", "--json").document

    assert pusher.type(tmp_path, *words, "-o", "out").code == 0
    copied = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    written = sum(copied[name] for name in copied if name not in ("prunectl.json", "README.md"))
    assert space["output_bytes"] == written
    blobs = sum(path.stat().st_size for path in cached.rglob("blobs/*") if path.is_file())
    assert space["hub_bytes"] == blobs
    assert space["download_bytes"] == blobs - len(hub.files(repo)["config.json"])


@pytest.mark.full
def test_the_library_says_what_the_command_line_says(
    hub: Hub, repo: str, pusher: Worker, tmp_path: Path
) -> None:
    tiny_models.build("llama", tmp_path / "model")
    hub.put(repo, files_of(tmp_path / "model"), lfs=("model.safetensors",))
    code = """
import json, prunectl, sys
remote = prunectl.open_remote(sys.argv[1])
settings = prunectl.PruneSettings(sparsity=0.3)
plan = prunectl.plan_prune(remote.headers(), settings).to_json()
plan["space"] = prunectl.remote_space(remote, "out", 20_000).to_json()
print(json.dumps([prunectl.analyze_remote(remote).to_json(), plan]))
"""
    found = json.loads(python(hub.url, "-c", code, repo, cwd=tmp_path).stdout)
    analysis = pusher.type(tmp_path, "analyze", repo, "--remote", "--json").document
    words = f"prune {repo} -s 0.3 -o out --max-shard-size 20KB --dry-run --remote --json"
    plan = pusher.type(tmp_path, *words.split()).document
    for document in (analysis, plan, *found):
        for disk in document["space"]["disks"]:
            del disk["free"], disk["folders"]  # others write to it too; the caches are two
    assert found[0] == analysis
    assert {"dry_run": True, "model": repo, **found[1]} == plan


def test_screens_say_what_is_there_and_what_it_takes(
    hub: Hub, repo: str, pusher: Worker, tmp_path: Path
) -> None:
    hub.put(repo, sharded(20), lfs=())
    _, shown, said = pusher.type(tmp_path, "analyze", repo, "--remote")
    assert f"reading the headers of {repo} on the Hub" in said
    assert "60 tensors" in shown
    assert "8 more (--all shows them)" in shown
    assert "3 files without weights" in shown, "config.json, the index and the tokenizer"
    assert f"fits ({pusher.home / 'hub'} and {tmp_path})" in shown
    assert shown.endswith("No weights were read: headers, sizes and config.json only.\n")
    every = pusher.type(tmp_path, "analyze", repo, "--remote", "--all", "-o", "x.json").out
    assert "model-00020-of-00020.safetensors" in every
    assert "t19.2 " in every
    assert json.loads((tmp_path / "x.json").read_text())["schema"] == "prunectl.remote/1"


def test_what_the_cache_has_is_not_counted_again(hub: Hub, repo: str, look: Look) -> None:
    files = sharded(2)
    hub.put(repo, files, lfs=("model-00001-of-00002.safetensors",))
    first, local, second = look(repo), look(repo, "local"), look(repo)
    sizes = {name: len(data) for name, data in files.items()}
    fetched = ["config.json", "model.safetensors.index.json"]
    assert first["cached"] == fetched
    assert first["download"] == sum(sizes.values()) - sum(sizes[name] for name in fetched)
    assert second["cached"] == sorted(sizes) == second["all"]
    assert second["download"] == 0
    assert first["headers"] == local["headers"]
    # Another commit: what has not changed is in the cache under its content.
    hub.put(repo, {"tokenizer.json": b"[]"})
    assert set(sizes) - set(look(repo)["cached"]) == {"tokenizer.json"}


@pytest.mark.parametrize(
    ("lists_sizes", "knows_ranges"), few([(False, False), (True, False), (False, True)])
)
def test_mirrors_that_can_less(
    hub: Hub, repo: str, look: Look, lists_sizes: bool, knows_ranges: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    files = sharded(3) | {"model-00002-of-00003.safetensors": wide(FIRST_BYTES * 2, seed=1)}
    huge = 64 << 20
    raw = {"big": {"dtype": "U8", "shape": [huge], "data_offsets": [0, huge]}}
    hub.put(repo, files, lfs=())
    hub.put(f"{repo}-huge", {"model.safetensors": framed(raw, bytes(huge))}, lfs=())
    monkeypatch.setattr(hub, "lists_sizes", lists_sizes)
    monkeypatch.setattr(hub, "knows_ranges", knows_ranges)
    assert look(repo)["headers"] == look(repo, "local")["headers"]
    (file,) = look(f"{repo}-huge")["headers"]["files"]
    assert file == ["model.safetensors", huge + 8 + len(json.dumps(raw)), None]
    assert hub.sent["model.safetensors"] < huge / 2, "who has the header hangs up"


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [10, FIRST_BYTES, LARGE_HEADER + 10])
def test_a_longer_header_is_read_by_exactly_one_more_request(
    hub: Hub, repo: str, look: Look, header: int
) -> None:
    body = wide(header)
    length = int.from_bytes(body[:8], "little")
    hub.put(repo, {"model.safetensors": body}, lfs=())
    remote = look(repo)
    more = [] if header < FIRST_BYTES else [f"bytes={FIRST_BYTES}-{length + 7}"]
    assert [span for _, span in hub.ranges] == [f"bytes=0-{FIRST_BYTES - 1}", *more]
    assert remote["headers"] == look(repo, "local")["headers"]


def test_shards_are_read_side_by_side_and_not_all_at_once(hub: Hub, repo: str, look: Look) -> None:
    shards = 3 * REQUESTS
    hub.put(repo, sharded(shards), lfs=())
    # Nobody is answered before as many ask as may ask at the same time.
    together = threading.Barrier(REQUESTS)
    lock, waiting, most = threading.Lock(), [0], [0]

    def wait() -> None:
        with lock:
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
        together.wait(timeout=300)
        with lock:
            waiting[0] -= 1

    hub.fail("resolve", name=".safetensors", call=wait, times=shards)
    found = look(repo)
    assert [file[0] for file in found["headers"]["files"]] == sorted(
        name for name in hub.files(repo) if name.endswith(".safetensors")
    )
    assert len(hub.ranges) == shards
    assert most[0] == REQUESTS


def test_connections_are_kept_for_the_next_request(hub: Hub, repo: str, look: Look) -> None:
    names = [f"model-{i:05}-of-00040.safetensors" for i in range(1, 41)]
    shards = {name: wide(FIRST_BYTES, seed=i) for i, name in enumerate(names)}
    hub.put(repo, shards, lfs=tuple(names))
    assert len(look(repo)["headers"]["tensors"]) == 120
    assert len(hub.ranges) == 2 * len(names)
    # One of each kind for each that asks at the same time, and a few.
    assert len(hub.connections) < len(names)


@pytest.mark.parametrize("times", few([3, 2]))
def test_a_connection_that_breaks_off_is_tried_again(
    hub: Hub, repo: str, look: Look, times: int
) -> None:
    hub.put(repo, {"model.safetensors": wide(50_000)}, lfs=())
    hub.fail("resolve", name="model.safetensors", cut="answer", times=times)
    found = look(repo)
    if times == 3:
        assert found["error"] == "HubUnreachable"
        assert f"{repo}: the download was cut off" in found["text"]
        found = look(repo)
    assert len(found["headers"]["tensors"]) == 3


def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_us(
    hub: Hub, repo: str, look: Look
) -> None:
    files = {"model.safetensors": wide(10), "config.json": b"{}"}
    hub.put(repo, files, private=True, lfs=("model.safetensors",))
    found = look(repo, token=WRITER)
    assert len(found["headers"]["tensors"]) == 3
    at_cdn = [one.token for one in hub.requests if one.route == "cdn"]
    assert {one.token for one in hub.requests if one.route != "cdn"} == {WRITER}
    assert at_cdn == [""]
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert found["headers"]["files"][0][2] == digest


def test_a_revision_is_pinned_to_its_commit(hub: Hub, repo: str, look: Look) -> None:
    commit = hub.put(repo, {"model.safetensors": wide(10)}, lfs=()).oid
    hub.repo(repo).refs |= {"refs/heads/v1": commit, "refs/pr/4": commit}
    for revision in ("v1", "refs/pr/4", commit):
        for found in (look(f"{repo}@{revision}"), look(repo, revision=revision)):
            assert (found["headers"]["revision"], found["headers"]["commit"]) == (revision, commit)
    resolved = [one.path for one in hub.requests if one.route == "resolve"]
    assert {path.split("/")[4] for path in resolved} == {commit}


def test_code_that_comes_with_a_model_is_fetched_where_it_is_trusted(
    hub: Hub, repo: str, look: Look
) -> None:
    files = {"model.safetensors": wide(10), "config.json": b"{}", "modeling_x.py": b"x = 1"}
    hub.put(repo, files, lfs=())
    look(repo)
    assert "modeling_x.py" not in hub.fetched()
    look(repo, trust_remote_code=True)
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


@pytest.mark.parametrize("what", few(HOSTILE, "a list", "an index that lies"))
def test_what_a_download_would_refuse_is_refused_in_the_same_words(
    hub: Hub, repo: str, look: Look, cache: Path, what: str
) -> None:
    commit = hub.put(repo, HOSTILE[what], lfs=()).oid
    remote, local = look(repo), look(repo, "local")
    # An index is fetched to be read, so its own faults are told of the file that was fetched.
    folder = str(cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit)
    texts = [answer["text"].replace(folder, repo) for answer in (remote, local)]
    assert (remote["error"], texts[0]) == (local["error"], texts[1])
    assert len(texts[0]) < 1000


def test_pickles_are_not_read_and_their_sizes_are_shown(
    hub: Hub, repo: str, pusher: Worker, tmp_path: Path
) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"p" * 4321, "vocab.txt": b"v"}
    hub.put(repo, files, lfs=())
    found = pusher.type(tmp_path, "analyze", repo, "--remote", "--json").document
    assert found["format"] == "pickle"
    assert found["source"] is None
    assert found["tensors"] == []
    sizes = {file["name"]: file["nbytes"] for file in found["space"]["files"]}
    assert sizes == {name: len(data) for name, data in files.items()}
    assert "pytorch_model.bin" not in hub.fetched()
    shown = pusher.type(tmp_path, "analyze", repo, "--remote").out
    assert "pickle: tensors cannot be listed without a download" in shown
    assert "4.32 kB" in shown
    code, _, said = pusher.type(tmp_path, "prune", repo, "-s", "0.3", "--dry-run", "--remote")
    assert code == 1
    assert f"error: {repo}: holds pickles; their tensors can be listed" in said
    assert "hint: leave --remote out" in said


@pytest.mark.parametrize("how", ["remote", "local"])
def test_access_revisions_and_names(hub: Hub, repo: str, look: Look, how: str) -> None:
    files = {"model.safetensors": wide(10)}
    private, gated = f"{repo}-private", f"{repo}-gated"
    hub.put(repo, files, lfs=())
    hub.put(private, files, private=True, lfs=())
    hub.put(gated, files, lfs=())
    hub.repo(gated).gated = True
    missing = "neither a local path nor a repository on the Hub" if how == "local" else "neither"
    for model, options, error, text in (
        # The real Hub does not tell strangers whether a repository exists.
        (private, {}, "AccessDenied", f"{private}: not on the Hub, or private"),
        (private, {"token": "hf_ofSomebodyElse"}, "AccessDenied", f"{private}: "),
        (gated, {}, "AccessDenied", "gated"),
        (gated, {"token": STRANGER}, "AccessDenied", "gated"),
        (repo, {"token": "hf_\n"}, "AccessDenied", "characters that no token has"),
        ("org/missing", {}, "AccessDenied", "org/missing: not on the Hub, or private"),
        ("org/missing", {"token": WRITER}, "ModelNotFound", f"org/missing: {missing}"),
        (f"{repo}@v9", {}, "ModelNotFound", f"{repo}@v9: the repository has no such revision"),
        (repo, {"revision": "v9"}, "ModelNotFound", f"{repo}@v9: the repository has no such"),
        (f"{repo}@v1", {"revision": "v2"}, "ModelNotFound", "names revision v1"),
        ("a/b/c", {}, "ModelNotFound", "nor a Hub id"),
        (f"{repo}/model.safetensors", {}, "ModelNotFound", "no such file"),
    ):
        answer = look(model, how, **options)
        assert answer.get("error") == error, (model, options)
        assert text in answer["text"]
        assert answer["hint"] or "names revision" in answer["text"]
        assert error != "AccessDenied" or "HF_TOKEN" in answer["hint"] or "token" in options


@pytest.mark.parametrize("how", ["offline", "refused", *few(["500", "html"])])
def test_without_the_hub_there_is_nothing_to_say(
    hub: Hub, repo: str, look: Look, cache: Path, unreached: dict[str, Worker], how: str
) -> None:
    hub.put(repo, {"model.safetensors": wide(10)}, lfs=())
    # A copy in the cache is no help: what is asked for is what the Hub has.
    assert look(repo, "local")["commit"]
    if how in ("500", "html"):
        status = 200 if how == "html" else int(how)
        hub.fail("*", status=status, message="<html>please log in</html>", times=99)
    by = unreached[how].look if how in unreached else look
    found = by(repo, "remote", cache_dir=str(cache))
    assert found["error"] == "HubUnreachable"
    expected = {"offline": "offline mode is on (HF_HUB_OFFLINE)", "html": "is not the Hub",
                "500": "the Hub cannot be reached (HTTP 500)"}  # fmt: skip
    assert expected.get(how, f"{repo}: the Hub cannot be reached") in found["text"]


def test_a_file_that_the_hub_cannot_give(hub: Hub, repo: str, look: Look) -> None:
    hub.put(repo, {"model.safetensors": wide(10)}, lfs=())
    hub.fail("resolve", name="model.safetensors", status=403)
    found = look(repo)
    text = f"{repo}: the Hub refused access (HTTP 403)"
    assert (found["error"], found["text"]) == ("AccessDenied", text)


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
