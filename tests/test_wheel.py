"""Wheel and sdist: they build, hold all that they should, and the wheel works alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it: ``$PRUNECTL_DIST`` if set."""
    if given := os.environ.get("PRUNECTL_DIST"):
        return Path(given)
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(release: Path) -> Path:
    (built,) = release.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new environment that holds the wheel and what it needs."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = environment / "bin" / "pip"
    subprocess.run([pip, "install", "--quiet", wheel], check=True)
    return environment / "bin"


def test_the_wheel_holds_the_demo_and_the_completions(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "prunectl/py.typed",
        "prunectl/demo/heldout.txt",
        "prunectl/demo/calibration.txt",
        "prunectl/demo/model/config.json",
        "prunectl/demo/model/model.safetensors",
        "prunectl/demo/model/tokenizer.json",
        "prunectl/demo/model/README.md",
        "prunectl/report/template/page.html",
        "prunectl/report/template/page.css",
        "prunectl/report/template/page.js",
    ):
        assert wanted in names
    shared = {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    assert {
        "share/bash-completion/completions/prunectl",
        "share/zsh/site-functions/_prunectl",
        "share/fish/vendor_completions.d/prunectl.fish",
    } <= shared
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "scripts/"))]


def test_the_sdist_holds_what_tests_and_docs_need(release: Path) -> None:
    (built,) = release.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    tracked = ("src", "tests", "scripts", "benchmarks", "docs", "completions", ".github")
    listed = subprocess.run(
        ["git", "ls-files", *tracked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(listed.stdout.splitlines()) <= inside
    assert {"pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"} <= inside


def test_it_runs_alone_and_offline(installed: Path, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTHON"))
    }
    environment |= {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [installed / "prunectl", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    analysis = json.loads(run("analyze", "demo", "--json"))
    assert analysis["source"]["model"] == "demo"
    pruned = json.loads(
        run("prune", "demo", "--sparsity", "0.4", "--pattern", "2:4", "-o", "out", "--json")
    )
    assert 0.35 < pruned["sparsity"] < 0.45
    assert json.loads(run("verify", "out", "--json"))["ok"]
