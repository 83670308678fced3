"""Processes that use a test's Hub; one of them pushes what it is told to, and loads torch once.

huggingface_hub reads its settings when it is imported, so none of it can run in the test's own
process.
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
from hubserver.store import SECRETS

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


def python(
    url: str, *args: str | Path, offline: bool = False, code: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process, as huggingface_hub reads its settings once: its Hub is at
    ``url``.

    It must never show a token, not even in a log line or traceback.

    Args:
        code: what it must end with; None is anything. options: of ``subprocess.run``.
    """
    done = subprocess.run(
        [sys.executable, *args], env=environment(url, offline=offline), capture_output=True,
        text=True, timeout=200, check=False, **options,
    )  # fmt: skip
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    assert code is None or done.returncode == code, done.stderr
    return done


def environment(url: str, *, offline: bool = False) -> dict[str, str]:
    """Variables of a process that reads from the Hub at ``url``, in this test's HF_HOME."""
    return os.environ | {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }


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
