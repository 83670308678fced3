"""What can be the value of an option or argument: fixed words, models, revisions, paths.

An entry is found by command and option (``analyze --pattern``), by option, or by metavar; the first
of these that there is counts. Nothing heavy is imported, the Hub's cache is read as plain folders,
and nothing is ever fetched: an answer takes about 0.1 s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prunectl.checkpoint.index import PICKLE_SUFFIXES
from prunectl.cli.shell_scripts import Shell
from prunectl.demo import NAME as DEMO
from prunectl.evaluation.metrics import METRICS
from prunectl.layouts.table import AUTO, LAYOUTS
from prunectl.methods.table import Method
from prunectl.userdirs import expanded

Given = Mapping[str, str]
"""Values before the cursor, by option (``--cache-dir``) or an argument's metavar (``MODEL``)."""


class Candidate(NamedTuple):
    """A whole word, and what it means. A folder ends with a slash: more may follow it."""

    value: str
    help: str = ""


_NM = {
    "2:4": "keeps 2 of every 4 weights: half are zero, as sparse tensor cores need it",
    "4:8": "keeps 4 of every 8 weights: half are zero",
    "1:2": "keeps 1 of every 2 weights: half are zero",
    "1:4": "keeps 1 of every 4 weights: three quarters are zero",
}
_DEVICES = {
    "cpu": "the processor",
    "cuda": "the first CUDA device; of several processes on a host, each its own",
    "cuda:1": "the second one, and so on",
}
_SPREAD = {"auto": "CUDA if there is any; all of it, if one does not hold the model", **_DEVICES}
CHOICES: dict[str, dict[str, str]] = {
    "analyze --pattern": {**_NM, "none": "leaves out 2:4, which is measured otherwise"},
    "N:M": _NM,
    "PATTERN": {"unstructured": "any weight may be zero", **_NM},
    "--scope": {
        "global": "one threshold for all prunable weights",
        "tensor": "a threshold for each tensor",
        "row": "a threshold for each row of each tensor",
    },
    "--method": {str(method): method.spec.help for method in Method},
    "--budget": {
        "matrix": "whole matrices take the pattern",
        "rows": "blocks of 16 rows in every matrix take it",
    },
    "LAYOUT": {
        AUTO: "whichever is smallest for each tensor",
        **{name: layout.summary for name, layout in LAYOUTS.items()},
    },
    "bench --pattern": {**_NM, "none": "times the model alone"},
    "KERNELS": {
        "auto": "dense ones, and sparse ones where they win",
        "dense": "ordinary kernels only",
        "sparse": "sparse ones wherever they can run",
    },
    "analyze --device": {"auto": "the processor", **_DEVICES},
    "prune --device": {
        "auto": "CUDA if there is any for calibration, the processor for magnitudes",
        **_DEVICES,
    },
    "evaluate --device": _SPREAD,
    "sweep --device": _SPREAD,
    "DEVICE": {"auto": "CUDA if there is any", **_DEVICES},
    "prune --dtype": {
        "auto": "float32 on the CPU, elsewhere that of the checkpoint",
        "float32": "most exact",
        "bfloat16": "half the memory, with the range of float32",
        "float16": "half the memory, with more digits",
    },
    "DTYPE": {
        "auto": "that of the checkpoint",
        "float32": "4 bytes a weight",
        "bfloat16": "2 bytes, with the range of float32",
        "float16": "2 bytes, with more digits",
    },
    "TASK": {
        name: f"{task.help} (--metric {metric})"
        for metric, spec in METRICS.items()
        for name, task in spec.tasks.items()
    },
    "METRIC": {f"{name}:" if spec.argument else name: spec.help for name, spec in METRICS.items()},
    "PROTOCOL": {
        "auto": "what the data look like",
        "letters": "A, B, C, D, as MMLU",
        "text": "the options' own text, as ARC and HellaSwag",
    },
    "GRID": {
        "auto": "steps of 10%, then a search around the turning point",
        "0:0.9:0.1": "a range",
    },
    "--epsilon-mode": {
        "relative": "a share of the dense model's score",
        "absolute": "in the metric's own units",
    },
    "PRECISION": {
        "no": "that of the weights",
        "bf16": "faster on most GPUs",
        "fp16": "on GPUs without bf16",
    },
    "MODE": {
        "none": "no torch.compile",
        "default": "torch.compile",
        "reduce-overhead": "torch.compile with CUDA graphs",
    },
    "PRESET|CONFIG": {
        "llama-7b": "Llama 2 7B",
        "llama-8b": "Llama 3 8B",
        "llama-1b": "Llama 3.2 1B",
        "bert-base": "BERT base",
        "vit-base": "ViT base, 224 pixels",
        "t5-base": "T5 base",
    },
    "--show-completion": {shell: f"the script for {shell}" for shell in Shell},
}
"""Values and what they mean."""

SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "text:": ("files of text", (".txt", ".md")),
    "hf:": ("a dataset", (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow")),
    "images:": ("a folder of images", ()),
    "pairs:": ("a table of two texts in each row", (".csv", ".tsv", ".jsonl")),
    "demo": ("the text that comes with prunectl", ()),
    "random": ("random tokens or pixels: a stand-in", ()),
}
"""Calibration samples: what each kind means, and the endings of files that may follow its colon."""


def _models(text: str, given: Given) -> Iterator[Candidate]:
    if DEMO.startswith(text):
        yield Candidate(DEMO, "a small model that comes with prunectl")
    cache = _hub_cache(given)
    model, at, revision = text.partition("@")
    for name, commit in _revisions(cache, model) if at else ():
        if name.startswith(revision):
            yield Candidate(f"{model}@{name}", commit)
    for entry in _entries(cache):
        repo = entry.name.removeprefix("models--").replace("--", "/")
        if entry.name.startswith("models--") and repo.startswith(text):
            yield Candidate(repo, "in the Hub's cache")
    yield from _paths(text, (".safetensors", *PICKLE_SUFFIXES))


def _revision_of_model(text: str, given: Given) -> Iterator[Candidate]:
    model = given.get("--source") or given.get("MODEL", "")
    for name, commit in _revisions(_hub_cache(given), model.partition("@")[0]):
        if name.startswith(text):
            yield Candidate(name, commit)


def _sources(text: str, given: Given) -> Iterator[Candidate]:
    """Kinds of calibration samples; after a colon, files of that kind."""
    kind, colon, path = text.partition(":")
    _, suffixes = SOURCES.get(kind + colon, ("", ()))
    for found in _paths(path, suffixes) if colon and kind + colon in SOURCES else ():
        yield Candidate(f"{kind}:{found.value}", found.help)
    for name, (meaning, _) in SOURCES.items():
        if name.startswith(text) and name != text:
            yield Candidate(name, meaning)


def _revisions(cache: Path, repo: str) -> Iterator[tuple[str, str]]:
    """Branches and tags of a repository that the cache knows, and their commits in words."""
    refs = cache / f"models--{repo.replace('/', '--')}" / "refs"
    try:
        for file in sorted(path for path in refs.rglob("*") if path.is_file()):
            commit = file.read_text(encoding="ascii", errors="replace").strip()
            yield file.relative_to(refs).as_posix(), f"commit {commit[:12]}"
    except OSError:
        return


def _hub_cache(given: Given) -> Path:
    """Where huggingface_hub would look; it is not asked, since importing it takes too long."""
    if chosen := given.get("--cache-dir"):
        return expanded(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    legacy = os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return expanded(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or legacy))


def _paths(text: str, suffixes: tuple[str, ...]) -> Iterator[Candidate]:
    """Folders, and files that end with one of ``suffixes``; hidden ones only where asked for."""
    if text == "~":
        yield Candidate("~/")
        return
    start = os.path.basename(text)  # noqa: PTH119 - the rest stays as it was typed
    head = text[: len(text) - len(start)]
    for entry in _entries(expanded(head)):
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if _is_folder(entry):
            yield Candidate(f"{head}{entry.name}/")
        elif entry.name.endswith(suffixes):
            yield Candidate(f"{head}{entry.name}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError):
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


FINDERS: dict[str, Callable[[str, Given], Iterator[Candidate]]] = {
    "MODEL": _models,
    "MODEL...": _models,
    "FIRST": _models,
    "SECOND": _models,
    "REV": _revision_of_model,
    "SOURCE": _sources,
    "DIR": lambda text, _: _paths(text, ()),
    "--recipe": lambda text, _: _paths(text, (".toml",)),
    "--mask": lambda text, _: _paths(text, (".safetensors",)),
    "--text": lambda text, _: _paths(text, (".txt",)),
    "--csv": lambda text, _: _paths(text, (".csv",)),
    "--html": lambda text, _: _paths(text, (".html",)),
    "--png": lambda text, _: _paths(text, (".png",)),
    "--svg": lambda text, _: _paths(text, (".svg",)),
    "FILE": lambda text, _: _paths(text, (".json",)),
}
"""Values that are looked for."""

FREE = {
    "S",
    "NAME",
    "SIZE",
    "N",
    "X",
    "SHARE",
    "N,N...",
    "N[,N]",
    "REV,REV...",
    "RATIO",
    "TOKEN",
    "ORG/NAME",
    "BRANCH",
    "TEXT",
    "GLOB",
}
"""Metavars whose values nobody can guess."""
