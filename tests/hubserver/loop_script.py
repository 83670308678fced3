"""What a worker (worker.py) runs: it answers one JSON request a line with one JSON line.

A request is ``[what, token, arguments, options]``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from typing import Any

import prunectl
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.checkpoint.remote import open_remote
from prunectl.cli.errors import describe
from prunectl.cli.run import run
from prunectl.events import Advanced, Event, Note, PhaseDone, PhaseStarted

Answer = dict[str, Any]


def described(checkpoint: Checkpoint) -> Answer:
    """What headers tell of a checkpoint, wherever it is."""
    return {
        "format": checkpoint.format, "side_files": list(checkpoint.side_files),
        "revision": checkpoint.revision, "commit": checkpoint.commit,
        "quantization": checkpoint.quantization, "metadata": checkpoint.metadata,
        "files": [[file.name, file.size, file.sha256] for file in checkpoint.files],
        "tensors": [[one.name, one.spec.dtype.name, list(one.spec.shape), one.file, one.offset]
                    for one in checkpoint.tensors],
    }  # fmt: skip


def local(model: str, **options: Any) -> Answer:
    """What was downloaded, and what was heard on the way."""
    seen: list[Event] = []
    found = open_checkpoint(model, on_event=seen.append, **options)
    return {
        "headers": described(found), "kind": found.kind, "folder": str(found.folder),
        "repo_id": found.repo_id, "revision": found.revision, "commit": found.commit,
        "identity": found.identity(), "notes": list(found.notes),
        "files": [file.name for file in found.files], "tensors": [t.name for t in found.tensors],
        "side_files": list(found.side_files), "sha256": [file.sha256 for file in found.files],
        "heard": {
            "started": [one.total for one in seen if isinstance(one, PhaseStarted)],
            "advanced": sum(one.count for one in seen if isinstance(one, Advanced)),
            "done": sum(isinstance(one, PhaseDone) for one in seen),
        },
    }  # fmt: skip


def remote(model: str, **options: Any) -> Answer:
    found = open_remote(model, **options)
    answer: Answer = {
        "cached": sorted(found.cached), "all": [file.name for file in found.files],
        "download": found.download_bytes, "format": found.format,
    }  # fmt: skip
    if found.checkpoint is not None:
        answer["headers"] = described(found.checkpoint)
    return answer


def push(folder: str, repo: str, **options: Any) -> Answer:
    seen: list[Event] = []
    try:
        found = prunectl.push(folder, repo, on_event=seen.append, **options).to_json()
    except Exception as error:
        traceback.print_exc()
        code, text = describe(error, [])
        found = {"error": type(error).__name__, "exit": code, "text": text}
    counts = [[getattr(one, "total", None), getattr(one, "count", 0)] for one in seen
              if isinstance(one, Advanced | PhaseStarted) and one.phase == "uploading"]  # fmt: skip
    notes = [one.text for one in seen if isinstance(one, Note)]
    return found | {"notes": notes, "uploading": counts}


def command(*words: str, cwd: str) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),  # the test's, which goes with it
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run(list(words))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def answer(what: str, arguments: list[str], options: dict[str, Any]) -> Answer:
    does = {"push": push, "local": local, "remote": remote, "command": command}[what]
    try:
        return does(*arguments, **options)
    except prunectl.PrunectlError as error:
        return {"error": type(error).__name__, "text": str(error), "hint": error.hint}


for line in sys.stdin:
    what, token, arguments, options = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    print(json.dumps(answer(what, arguments, options)), flush=True)
