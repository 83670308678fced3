"""``env``: what a bug report needs, also where libraries are broken, and no secrets."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
import yaml

import prunectl
from prunectl.cli.run import run

ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "a1B2" * 9


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["env", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys)
    assert found["schema"] == "prunectl.env/1"
    assert found["prunectl"] == prunectl.__version__
    assert found["python"].endswith(platform.python_version())
    for name in ("torch", "transformers", "numpy", "datasets", "tokenizers"):
        assert found["versions"][name] == importlib.metadata.version(name)
    assert not {"pytest", "mkdocs-material", "prunectl"} & set(found["versions"])
    features = {name for name, has in llvm.get_host_cpu_features().items() if has}
    assert set(found["instructions"]) <= features
    assert {name for name in features if name.startswith("avx")} <= set(found["instructions"])
    assert found["kernels"][-1] == "plain"
    assert found["cores"] == os.cpu_count() >= found["usable_cores"] > 0
    assert found["memory"] > found["free_memory"] > 0
    assert found["problems"] == []


def test_caches_have_their_places_and_sizes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, folder in (("PRUNECTL_CACHE_DIR", "own"), ("NUMBA_CACHE_DIR", "kernels")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
        (tmp_path / folder / "deep").mkdir(parents=True)
    (tmp_path / "own" / "deep" / "measured-x.bin").write_bytes(bytes(1000))
    (tmp_path / "own" / "link").symlink_to(tmp_path / "own" / "deep")  # is not followed
    (tmp_path / "kernels" / "deep" / "cut.1.nbc").write_bytes(bytes(500))
    (tmp_path / "kernels" / "cut.py").write_bytes(bytes(70))
    monkeypatch.setenv("HOME", str(tmp_path))
    places = {one["holds"]: one for one in document(capsys)["caches"]}
    assert places["measurements"] == {"holds": "measurements", "path": "~/own", "nbytes": 1000}
    assert places["compiled kernels"]["path"] == "~/kernels"
    assert places["compiled kernels"]["nbytes"] == 500
    assert places["models of the Hub"]["path"].endswith("hub")


def test_no_secret_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "3", "https_proxy": "http://proxy:1"}
    secret = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://me:password@127.0.0.1:9"}
    secret |= {"PRUNECTL_MODEL": f"org/{TOKEN}", "VLLM_API_KEY": "key-of-mine"}
    for name, value in {**shown, **secret}.items():
        monkeypatch.setenv(name, value)
    found = document(capsys)
    assert run(["env"]) == 0
    text = json.dumps(found) + capsys.readouterr().out
    assert not [one for one in (TOKEN, "password", "key-of-mine") if one in text]
    assert found["variables"].items() >= shown.items()
    assert found["variables"]["HF_TOKEN"] == "***"
    assert found["variables"]["HF_ENDPOINT"] == "http://127.0.0.1:9"
    assert "PATH" not in found["variables"]


def test_broken_libraries_are_what_it_reports(tmp_path: Path) -> None:
    for name in ("torch", "llvmlite", "huggingface_hub"):
        (tmp_path / f"{name}.py").write_text("raise OSError('libcudart.so is missing')")
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT / "src")))}
    done = subprocess.run(
        [sys.executable, "-m", "prunectl", "env"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("torch", "llvmlite", "huggingface_hub"):
        assert f"{name} does not load: OSError: libcudart.so is missing" in done.stdout


def test_the_issue_template_asks_for_it() -> None:
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
    (asked,) = [one for one in yaml.safe_load(form)["body"] if "prunectl env" in str(one)]
    assert asked["validations"]["required"]
