"""The tests' own Hub is strict: what a real one would refuse, it refuses too."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hubserver import WRITER, Hub, serve
from hubserver.cards import check_card
from hubserver.store import git_oid
from hubserver.writing import LFS_JSON

pytestmark = pytest.mark.full

REPO = "org/model"
FILES = {"a.txt": b"text", "sub/b.safetensors": b"weights" * 1000}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "hub") as running:
        running.put(REPO, dict(FILES))
        yield running


def ask(
    hub: Hub, path: str, body: Any = None, token: str | None = WRITER, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, body (JSON where it is some) and headers; redirects are not followed."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        named["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    method = named.pop("method", "GET" if body is None else "POST")
    url = path if path.startswith("http") else hub.url + path
    request = urllib.request.Request(url, data, named, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
    try:
        with opener.open(request, timeout=30) as answer:
            status, raw, found = answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            status, raw, found = error.code, error.read(), dict(error.headers)
    is_json = found.get("Content-Type") == "application/json"
    return status, json.loads(raw) if is_json else raw, found


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def commit(hub: Hub, *lines: dict[str, Any], token: str = WRITER, **header: str) -> tuple[int, Any]:
    first = {"key": "header", "value": {"summary": "s", **header}}
    body = b"\n".join(json.dumps(line).encode() for line in (first, *lines))
    status, answer, _ = ask(
        hub, f"/api/models/{REPO}/commit/main", body, token, Content_Type="application/x-ndjson"
    )
    return status, answer


def text_file(name: str, data: bytes) -> dict[str, Any]:
    value = {"path": name, "content": base64.b64encode(data).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def large_file(name: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha256(data).hexdigest()
    value = {"path": name, "algo": "sha256", "oid": oid, "size": len(data)}
    return {"key": "lfsFile", "value": value}


def batch(hub: Hub, data: bytes, token: str = WRITER) -> tuple[int, Any]:
    item = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
    body = {"operation": "upload", "hash_algo": "sha256", "objects": [item], "ref": {"name": "m"}}
    path = f"/{REPO}.git/info/lfs/objects/batch"
    status, answer, _ = ask(hub, path, body, token, Accept=LFS_JSON)
    return status, answer


def test_large_files_are_elsewhere_and_ranges_are_parts(hub: Hub) -> None:
    path, data = f"/{REPO}/resolve/main/sub/b.safetensors", FILES["sub/b.safetensors"]
    status, _, headers = ask(hub, path)
    assert status == 302
    assert headers["X-Linked-Etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert headers["X-Linked-Size"] == str(len(data))
    address = headers["Location"]
    assert ask(hub, address, token=WRITER)[0] == 400, "the storage must not see tokens"
    assert ask(hub, address.partition("?")[0], token=None)[0] == 403
    assert ask(hub, address, token=None)[1] == data
    for asked, part in (("bytes=2-5", data[2:6]), ("bytes=6990-", data[6990:])):
        status, body, headers = ask(hub, address, token=None, Range=asked)
        assert (status, body) == (206, part)
        assert headers["Content-Range"].endswith(f"/{len(data)}")
    assert ask(hub, address, token=None, Range="bytes=9999-")[0] == 416
    status, body, headers = ask(hub, f"/{REPO}/resolve/main/a.txt")
    assert (status, body, headers["ETag"]) == (200, b"text", f'"{git_oid(b"text")}"')


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([text_file("a.txt", b"text")], 400),
        ([text_file("x.safetensors", b"regular")], 400),
        ([text_file("b.txt", b"1"), text_file("b.txt", b"2")], 400),
        ([text_file("../b.txt", b"1")], 400),
        ([large_file("x.safetensors", b"never uploaded")], 400),
        ([{"key": "deletedFile", "value": {"path": "none"}}], 404),
        ([{"key": "what", "value": {"path": "a.txt"}}], 400),
        ([text_file("README.md", b"---\ntags: text\n---\n")], 400),
        ([text_file("b.txt", b"1"), large_file("x.safetensors", b"never uploaded")], 400),
        ([text_file("b.txt", b"1")], 200),
    ],
)
def test_a_commit_is_whole_or_refused(hub: Hub, lines: list[dict[str, Any]], status: int) -> None:
    before = hub.files(REPO)
    assert commit(hub, *lines)[0] == status
    assert (hub.files(REPO) == before) == (status != 200)


def test_an_upload_must_be_what_it_is_called(hub: Hub) -> None:
    status, answer = batch(hub, b"weights")
    upload = answer["objects"][0]["actions"]["upload"]["href"]
    assert status == 200
    assert ask(hub, upload, b"other", None, method="PUT")[0] == 400
    assert ask(hub, upload, b"weights", WRITER, method="PUT")[0] == 400
    assert ask(hub, upload.partition("?")[0], b"weights", None, method="PUT")[0] == 403
    assert commit(hub, large_file("x.safetensors", b"weights"))[0] == 400
    assert ask(hub, upload, b"weights", None, method="PUT")[0] == 200
    assert "actions" not in batch(hub, b"weights")[1]["objects"][0]
    assert commit(hub, large_file("x.safetensors", b"weights"))[0] == 200
    assert hub.files(REPO)["x.safetensors"] == b"weights"


CARDS = {
    "---\nlicense: mit\nlanguage: no\ntags:\n- a\ndate: 2024-01-01\n---\n": ([], []),
    "# no metadata\n": ([], ["empty or missing yaml metadata in repo card"]),
    "---\ntags: text\n---\n": (['"tags" must be an array of strings'], []),
    "---\ntags: ['2:4']\n---\n": (['"tags" holds the reserved "2:4"'], []),
    "---\nbase_model: a b\n---\n": (["\"base_model\" must be a model id, not 'a b'"], []),
    "---\n- a\n---\n": (["the metadata is not an object"], []),
}


@pytest.mark.parametrize("card", CARDS)
def test_cards_are_looked_at(hub: Hub, card: str) -> None:
    assert check_card(card) == CARDS[card]
    status, answer, _ = ask(hub, "/api/validate-yaml", {"content": card, "repoType": "model"})
    assert status == (400 if CARDS[card][0] else 200)
    assert [error["message"] for error in answer["errors"]] == CARDS[card][0]


CLIENT = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
folder, repo = sys.argv[1:]
api = HfApi()
assert api.whoami()["name"] == "writer"
api.create_repo(repo, private=True)
api.create_branch(repo, branch="dev/x")
api.upload_folder(repo_id=repo, folder_path=folder, revision="dev/x")
made = api.upload_folder(repo_id=repo, folder_path=folder, create_pr=True)
assert made.pr_revision == "refs/pr/1", made
refs = api.list_repo_refs(repo, include_pull_requests=True)
assert [ref.name for ref in refs.branches] == ["main", "dev/x"]
assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
infos = api.get_paths_info(repo, ["a.txt"], revision="dev/x")
assert infos[0].size == 4
found = Path(snapshot_download(repo, revision="dev/x"))
for path in Path(folder).rglob("*"):
    if path.is_file():
        assert (found / path.relative_to(folder)).read_bytes() == path.read_bytes()
"""


def test_the_client_s_own_upload_and_download_work(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(folder), "org/by-hf"],
        env=os.environ | hub.environment(WRITER) | {"HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hub.files("org/by-hf", "dev/x") == hub.files("org/by-hf", "refs/pr/1")
    assert sorted(hub.files("org/by-hf")) == [".gitattributes"]
