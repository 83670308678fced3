"""``push`` against a strict Hub on 127.0.0.1: what goes up, what stays, what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hubserver import READER, WRITER, Hub, Worker
from hubserver.cards import check_card

import prunectl
from prunectl.output.card import END, START

MINILM = "org/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Outputs of prunectl: ``three`` shards, ``two`` shards of other zeros, and ``small``."""
    home = tmp_path_factory.mktemp("outputs")
    tiny_models.build("bert", home / "source")
    (home / "source" / "README.md").write_text(
        "---\nlicense: mit\nlanguage: en\ntags:\n- tiny\n---\n# Tiny\n\nIts text.\n"
    )
    opened = prunectl.open_checkpoint(home / "source")
    for name, sparsity, size in (("three", 0.5, 30_000), ("two", 0.25, 45_000)):
        settings = prunectl.PruneSettings(
            sparsity=sparsity, pattern=prunectl.parse_pattern("unstructured")
        )
        made = prunectl.prune(opened, home / name, settings, max_shard_size=size)
        assert made.shards == {"three": 3, "two": 2}[name]
    prunectl.export(prunectl.open_checkpoint(home / "three"), home / "small", "packed")
    return {path.name: path for path in home.iterdir()}


def expected(folder: Path) -> dict[str, bytes]:
    """Files of a folder that must be on the Hub byte for byte: all but the model card."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {name: (folder / name).read_bytes() for name in names if name != "README.md"}


def on_hub(hub: Hub, repo: str, revision: str = "main") -> dict[str, bytes]:
    """Files of a revision, without those that the Hub or people also write."""
    files = hub.files(repo, revision)
    return {name: files[name] for name in files if name not in ("README.md", ".gitattributes")}


def changed(hub: Hub) -> list[str]:
    """Requests that put something on the Hub."""
    return [one.route for one in hub.requests if one.route in ("put", "commit", "branch")]


# --- what goes up -----------------------------------------------------------------------------


def test_a_folder_goes_up_as_one_commit_and_a_second_push_makes_none(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    found = pusher.push(outputs["three"], repo, WRITER)
    assert on_hub(hub, repo) == expected(outputs["three"])
    assert changed(hub) == ["put", "put", "put", "commit"]
    head = hub.repo(repo).resolve("main")
    assert head is not None
    assert (found["changed"], found["commit"]) == (True, head.oid)
    assert found["commit_url"] == f"{hub.url}/{repo}/commit/{head.oid}"
    assert found["files"] == len(found["uploaded"])
    assert set(found["uploaded"]) == {*expected(outputs["three"]), "README.md"}
    assert found["nbytes"] == sum(len(hub.files(repo)[name]) for name in found["uploaded"])
    assert head.title == "prunectl: 50.0% of the prunable weights are zero"
    # The Hub's own first commit, and ours: nobody ever saw a part of the model.
    assert [len(state) for state in hub.states(repo)] == [1, found["files"] + 1]

    hub.requests.clear()
    again = pusher.push(outputs["three"], repo, WRITER)
    assert (again["changed"], again["commit"], again["uploaded"]) == (False, head.oid, [])
    assert changed(hub) == []
    assert not hub.asked("preupload")


def test_a_new_output_replaces_the_old_one_and_leaves_the_rest(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    pusher.push(outputs["three"], repo, WRITER)
    hub.put(repo, {"eval.txt": b"by somebody", "pictures/a.svg": b"<svg/>"})
    found = pusher.push(outputs["two"], repo, WRITER)
    three = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert found["deleted"] == three
    others = {"eval.txt": b"by somebody", "pictures/a.svg": b"<svg/>"}
    assert on_hub(hub, repo) == expected(outputs["two"]) | others
    commits = [len(hub.repo(repo).commits)]
    small = pusher.push(outputs["small"], repo, WRITER)
    assert "model.safetensors.index.json" in small["deleted"]
    assert on_hub(hub, repo) == expected(outputs["small"]) | others
    assert commits == [4], "one commit a push"
    known = [expected(outputs[name]) for name in ("three", "two", "small")]
    for state in hub.states(repo):
        own = {name: state[name] for name in state if name not in (*others, "README.md")}
        own.pop(".gitattributes")
        assert own == {} or own in known


def test_only_what_the_manifest_lists_goes_up(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(outputs["two"], folder)
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "note").write_text("of hf download")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[user]")
    assert pusher.push(folder, repo, WRITER)["changed"]
    assert on_hub(hub, repo) == expected(outputs["two"])


@pytest.mark.parametrize("damage", ["a stray file", "a weight", "a side file", "a missing shard"])
def test_what_does_not_verify_is_not_pushed(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(outputs["three"], folder)
    shard = folder / "model-00002-of-00003.safetensors"
    if damage == "a stray file":
        (folder / "notes.txt").write_text("mine")
    elif damage == "a weight":
        data = bytearray(shard.read_bytes())
        data[-3] ^= 0x40
        shard.write_bytes(data)
    elif damage == "a side file":
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    else:
        shard.unlink()
    found = pusher.push(folder, repo, WRITER)
    assert (found["error"], found["exit"]) == ("NotVerified", 3)
    assert "not pushed, since verification failed" in found["text"]
    assert "prunectl verify" in found["text"]
    assert hub.requests == []


@pytest.mark.full
def test_other_weights_on_the_hub_are_in_the_way_until_they_are_deleted(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    hub.put(repo, {"model.safetensors": b"dense", "pytorch_model.bin": b"pickle", "a.txt": b"a"})
    before = hub.files(repo)
    found = pusher.push(outputs["small"], repo, WRITER)
    assert (found["error"], found["exit"]) == ("PushConflict", 1)
    assert "model.safetensors, pytorch_model.bin" in found["text"]
    assert "--delete 'model.safetensors'" in found["text"]
    assert hub.files(repo) == before
    found = pusher.push(outputs["small"], repo, WRITER, delete=["model.saf*", "*.bin"])
    assert found["deleted"] == ["model.safetensors", "pytorch_model.bin"]
    assert on_hub(hub, repo) == expected(outputs["small"]) | {"a.txt": b"a"}
    assert not pusher.push(outputs["small"], repo, WRITER, delete=["model.saf*"])["changed"]


def test_files_in_parts_arrive_whole(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "part_size", 7_000)
    assert pusher.push(outputs["two"], repo, WRITER)["changed"]
    assert hub.asked("complete") == 2
    assert hub.asked("put") > 10
    assert on_hub(hub, repo) == expected(outputs["two"])


@pytest.mark.full
def test_rules_that_the_hub_adds_to_gitattributes_stay(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], tmp_path: Path
) -> None:
    source, folder = tmp_path / "source", tmp_path / "out"
    shutil.copytree(outputs["source"], source)
    own = b"model.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    (source / ".gitattributes").write_bytes(own)
    settings = prunectl.PruneSettings(sparsity=0.4, pattern=prunectl.parse_pattern("unstructured"))
    prunectl.prune(prunectl.open_checkpoint(source), folder, settings, max_shard_size=45_000)
    hub.put(repo, {".gitattributes": None})
    assert pusher.push(folder, repo, WRITER)["changed"]
    rules = hub.files(repo)[".gitattributes"]
    assert rules.startswith(own)
    assert len(rules) > len(own)
    assert not pusher.push(folder, repo, WRITER)["changed"]
    # What is pulled has the Hub's rules too, and is still what the manifest says.
    pulled = tmp_path / "pulled"
    for name, data in hub.files(repo).items():
        (pulled / name).parent.mkdir(parents=True, exist_ok=True)
        (pulled / name).write_bytes(data)
    assert prunectl.verify(pulled, source=source).differences == ()
    (pulled / ".gitattributes").write_bytes(b"x" + rules)
    assert not prunectl.verify(pulled, source=None).ok


# --- where it goes ----------------------------------------------------------------------------


def test_a_branch_is_made_from_main_and_main_stays(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    hub.put(repo, {"notes.txt": b"main"})
    main = hub.files(repo)
    found = pusher.push(outputs["two"], repo, WRITER, revision="runs/sparsity-25")
    assert (found["revision"], found["changed"]) == ("runs/sparsity-25", True)
    assert hub.files(repo) == main
    branch = on_hub(hub, repo, "runs/sparsity-25")
    assert branch == expected(outputs["two"]) | {"notes.txt": b"main"}
    assert not pusher.push(outputs["two"], repo, WRITER, revision="runs/sparsity-25")["changed"]
    bad = pusher.push(outputs["two"], repo, WRITER, revision="a..b")
    assert (bad["error"], bad["exit"]) == ("InvalidRepository", 2)
    assert "'a..b'" in bad["text"]


def test_a_pull_request_is_made_once(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    hub.put(repo, {"notes.txt": b"main"})
    main = hub.files(repo)
    options = {"create_pr": True, "commit_message": "Prune", "commit_description": "as asked"}
    # Who may only read can suggest.
    found = pusher.push(outputs["two"], repo, READER, **options)
    assert found["pull_request"] == f"{hub.url}/{repo}/discussions/1"
    assert hub.files(repo) == main
    suggested = hub.repo(repo).resolve("refs/pr/1")
    assert suggested is not None
    assert (suggested.title, suggested.description) == ("Prune", "as asked")
    assert on_hub(hub, repo, "refs/pr/1") == expected(outputs["two"]) | {"notes.txt": b"main"}
    again = pusher.push(outputs["two"], repo, READER, **options)
    assert (again["changed"], again["pull_request"]) == (False, found["pull_request"])
    other = pusher.push(outputs["three"], repo, READER, **options)
    assert other["pull_request"] == f"{hub.url}/{repo}/discussions/2"
    bad = pusher.push(outputs["two"], repo, READER, create_pr=True, revision="dev")
    assert (bad["error"], bad["exit"]) == ("InvalidOption", 2)


def test_private_is_private_or_nothing(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    pusher.push(outputs["two"], repo, WRITER, private=True)
    assert hub.repo(repo).private
    assert not pusher.push(outputs["two"], repo, WRITER, private=True)["changed"]
    public = f"{repo}-public"
    hub.put(public, {"a.txt": b"a"})
    found = pusher.push(outputs["two"], public, WRITER, private=True)
    assert (found["error"], found["exit"]) == ("InvalidRepository", 2)
    assert "is public" in found["text"]
    assert "config.json" not in hub.files(public)
    found = pusher.push(outputs["two"], public, WRITER, exist_ok=False)
    assert (found["error"], "exists already" in found["text"]) == ("InvalidRepository", True)


# --- the model card ---------------------------------------------------------------------------


def test_the_card_on_the_hub_says_where_it_is_and_what_was_done(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    pusher.push(outputs["small"], repo, WRITER)
    card = hub.files(repo)["README.md"].decode()
    assert f'from_pretrained("{repo}", dtype="auto")' in card
    assert "import prunectl" in card
    assert "path/to/this/folder" in (outputs["small"] / "README.md").read_text()
    for line in ("license: mit", "language: en", "library_name: transformers", "- tiny",
                 "- pruned", "- sparsity-50", "- sparsity-unstructured"):  # fmt: skip
        assert f"\n{line}\n" in card
    assert check_card(card) == ([], [])


def test_what_people_wrote_into_the_card_stays(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    pusher.push(outputs["three"], repo, WRITER)
    card = hub.files(repo)["README.md"].decode()
    assert card.count(START) == 1
    edited = card.replace("Its text.", "Their text.").replace("license: mit\n", "")
    edited = edited.replace("- tiny\n", "- tiny\n- theirs\n") + "\n## Results\n\nGood.\n"
    hub.put(repo, {"README.md": edited.encode()})
    same = pusher.push(outputs["three"], repo, WRITER)
    assert not same["changed"]
    assert any("keeps its own text" in note for note in same["notes"])
    pusher.push(outputs["two"], repo, WRITER)
    after = hub.files(repo)["README.md"].decode()
    assert after.endswith(edited.split(END)[1])
    assert "50.0000%" not in after
    assert "| 25.0000% | 25.0000% |" in after
    front = after.split("---\n")[1]
    assert "- theirs\n" in front
    assert "license" not in front, "deleted on purpose"
    assert "- sparsity-25\n" in front
    assert "- sparsity-50\n" not in front


@pytest.mark.full
def test_a_card_that_was_there_first_stays_below(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    theirs = b"---\r\nlicense: apache-2.0\r\n---\r\n\r\n# Ours\r\n"
    hub.put(repo, {"README.md": theirs})
    pusher.push(outputs["two"], repo, WRITER)
    card = hub.files(repo)["README.md"]
    assert card.endswith(b"\r\n\r\n# Ours\r\n")
    assert card.count(b"\n") == card.count(b"\r\n")
    assert b"license: apache-2.0\r\n" in card
    assert b"language: en\r\n" in card
    assert not pusher.push(outputs["two"], repo, WRITER)["changed"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("card", "said"),
    [
        (b"---\nlicense: my-own\n---\n", '"license" must be one of'),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_card_that_the_hub_would_refuse_stops_before_the_upload(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], card: bytes, said: str
) -> None:
    hub.put(repo, {"README.md": card})
    found = pusher.push(outputs["two"], repo, WRITER)
    assert found["error"] == "PushError"
    assert said in found["text"]
    assert changed(hub) == []


# --- the command line -------------------------------------------------------------------------


def test_the_command_pushes_and_says_so(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], tmp_path: Path
) -> None:
    words = ("push", outputs["two"], repo)
    done = pusher.type(tmp_path, *words, "--commit-message", "By hand", hf_token=WRITER)
    head = hub.repo(repo).resolve("main")
    assert head is not None
    assert head.title == "By hand"
    assert f"{hub.url}/{repo}/commit/{head.oid}" in done.out
    assert (done.code, done.err) == (0, "")
    document = pusher.type(tmp_path, *words, "--json", "-q", hf_token=WRITER).document
    assert document["schema"] == "prunectl.push/1"
    assert not document["changed"]
    code, out, _ = pusher.type(tmp_path, *words, hf_token=READER)
    assert (code, "nothing was committed" in out) == (0, True)


def test_prune_and_export_end_with_a_push(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], tmp_path: Path
) -> None:
    document = pusher.type(
        tmp_path,
        *("prune", outputs["source"], "-s", "0.3", "-o", "out", "--json"),
        *("--push", repo, "--push-revision", "dev", "--private", "--token", WRITER),
    ).document
    assert document["push"]["revision"] == "dev"
    assert hub.repo(repo).private
    assert on_hub(hub, repo, "dev") == expected(tmp_path / "out")
    card = hub.files(repo, "dev")["README.md"].decode()
    assert f"--push {repo}" in card
    assert WRITER not in card
    words = ("export", "out", "-o", "small", "--push", f"{repo}-small")
    code, out, err = pusher.type(tmp_path, *words, hf_token=READER)
    assert code == 1
    assert "small is complete, but not pushed" in err
    assert "the token may not write there" in err
    assert out.startswith("out -> small")
    done = pusher.type(tmp_path, *words, "--force", hf_token=WRITER)
    assert done.code == 0, done.err
    assert on_hub(hub, f"{repo}-small") == expected(tmp_path / "small")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--private"], "add --push ORG/NAME"),
        (["--push", "a/b/c"], "a/b/c"),
        (["--push", "org/x", "--push-revision", "b", "--create-pr"], "one to main"),
        (["--push", "org/x", "--commit-message", " "], "message is empty"),
    ],
)
def test_a_push_that_cannot_be_ends_before_the_work(
    typed: Callable[..., tuple[int, str, str]], outputs: dict[str, Path], tmp_path: Path,
    args: list[str], said: str,
) -> None:  # fmt: skip
    code, _, err = typed("prune", outputs["source"], "-s", "0.3", "-o", "out", *args)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()


LOAD = """
import sys, torch
import prunectl
from transformers import AutoModel
ids = torch.arange(1, 9).reshape(1, 8)
how, name, path = sys.argv[1:]
if how == "transformers":
    model = AutoModel.from_pretrained(name, dtype="auto")
