"""Which files go along with the weights."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from prunectl.checkpoint.sidefiles import (
    is_side_file,
    link_notes,
    list_folder,
    side_files,
    side_files_beside,
)

GO_ALONG = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "modeling_custom.py",
    "LICENSE",
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/model.safetensors",
    "2_Dense/pytorch_model.bin",
    "additional_chat_templates/tool.jinja",
    ".gitattributes",
]

STAY = [
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.00.pth",
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "model.gguf",
    "model.onnx",
    "model.onnx_data",
    "lightning.ckpt",
    "onnx/config.json",
    "openvino/openvino_model.bin",
    "original/params.json",
    "checkpoint-500/config.json",
    "a/checkpoint-500/config.json",
    "runs/events.out.tfevents.1",
    "training_args.bin",
    "optimizer.pt",
    "trainer_state.json",
    "2_Dense/optimizer.pt",
    ".git/config",
    ".cache/huggingface/x.lock",
    "README.md",
    "prunectl.json",
    ".env",
    ".netrc",
    ".DS_Store",
    "1_Pooling/.env",
    "id_rsa",
    "id_ed25519",
    "id_rsa.pub",
    "server.pem",
    "keys/SERVER.PEM",
    "private.key",
    "venv/lib/x.py",
    ".venv/lib/x.py",
    "wandb/run/config.yaml",
    "a/__pycache__/x.pyc",
    "node_modules/x/index.js",
]


def test_what_goes_along_and_what_stays() -> None:
    assert side_files([*STAY, *GO_ALONG]) == tuple(sorted(GO_ALONG))
    assert [name for name in STAY if is_side_file(name)] == []


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        ("config.json", True),
        ("tokenizer.json", True),
        ("tokenizer_config.json", True),
        ("vocab.json", True),
        ("LICENSE.txt", True),
        ("id_rsa", False),
        (".env", False),
        (".netrc", False),
        ("passwords.txt", False),
        ("holiday.jpg", False),
        ("my config.json", False),
        ("thesis.docx", False),
        ("model_b.safetensors", False),
        ("sub/config.json", False),
        ("main.py", False),
        ("vocab.safetensors", False),
        ("README.md", False),
    ],
)
def test_beside_one_file_only_a_model_s_own_names(name: str, goes: bool) -> None:
    assert side_files_beside([name]) == ((name,) if goes else ())


def test_a_folder_is_listed_without_hidden_folders_and_links_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "model", tmp_path / "outside"
    for file in ("a.txt", "b/c/d.txt", "b/.x", ".hidden/e", "b/.git/f", "venv/g", "b/wandb/h"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    outside.mkdir()
    (outside / "secret").touch()
    (root / "link").symlink_to(outside)
    (root / "blob").symlink_to(outside / "secret")
    (root / "b/up").symlink_to("../a.txt")
    (root / "b/chain").symlink_to("../blob")
    (root / "dangling").symlink_to(outside / "gone")
    assert list_folder(root) == ["a.txt", "b/.x", "b/c/d.txt", "b/up", "dangling"]


def test_only_regular_files_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    monkeypatch.chdir(tmp_path)  # a socket's path may be 107 bytes long
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        (tmp_path / "a").touch()
        assert list_folder(tmp_path) == ["a"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_snapshot_s_links_lead_to_its_blobs(tmp_path: Path, through_a_link: bool) -> None:
    repo = tmp_path / "cache/models--org--name"
    snapshot = repo / "snapshots" / "c0ffee"
    (snapshot / "1_Pooling").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (tmp_path / "secret").touch()
    (repo / "blobs/b1").touch()
    (repo / "blobs/b2").symlink_to("b1")
    (repo / "blobs/b3").symlink_to(tmp_path / "secret")
    (snapshot / "config.json").symlink_to("../../blobs/b1")
    (snapshot / "1_Pooling/config.json").symlink_to("../../../blobs/b2")
    (snapshot / "README.md").symlink_to("../../blobs/b1")
    (snapshot / "diary").symlink_to(tmp_path / "secret")
    (snapshot / "notes.txt").symlink_to("../../blobs/b3")
    (snapshot / "weights").symlink_to(tmp_path / "secret")
    if through_a_link:
        (tmp_path / "link").symlink_to(tmp_path / "cache")
        snapshot = tmp_path / "link/models--org--name/snapshots/c0ffee"
    assert list_folder(snapshot) == ["1_Pooling/config.json", "README.md", "config.json"]
    assert link_notes(snapshot, ("weights",)) == (
        "left out: diary, a link that leads elsewhere",
        "left out: notes.txt, a link that leads elsewhere",
    )


def test_blobs_that_lie_elsewhere_are_not_a_snapshot_s(tmp_path: Path) -> None:
    snapshot = tmp_path / "archive/snapshots/m"
    snapshot.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/secret").touch()
    (tmp_path / "archive/blobs").symlink_to(tmp_path / "home")
    (snapshot / "notes.txt").symlink_to("../../blobs/secret")
    assert list_folder(snapshot) == []
