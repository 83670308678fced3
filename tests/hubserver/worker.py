"""A process that pushes what it is told to, so that huggingface_hub and torch load only once.

huggingface_hub reads its settings when it is imported, so a push to a test's Hub cannot run in the
test's own process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubserver.server import Hub

_LOOP = """
import json, os, sys, traceback
import prunectl, prunectl.events
from prunectl.cli.errors import describe
for line in sys.stdin:
    folder, repo, token, options = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    notes = []
    def hear(event):
        if isinstance(event, prunectl.events.Note):
            notes.append(event.text)
    try:
        found = prunectl.push(folder, repo, on_event=hear, **options).to_json()
    except Exception as error:
        traceback.print_exc()
        code, text = describe(error, [])
        found = {"error": type(error).__name__, "exit": code, "text": text}
    print(json.dumps(found | {"notes": notes}), flush=True)
"""


class Worker:
    """The process; one push at a time."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process, self._errors = process, errors

    def start(self, folder: Path, repo: str, hf_token: str | None = None, **options: Any) -> None:
        """Begin a push, with ``HF_TOKEN`` as given; :meth:`result` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(folder), repo, hf_token, options]) + "\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._errors.read_text()
        found: dict[str, Any] = json.loads(line)
        return found

    def push(
        self, folder: Path, repo: str, hf_token: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """The result as JSON; or ``error`` (class), ``exit`` and ``text`` of what was raised."""
        self.start(folder, repo, hf_token, **options)
        return self.result()

    @property
    def said(self) -> str:
        """All that came on stderr so far: tracebacks, and whatever a library printed."""
        return self._errors.read_text()


@contextlib.contextmanager
def worker(hub: Hub, folder: Path) -> Iterator[Worker]:
    """A process that pushes to ``hub``; its Hub cache and stderr are in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "stderr.txt"
    environment = os.environ | hub.environment() | {"HF_HOME": str(folder / "hf")}
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        )
        try:
            yield Worker(process, errors)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
