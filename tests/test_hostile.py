"""Documents of an attacker, as docs/security.md has it: each reader ends in a clear error."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import own_words
import pytest

import prunectl
from prunectl import PruneSettings, documents, prune

EVALUATE = "evaluate model --data"
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00001.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")

DOCUMENTS = {
    "not text": b"\xff\xfe\xfd",
    "deep": b"[" * 100_000,
    "as deep as Python can read": b"[" * 500 + b"]" * 500,
    "a long number": b'{"a": ' + b"9" * 100_000 + b"}",
}


def as_it_is(text: bytes) -> bytes:
    return text


def as_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def as_masks(text: bytes) -> bytes:
    metadata = {"format": "prunectl.masks/1", "masks": text.decode("latin-1")}
    return as_header(json.dumps({"__metadata__": metadata}).encode())


def as_table(text: bytes) -> bytes:
    return b"sparsity = " + text


def as_front_matter(text: bytes) -> bytes:
    return b"---\ntags: " + text + b"\n---\n"


READERS: list[tuple[str, Callable[[bytes], bytes], str, int, str]] = [
    ("model/config.json", as_it_is, "analyze model", 0, "config.json cannot be read"),
    ("model/config.json", as_it_is, f"{EVALUATE} text:model.txt", 1, "config.json cannot be read"),
    ("model/tokenizer.json", as_it_is, f"{EVALUATE} text:model.txt", 1, "tokenizer"),
    ("model/tokenizer_config.json", as_it_is, f"{EVALUATE} text:model.txt", 1, "tokenizer"),
    ("model/generation_config.json", as_it_is, "analyze model", 0, ""),
    ("model/README.md", as_front_matter, "prune model -s 0.3 -o other", 0, ""),
    (f"sharded/{INDEX}", as_it_is, "analyze sharded", 1, f"sharded/{INDEX}: not an index"),
    ("model/model.safetensors", as_header, "analyze model", 1, "header is not valid JSON"),
    ("model.bin", as_it_is, "analyze model.bin", 1, "model.bin: "),
    ("pruned/prunectl.json", as_it_is, "verify pruned", 1, "prunectl.json: is not JSON"),
    ("masks", as_masks, "prune model --mask masks -o other", 1, "masks: the header's 'masks'"),
    ("r.toml", as_table, "prune model --recipe r.toml -o other", 2, "r.toml: "),
    ("old.json", as_it_is, "bench model --compare old.json", 2, "old.json: is not JSON"),
    ("rows.jsonl", as_it_is, f"{EVALUATE} hf:rows.jsonl", 1, "rows.jsonl: "),
    ("rows.json", as_it_is, f"{EVALUATE} hf:rows.json", 1, "rows.json: "),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its text, its shards with an index, and what prunectl makes of it."""
    folder = tmp_path_factory.mktemp("made")
    own_words.build(folder / "model")
    prune(folder / "model", folder / "pruned", PruneSettings(sparsity=0.3))
    (folder / "sharded").mkdir()
    shutil.copy(folder / "model" / "model.safetensors", folder / "sharded" / SHARD)
    return folder


@pytest.mark.parametrize(("name", "wrapped", "line", "code", "words"), READERS)
def test_hostile_documents_end_in_a_clear_error(
    made: Path,
    typed: Callable[..., tuple[int, str, str]],
    name: str,
    wrapped: Callable[[bytes], bytes],
    line: str,
    code: int,
    words: str,
) -> None:
    shutil.copytree(made, ".", dirs_exist_ok=True)
    for kind, text in DOCUMENTS.items():
        Path(name).write_bytes(wrapped(text))
        found, _, err = typed(*line.split())
        assert (found, words in err) == (code, True), (kind, err)
        assert len(err) < 1200, kind
        assert "Traceback" not in err, kind
        assert Path("other").exists() == (code == 0 and "-o" in line), kind
        shutil.rmtree("other", ignore_errors=True)


def test_documents_larger_than_the_limit_are_not_read(
    made: Path, typed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "pruned", "pruned")
    monkeypatch.setattr(documents, "LARGEST", 1000)
    code, _, err = typed("verify", "pruned")
    assert (code, "prunectl.json: more than 1,000 bytes" in err) == (1, True), err


OWN = {
    "benchmarking/loading.py": "the answer of a process that bench has started",
    "checkpoint/known_trees.py": "a file of the package",
    "evaluation/arithmetic.py": "a file of the package",
    "measure/cache.py": "the user's own cache, whole by its digest",
    "output/card.py": "front matter that frontmatter.py has checked",
    "output/frontmatter.py": "checks the nesting first",
    "parallel/heartbeat.py": "what another rank of this run wrote",
    "plan/recipe.py": "catches RecursionError",
    "report/page.py": "rows that it has written itself",
}
"""Modules with a parser of their own, and why its text is harmless."""


def test_documents_from_outside_are_parsed_in_one_place() -> None:
    source = Path(prunectl.__file__).parent
    parses = re.compile(r"\b(json\.loads?|yaml\.(safe_)?load|tomllib\.loads?)\(")
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if parses.search(path.read_text(encoding="utf-8"))
    }
    assert found - {"documents.py"} == OWN.keys()
