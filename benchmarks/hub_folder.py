"""A folder as a model on a Hub on 127.0.0.1, which is the tests' own and counts what it sends."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from hubserver import serve

REPO = "bench/model"


class FolderHub:
    """A Hub in a process of its own, so that its memory and threads are not the benchmark's.

    Attributes:
        home: what its clients take for their HF_HOME.
        environment: what makes huggingface_hub in another process talk to it, without a token.
    """

    def __init__(self, pipe: Connection, home: Path) -> None:
        self._pipe, self.home = pipe, home
        self.environment = {
            "HF_ENDPOINT": pipe.recv(),
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def sent(self) -> dict[str, int]:
        """Bytes sent of each file since it was last asked, and ('') of what is no file."""
        self._pipe.send(None)
        found: dict[str, int] = self._pipe.recv()
        return found


@contextmanager
def hub_of(folder: Path, home: Path) -> Iterator[FolderHub]:
    """Serve a folder as the model ``bench/model`` until the block ends.

    Args:
        home: a folder that clients take for their HF_HOME; removed in the end.
    """
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(folder, its), daemon=True)
    process.start()
    its.close()
    try:
        yield FolderHub(ours, home)
    finally:
        ours.close()  # which ends it
        process.join()
        shutil.rmtree(home, ignore_errors=True)


def _serve(folder: Path, pipe: Connection) -> None:
    with tempfile.TemporaryDirectory(prefix="prunectl-hub-") as stored, serve(Path(stored)) as hub:
        repo = hub.store.create(REPO, bare=True)
        files = {
            path.name: hub.store.add_link(repo, path) if path.suffix == ".safetensors" else path
            for path in sorted(folder.glob("*"))
        }
        hub.put(REPO, files)
        pipe.send(hub.url)
        try:
            while True:
                pipe.recv()
                pipe.send(hub.take_sent())
        except EOFError:
            return
