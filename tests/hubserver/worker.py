"""Processes that use a test's Hub; one of them does what it is told to, and loads torch once.

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
from typing import Any, NamedTuple

from hubserver.server import Hub
from hubserver.store import SECRETS


class Typed(NamedTuple):
    """What a command ended with and said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Worker:
    """The process; it does one thing at a time. ``home``: of its Hub cache (``home / "hub"``)."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, home: Path) -> None:
        self._process, self._errors, self.home = process, errors, home

    def ask(self, what: str, token: str | None, /, *arguments: object, **options: Any) -> None:
        """Begin what loop_script.py can do, with ``HF_TOKEN`` as given; :meth:`result` waits."""
        assert self._process.stdin is not None
        asked = [what, token, list(map(str, arguments)), options]
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._errors.read_text()
        found: dict[str, Any] = json.loads(line)
        assert not [secret for secret in SECRETS if secret in line]
        return found

    def start(self, folder: Path, repo: str, hf_token: str | None = None, **options: Any) -> None:
        self.ask("push", hf_token, folder, repo, **options)

    def push(
        self, folder: Path, repo: str, hf_token: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """The result as JSON; or ``error`` (class), ``exit`` and ``text`` of what was raised."""
        self.start(folder, repo, hf_token, **options)
        return self.result()

    def look(
        self, model: str, how: str = "local", hf_token: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Open a model, ``local`` or ``remote``; or ``error``, ``text`` and ``hint``."""
        self.ask(how, hf_token, model, **options)
        return self.result()

    def type(self, cwd: Path, *words: object, hf_token: str | None = None) -> Typed:
        """Run ``prunectl WORDS`` in a folder."""
        self.ask("command", hf_token, *words, cwd=str(cwd))
        return Typed(**self.result())

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
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return inherited | {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }


@contextlib.contextmanager
def worker(hub: Hub, folder: Path, **variables: str) -> Iterator[Worker]:
    """A process that uses ``hub``; its Hub cache and stderr are in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "stderr.txt"
    variables = hub.environment() | {"HF_HOME": str(folder / "hf")} | variables
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("loop_script.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={name: one for name, one in os.environ.items() if name != "COLUMNS"} | variables,
        )
        try:
            yield Worker(process, errors, folder / "hf")
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
