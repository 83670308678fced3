"""What the ranks of test_ranks.py do: several verbs, or several ways to fail, one after another.

    torchrun --nproc-per-node 2 ranks_script.py JOBS.json ANSWERS

JOBS is a list of jobs, each a verb with its arguments, and of ways to fail. Each rank writes what
came of them to ANSWERS/rank.json, a list of texts.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

import prunectl
from prunectl.calibration import forward
from prunectl.calibration.statistics import NotShared
from prunectl.errors import PrunectlError
from prunectl.events import Advanced, Event, PhaseStarted
from prunectl.measure import cache
from prunectl.output import secondary_rank
from prunectl.parallel import heartbeat

RANK = int(os.environ.get("RANK", "0"))
READ = cache._read


def run(job: dict[str, Any], ranks: prunectl.Ranks) -> str:
    """Carry one job out."""
    told: list[Event] = []
    common = {"ranks": ranks, "on_event": told.append if "checked" in job else _trap(job)}
    forward._ROWS = job.get("rows", 2048)
    cache._read = _full if job.get("full") == RANK else READ
    match _own(job, "verb"):
        case "prune":
            settings = prunectl.PruneSettings(**parsed(_own(job, "settings")))
            more = {"max_shard_size": job["shard"], "use_cache": job.get("cache", False)}
            result = prunectl.prune(
                _own(job, "model"), _own(job, "output"), settings, **more, **common
            )  # type: ignore[arg-type]
            of_phase = (e for e in told if isinstance(e, Advanced) and e.phase == job["checked"])
            checked = f", checked {json.dumps(sorted({e.item for e in of_phase}))}" if told else ""
            return f"{result.prunable_zeros} zeros, {result.resumed_shards} resumed{checked}"
        case "export":
            exported = prunectl.export(
                job["model"], job["output"], job["layout"], max_shard_size=job["shard"], **common
            )
            return f"{exported.nbytes} bytes"
        case "analyze":
            patterns = _own({"patterns": ["2:4"], **job}, "patterns")
            found = prunectl.analyze(
                job["model"], patterns=patterns, use_cache=job.get("cache", False), **common
            )
            document = found.to_json()
            del document["seconds"]
            return json.dumps(document)
        case "verify":
            report = prunectl.verify(job["output"], ranks=ranks, on_event=told.append)
            own = sum(one.count for one in told if isinstance(one, Advanced))
            assert [one.total for one in told if isinstance(one, PhaseStarted)] == [own]
            shares = list(ranks.all_gather([own]))
            return json.dumps([report.ok, report.tensors, report.zeros, shares])
        case other:
            raise ValueError(other)


def _full(*anything: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def _own(job: dict[str, Any], key: str) -> Any:
    """What one rank was told otherwise than the others, or what all were told."""
    return job.get("others", {}).get(str(RANK), {}).get(key, job[key])


def parsed(settings: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Callable[[Any], Any]] = {
        "pattern": prunectl.parse_pattern,
        "scope": prunectl.Scope,
        "budget": prunectl.Budget,
        "mask": Path,
        "calibration": lambda value: prunectl.Calibration(**value),
    }
    return {key: kinds.get(key, lambda value: value)(value) for key, value in settings.items()}


def _trap(job: dict[str, Any]) -> Callable[[Event], None]:
    """What happens to one rank when something begins or has ended."""
    trap = job.get("trap", {})
    seen = itertools.count(1)

    def on_event(event: Event) -> None:
        name = f"{type(event).__name__} {getattr(event, 'phase', '')}"
        if trap.get("rank") != RANK or trap["at"] != name or next(seen) != trap.get("time", 1):
            return
        match trap["what"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "small files":  # as on a full disk, which this user may not have
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            case "stop":  # until the other has given this one up
                Path("stopped").write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            case "error":
                raise ValueError("an error of one rank")
            case "not shared":
                raise NotShared
            case "full":
                raise torch.OutOfMemoryError("out of memory")

    return on_event


def main() -> int:
    jobs, answers = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    secondary_rank._APPEARS = 2.0
    said: list[str] = []
    if all("trap" not in job and "others" not in job for job in jobs):
        with prunectl.joined_ranks() as ranks:
            said = [run(job, ranks) for job in jobs]
    else:
        for job in jobs:
            stops = job.get("trap", {}).get("what") == "stop"
            heartbeat._SILENT = 2.0 if stops and RANK == 0 else 600.0
            try:
                with prunectl.joined_ranks() as ranks:
                    said.append(run(job, ranks))
            except (PrunectlError, ValueError, KeyboardInterrupt) as error:
                said.append(f"{type(error).__name__}: {error}")
            if stops and RANK == 0:
                os.kill(int(Path("stopped").read_text()), signal.SIGCONT)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    answers.mkdir(exist_ok=True)
    (answers / f"{RANK}.json").write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