else:
    model = prunectl.load_model(name)
torch.save(model.eval()(ids).last_hidden_state, path)
"""


@pytest.mark.full
@pytest.mark.real
def test_a_real_model_goes_the_whole_way_twice(
    hub: Hub,
    pusher: Worker,
    real_model: Callable[[str], Path],
    repo: str,
    tmp_path: Path,
) -> None:
    folder = real_model("minilm")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    hub.put(MINILM, {name: folder / name for name in names})

    def load(how: str, name: str) -> torch.Tensor:
        path = tmp_path / "hidden.pt"
        done = subprocess.run(
            [sys.executable, "-c", LOAD, how, name, str(path)],
            env=os.environ | hub.environment(READER) | {"HF_HOME": str(tmp_path / how)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        hidden: torch.Tensor = torch.load(path)
        return hidden

    def run(*args: str) -> Any:
        return pusher.type(tmp_path, *args, "--json", "-q", hf_token=WRITER).document

    run("prune", MINILM, "--pattern", "2:4", "-o", "out")
    assert run("verify", "out")["ok"]
    assert run("push", "out", repo)["changed"]
    assert on_hub(hub, repo) == {
        name: data for name, data in expected(tmp_path / "out").items() if name != ".gitattributes"
    }
    assert run("push", "out", repo)["changed"] is False
    assert [ref for ref, _ in hub.repo(repo).history] == ["refs/heads/main"] * 2
    card = hub.files(repo)["README.md"].decode()
    assert check_card(card) == ([], [])
    for line in (f"base_model: {MINILM}", "license: apache-2.0", "language: en",
                 "library_name: sentence-transformers", "- sparsity-2-4"):  # fmt: skip
        assert f"\n{line}\n" in card

    shutil.rmtree(pusher.home / "hub")
    run("export", repo, "--layout", "dense", "-o", "pulled")
    assert run("verify", "pulled")["ok"]
    dense = load("transformers", repo)

    pushed = run("export", repo, "-o", "small", "--push", f"{repo}-small")["push"]
    assert pushed["nbytes"] < 60_000_000
    assert run("push", "small", f"{repo}-small")["changed"] is False
    assert torch.equal(load("prunectl", f"{repo}-small"), dense)


@pytest.mark.full
def test_the_repository_s_own_git_files_do_not_hide_weights(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path], tmp_path: Path
) -> None:
    hub.put(repo, {".gitignore": b"*.safetensors\nconfig.json\n"})
    assert pusher.push(outputs["two"], repo, WRITER)["changed"]
    assert on_hub(hub, repo) == expected(outputs["two"]) | {
        ".gitignore": b"*.safetensors\nconfig.json\n"
    }


@pytest.mark.full
def test_a_name_alone_is_the_user_s_own(
    hub: Hub, pusher: Worker, repo: str, outputs: dict[str, Path]
) -> None:
    name = repo.partition("/")[2]
    assert pusher.push(outputs["two"], name, WRITER)["repo_id"] == f"writer/{name}"
    assert on_hub(hub, f"writer/{name}") == expected(outputs["two"])
