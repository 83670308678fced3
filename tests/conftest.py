"""What all tests share: real checkpoints, and a world without the user's caches, token, network."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import fetch_models

if TYPE_CHECKING:
    from hubserver import Hub, Worker

REAL_MODELS = fetch_models.cache_dir()

PERSONAL = (
    "FORCE_COLOR",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_CACHE",
    "NO_COLOR",
    "PRUNECTL_DEBUG",
    "PRUNECTL_MODEL",
    "TRANSFORMERS_CACHE",
)

# huggingface_hub reads its settings once, when it is imported, so they are set before that, for the
# whole run; processes that a test starts inherit them.
_HUB_HOME = tempfile.TemporaryDirectory(prefix="prunectl-tests-hf-")
os.environ |= {"HF_HOME": _HUB_HOME.name, "HF_HUB_OFFLINE": "1"}
for _name in PERSONAL:
    os.environ.pop(_name, None)

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# Examples of each property test: `make test` takes a few, `make test-all` many.
for _name, _examples in (("few", 12), ("full", 100)):
    settings.register_profile(
        _name, max_examples=_examples, deadline=None, derandomize=IN_CI, print_blob=IN_CI
    )
settings.load_profile("few")


# The libraries make millions of objects that stay: no search for garbage needs to go through them.
gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    _freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a test has loaded, or a file of tests has made, stays too."""
    if len(sys.modules) > _loaded + 50 or nextitem is None or nextitem.path != item.path:
        _freeze()


def _freeze() -> None:
    global _loaded
    _loaded = len(sys.modules)
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    _HUB_HOME.cleanup()


# Files of few long tests. Last, as they come by number, one would run while the other workers wait.
FIRST = (
    "test_docs.py",
    "test_paper.py",
    "test_ranks.py",
    "test_ranks_calibrated.py",
    "test_ranks_launch.py",
    "test_scale_bench.py",
    "test_train_demo.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, and skip ``gpu`` tests where there is no CUDA device.

    Torch is asked only if there are any.
    """
    items.sort(key=lambda item: item.path.name not in FIRST)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def is_required() -> bool:
    """Whether a test that needs what can be fetched fails without it, and is not skipped."""
    return IN_CI or os.environ.get("PRUNECTL_REQUIRE_REAL") == "1"


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("users")


@pytest.fixture(autouse=True)
def isolated_user(users: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a user with empty caches and state.

    Returns the folder they are in; prunectl's cache is its subfolder ``prunectl``. The Hub's cache
    is an empty one too, shared by the run, and the Hub is offline.
    """
    home = Path(tempfile.mkdtemp(dir=users))  # mktemp looks at all folders of the run for each
    for name in ("COLUMNS", "LINES"):  # set by a terminal, or by those who run tests in parallel
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(home / "prunectl"))
    for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
    return home


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """A function from a name (``minilm``, ``rxnfp/bert_ft``) to the folder of that real model.

    It skips the test if the model has not been fetched, and fails it in CI or with
    ``PRUNECTL_REQUIRE_REAL=1``, unless ``make models`` does not fetch it either. Tests must not
    write to the folder.
    """
    required = is_required()

    def folder_of(name: str) -> Path:
        model = name.partition("/")[0]
        if not fetch_models.is_complete(model, REAL_MODELS):
            reason = f"{model} is not in {REAL_MODELS}: run scripts/fetch_models.py {model}"
            if required and not fetch_models.MODELS[model].by_name:
                pytest.fail(reason)
            pytest.skip(reason)
        return REAL_MODELS / name

    return folder_of


@pytest.fixture(scope="session", autouse=True)
def real_models_stay_as_they_are() -> Iterator[None]:
    """Fail the run if a test has changed a fetched model."""
    before = {name for name in fetch_models.MODELS if fetch_models.is_complete(name, REAL_MODELS)}
    yield
    changed = [name for name in before if not fetch_models.is_complete(name, REAL_MODELS)]
    assert not changed, f"tests have written to the real models: {changed}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a tiny model (tests/tiny_models.py) to its folder."""
    import tiny_models

    folder = tmp_path_factory.mktemp("tiny")

    def get(name: str) -> Path:
        if not (folder / name).exists():
            tiny_models.build(name, folder / name)
        return folder / name

    return get


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 128 KiB, in memory; needs to be root."""
    folder = tmp_path_factory.mktemp("disk")
    options = ["-t", "tmpfs", "-o", "size=131072", "tmpfs"]
    if os.geteuid() or subprocess.run(["mount", *options, folder], check=False).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``prunectl ARGS`` in this process, which spares importing torch once more."""
    from prunectl.cli.run import run

    monkeypatch.chdir(tmp_path)

    def run_it(*args: str | Path) -> tuple[int, str, str]:
        code = run(list(map(str, args)))
        return code, *capsys.readouterr()

    return run_it


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub; at the end, nothing that it stored holds a token."""
    from hubserver import SECRETS, serve

    with serve(tmp_path_factory.mktemp("hub")) as running:
        yield running
        for path in running.store.folder.rglob("*"):
            data = path.read_bytes() if path.is_file() else b""
            assert not [secret for secret in SECRETS if secret.encode() in data], path


@pytest.fixture(scope="session")
def pusher(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A process that uses it; none of its tracebacks and log lines shows a token."""
    from hubserver import SECRETS, worker

    with worker(hub, tmp_path_factory.mktemp("pusher")) as running:
        yield running
        assert not [secret for secret in SECRETS if secret in running.said]


@pytest.fixture(scope="session")
def unreached(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """Processes that do not reach it: one is ``offline``, the other is ``refused``."""
    from hubserver import worker

    folder = tmp_path_factory.mktemp("unreached")
    with (
        worker(hub, folder / "offline", HF_HUB_OFFLINE="1") as offline,
        worker(hub, folder / "refused", HF_ENDPOINT="http://127.0.0.1:9") as refused,
    ):
        yield {"offline": offline, "refused": refused}


@pytest.fixture
def repo(hub: Hub, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name that no other test uses; the Hub has forgotten what it was asked before."""
    hub.forget()
    yield "org/t" + hashlib.sha1(request.node.nodeid.encode()).hexdigest()[:12]
    hub.faults.clear()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Where other tests run too, several threads wait long for one another.

    Of a module's scope, so that it holds for fixtures of that scope too.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_products() -> Iterator[None]:
    """``bench`` takes the rate of products from small ones: large ones in bf16 take seconds."""
    from prunectl.benchmarking import limits

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(limits._SQUARE, "cpu", 64)
        yield
