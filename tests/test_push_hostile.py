"""``push`` against folders, cards and servers that are not what they should be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from hubserver import WRITER, Hub, Worker
from hubserver.server import ROUTES

import prunectl
from prunectl.output.card import END, SECTION, START

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    tiny_models.build("bert", home / "source")
    tags = "---\nlicense: mit\ntags: [no, 2024, on]\n---\n# Tiny\n"
    (home / "source" / "README.md").write_text(tags)
    settings = prunectl.PruneSettings(sparsity=0.5, pattern=prunectl.parse_pattern("unstructured"))
    opened = prunectl.open_checkpoint(home / "source")
    prunectl.prune(opened, home / "out", settings, max_shard_size=30_000)
    return home / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """An output of the test's own."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


# --- the folder -------------------------------------------------------------------------------


def test_a_file_that_changes_after_it_was_verified_is_not_published(
    hub: Hub, pusher: Worker, repo: str, out: Path
) -> None:
    shard = out / "model-00002-of-00003.safetensors"

    def change() -> None:
        data = bytearray(shard.read_bytes())
        data[-3] ^= 0x40
        shard.write_bytes(data)

    hub.fail("create", call=change)
    found = pusher.push(out, repo, WRITER)
    assert (found["error"], found["exit"]) == ("PushError", 1)
    assert f"{shard.name} changed while the folder was pushed" in found["text"]
    assert hub.asked("commit") == 0


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_a_pipe_in_the_folder_is_no_file(pusher: Worker, repo: str, out: Path, name: str) -> None:
    (out / name).unlink()
    os.mkfifo(out / name)
    found = pusher.push(out, repo, WRITER)
    assert found["error"] == "NotVerified"
    assert f"{name} is not a regular file" in found["text"]


def test_a_card_that_is_not_utf_8_is_found_before_a_repository_is_made(
    hub: Hub, pusher: Worker, repo: str, out: Path
) -> None:
    card = (out / "README.md").read_bytes()
    (out / "README.md").write_bytes(card + "café".encode("latin-1"))
    found = pusher.push(out, repo, WRITER)
    assert (found["error"], "README.md: is not UTF-8" in found["text"]) == ("BadManifest", True)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "x" * 5000, ".git/config"])
def test_names_that_lead_out_go_nowhere(
    hub: Hub, pusher: Worker, repo: str, out: Path, name: str
) -> None:
    manifest = json.loads((out / "prunectl.json").read_text())
    manifest["files"].append({"name": name, "size": 1, "blake3": "0" * 64})
    (out / "prunectl.json").write_text(json.dumps(manifest))
    found = pusher.push(out, repo, WRITER)
    assert found["error"] in ("BadManifest", "NotVerified")
    assert hub.requests == []


# --- the card ---------------------------------------------------------------------------------


def test_tags_stay_as_they_are_written(hub: Hub, pusher: Worker, repo: str, made: Path) -> None:
    hub.put(repo, {"README.md": b"---\nlicense: mit\ntags:\n- 2023\n- yes\n---\n"})
    pusher.push(made, repo, WRITER)
    front = hub.files(repo)["README.md"].decode().split("---\n")[1]
    for tag in ("no", "2024", "on", "2023", "yes"):
        assert f"\n- '{tag}'\n" in front or f"\n- {tag}\n" in front
    assert not pusher.push(made, repo, WRITER)["changed"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_section_that_is_cut_off_or_there_twice(
    hub: Hub, pusher: Worker, repo: str, made: Path, newline: str
) -> None:
    ours = (made / "README.md").read_text()
    section = SECTION.search(ours)
    assert section is not None
    half = section[0].replace(END, "")
    text = f"---\nlicense: mit\n---\n\nMine.\n\n{half}\n\nMine too.\n".replace("\n", newline)
    hub.put(repo, {"README.md": text.encode()})
    pusher.push(made, repo, WRITER)
    card = hub.files(repo)["README.md"].decode()
    assert card.endswith(text.split("---" + newline, 2)[2])
    assert not pusher.push(made, repo, WRITER)["changed"]
    twice = f"---\nlicense: mit\n---\nA\n\n{section[0]}\nB\n\n{section[0]}\nC\n"
    hub.put(repo, {"README.md": twice.encode()})
    found = pusher.push(made, repo, WRITER)
    assert any("2 sections of prunectl" in note for note in found["notes"])
    after = hub.files(repo)["README.md"].decode()
    assert after.count(START) == 2
    assert "\nB\n" in after


# --- where it goes ----------------------------------------------------------------------------


def test_a_tag_or_a_commit_is_no_branch(hub: Hub, pusher: Worker, repo: str, made: Path) -> None:
    head = hub.put(repo, {"a.txt": b"a"}).oid
    hub.repo(repo).refs["refs/tags/v1"] = head
    for revision in ("v1", head):
        found = pusher.push(made, repo, WRITER, revision=revision)
        assert (found["error"], found["exit"]) == ("InvalidRepository", 2)
        assert "is a tag or a commit there, not a branch" in found["text"]
    assert hub.asked("put") == hub.asked("commit") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"HF_ENDPOINT": "127.0.0.1:9"}, "HF_ENDPOINT is no address"),
        ({"HF_ENDPOINT": "http://["}, "HF_ENDPOINT is no address"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": ""}, "SOCKS proxy"),
    ],
)
def test_an_address_that_is_none(
    hub: Hub, repo: str, made: Path, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prunectl", "push", made, repo],
        env=os.environ | {"HF_HOME": str(tmp_path)} | hub.environment(WRITER) | change,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "this is a bug" not in done.stderr


@pytest.mark.parametrize(
    "route", ["info", "tree", "create", "preupload", "batch", "validate", "commit"]
)
def test_what_answers_is_no_hub(
    hub: Hub, pusher: Worker, repo: str, made: Path, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, path, _ = ROUTES[route]
    monkeypatch.setattr(hub, "lists_sizes", route != "tree")  # else nobody asks for the tree
    bodies: tuple[Any, ...] = ([], None, {}, [1], "x")
    for body in bodies:

        def answer(at: Any, body: Any = body, **_: str) -> None:
            at.answer_json(body)

        with monkeypatch.context() as patch:
            patch.setitem(ROUTES, route, (verb, path, answer))
            found = pusher.push(made, repo, WRITER)
        # A check of the card that says nothing is no reason to stop.
        assert found.get("error") == "PushError" or route == "validate" or found["changed"] is False
        if "error" not in found and route == "validate":
            return
    assert pusher.push(made, repo, WRITER)["files"]


# --- progress ---------------------------------------------------------------------------------


def test_each_file_s_bytes_are_reported_once(
    hub: Hub, pusher: Worker, repo: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "part_size", 7_000)
    hub.fail("put", status=503, headers={"Retry-After": "0"})
    said = pusher.said
    (total, _), *advances = pusher.push(made, repo, WRITER)["uploading"]
    assert sum(count for _, count in advances) == total
    sent = {name: data for name, data in hub.files(repo).items() if name != ".gitattributes"}
    assert sorted(count for _, count in advances) == sorted(map(len, sent.values()))
    assert pusher.said == said
