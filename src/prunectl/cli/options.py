"""Options that several commands share: the model, access to it, and files to save."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunectl import demo
from prunectl.cli.command_line import ARGV, RANKS, recorded_command
from prunectl.cli.model_argument import ModelChoice, choose_model
from prunectl.cli.output import NO_BARS, as_json, check_file, save_text
from prunectl.errors import InvalidOption
from prunectl.methods.spec import Needs
from prunectl.methods.table import needing
from prunectl.numbers import listed
from prunectl.option import COMPUTING, HUB, OUTPUT, Option
from prunectl.plan.settings import CALIBRATED_INSTEAD, Calibration, Method
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.checkpoint.mask_file import MaskFile
    from prunectl.checkpoint.remote import RemoteModel
    from prunectl.cli.output import Output
    from prunectl.cli.signatures import Given
    from prunectl.events import OnEvent
    from prunectl.parallel.ranks import Ranks

Remote = Annotated[
    bool,
    Option(
        "Read only the headers of a model on the Hub, by range requests; download no weights.",
        heading=HUB,
    ),
]
NoCache = Annotated[
    bool, Option("Read the weights even if their analysis is kept.", heading=COMPUTING)
]
Jobs = Annotated[
    int | None, Option("Threads; default: one per core, up to 8.", "N", COMPUTING, least=1)
]
SHARD_SIZE = "5GB"
MaxShardSize = Annotated[
    str, Option("Largest weights file; of an export, before compression.", "SIZE", OUTPUT)
]
Force = Annotated[bool, Option("Replace what is at --output, once all is written.", heading=OUTPUT)]


@dataclass(frozen=True)
class Access:
    """Access to models on the Hub, and permission to run their code."""

    token: Annotated[
        str | None, Option("Hub token; default: the one hf is logged in with.", "TOKEN", HUB)
    ] = None
    cache_dir: Annotated[
        Path | None, Option("Hub cache to use; default: that of hf.", "DIR", HUB)
    ] = None
    trust_remote_code: Annotated[
        bool, Option("Let the model's own Python code run.", heading=HUB)
    ] = False

    def open(
        self, choice: ModelChoice | str, out: Output, *, compressed: bool = False
    ) -> Checkpoint:
        """Open a model; note a look-up on the Hub, and warn of custom code.

        Args:
            compressed: whether a compressed folder of ``prunectl export`` is accepted.
        """
        from prunectl.checkpoint.opening import open_checkpoint, open_stored
        from prunectl.hub.snapshot import is_repo_id, split_revision
        from prunectl.loading.compressed import dense_view

        model, revision = (choice, None) if isinstance(choice, str) else choice
        self._warn_of_code(model, out)
        is_local = model == demo.NAME or os.path.exists(expanded(model))  # noqa: PTH110
        if not is_local and is_repo_id(split_revision(model)[0]):
            out.note(f"looking for {model} on the Hub and in its cache")
        with _download_progress(out) as on_event:
            found = (open_stored if compressed else open_checkpoint)(
                model,
                revision=revision,
                token=self.token,
                cache_dir=self.cache_dir,
                trust_remote_code=self.trust_remote_code,
                on_event=on_event,
            )
        return dense_view(found) if found.format == "compressed" else found

    def open_headers(self, choice: ModelChoice, jobs: int | None, out: Output) -> RemoteModel:
        """Read the headers of a model on the Hub; warn of custom code."""
        from prunectl.checkpoint.remote import REQUESTS, open_remote

        self._warn_of_code(choice.model, out)
        out.note(f"reading the headers of {choice.model} on the Hub")
        with _no_download_bars():
            return open_remote(
                choice.model,
                revision=choice.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                trust_remote_code=self.trust_remote_code,
                requests=jobs or REQUESTS,
            )

    def _warn_of_code(self, model: str, out: Output) -> None:
        if self.trust_remote_code:
            out.warn(f"--trust-remote-code lets Python code that comes with {model} run here")


@dataclass(frozen=True)
class RevisionAccess(Access):
    """As :class:`Access`, for a command with one model, whose revision can be named."""

    revision: Annotated[str | None, Option("Branch, tag or commit on the Hub.", "REV", HUB)] = None


@dataclass(frozen=True)
class OneModel(RevisionAccess):
    """The model of a command with an optional MODEL argument."""

    model: Annotated[
        str | None,
        Option(
            "Hub id (org/name or org/name@revision), folder, weights file, or demo (a small model "
            "that is part of prunectl). Left out: $PRUNECTL_MODEL, else the current folder if it "
            "holds a checkpoint, else the model analyzed last.",
            "MODEL",
            is_argument=True,
        ),
    ] = None

    def choose(self, out: Output) -> ModelChoice:
        """The model to use, also where none was typed; see :func:`choose_model`."""
        return choose_model(self.model, self.revision, out)

    def command(self, context: typer.Context, choice: ModelChoice, checkpoint: Checkpoint) -> str:
        """The command to record in a result, so that others can run it.

        A Hub id that was not typed is added. A local path that was not typed is left out: it means
        nothing on another machine.
        """
        typed = context.obj[ARGV]
        if self.model is None and checkpoint.kind in ("hub", "demo"):
            typed = [typed[0], choice.model, *typed[1:]]
        return recorded_command(typed)


@dataclass(frozen=True)
class Saved:
    """The files to which a command saves its result."""

    output: Annotated[
        Path | None, Option("Save all as JSON.", "FILE", OUTPUT, short="-o", suffix=".json")
    ] = None
    csv: Annotated[Path | None, Option("Save rows as CSV.", "FILE", OUTPUT, suffix=".csv")] = None
    html: Annotated[
        Path | None,
        Option(
            "Save a page with charts to look at in a browser; it needs no network "
            "(pip install 'prunectl[report]').",
            "FILE",
            OUTPUT,
            suffix=".html",
        ),
    ] = None
    png: Annotated[Path | None, Option("Save the chart.", "FILE", OUTPUT, suffix=".png")] = None
    svg: Annotated[Path | None, Option("Save the chart.", "FILE", OUTPUT, suffix=".svg")] = None

    @property
    def named(self) -> list[Path]:
        """The files that the user requested."""
        paths = (self.output, self.csv, self.html, self.png, self.svg)
        return [path for path in paths if path is not None]

    def check(self, *others: Path) -> None:
        """Check before the work that each file can be made and saved, and that all differ.

        Args:
            others: more files that the command writes.
        """
        for path in self.named:
            check_file(path)
        places = [path.resolve() for path in (*self.named, *others)]
        if twice := next((path for path in places if places.count(path) > 1), None):
            raise InvalidOption(f"{twice} is given for two files", hint="give each its own name")
        drawn = [name for name in ("html", "png", "svg") if getattr(self, name)]
        if drawn:
            from prunectl.report.charts import check_libraries

            check_libraries(f"--{drawn[0]}")

    def save(
        self, out: Output, document: Mapping[str, Any], **makers: Callable[[], str | bytes]
    ) -> None:
        """Make the requested files, write them, and note each.

        Args:
            document: the content of ``--output``.
            makers: functions that make the content of the other files, by field.
        """
        made = [
            (path, make())
            for field, make in {"output": lambda: as_json(dict(document)), **makers}.items()
            if (path := getattr(self, field)) is not None
        ]
        for path, content in made:
            save_text(path, content)
            out.note(f"saved: {path}")


def keep_source(source: Checkpoint | MaskFile, writes: Iterable[Path]) -> None:
    """Refuse to overwrite a file of the model, or the file of masks, that a command reads.

    In a model's folder, only results of prunectl are overwritten: any other file may belong to the
    model.
    """
    for path in writes:
        if path.exists() and _is_of(source, path):
            raise InvalidOption(
                f"{path} is a file of the model, which is never changed", hint="give another name"
            )


def _is_of(source: Checkpoint | MaskFile, path: Path) -> bool:
    """Whether a file belongs to a checkpoint, or is the file of masks."""
    from prunectl.checkpoint.mask_file import MaskFile
    from prunectl.checkpoint.sidefiles import is_model_file

    if isinstance(source, MaskFile):
        return path.resolve() == source.path.resolve()
    folder, place = source.folder.resolve(), path.parent.resolve() / path.name
    if source.kind == "file":  # other files of its folder may have nothing to do with it
        return place.parent == folder and is_model_file(path.name)
    return place.is_relative_to(folder) and not _is_result(path)


def _is_result(path: Path) -> bool:
    """Whether a file is a page, picture or table, or a JSON document that prunectl wrote."""
    if path.suffix.lower() in _RESULTS:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_OURS)) == _OURS


_RESULTS = (".html", ".csv", ".png", ".svg")
_OURS = b'{\n  "schema": "prunectl.'


def ranks_of(context: typer.Context) -> Ranks:
    """The processes that share this command."""
    from prunectl.parallel.ranks import ALONE

    ranks: Ranks | None = context.obj[RANKS]
    return ranks or ALONE


def warn_of(checkpoint: Checkpoint, out: Output) -> None:
    """Print the notes from opening a checkpoint, for commands whose verb does not report them."""
    for text in checkpoint.notes:
        out.warn(text)


@contextlib.contextmanager
def _download_progress(out: Output) -> Iterator[OnEvent | None]:
    """Yield a receiver of download progress; None where huggingface_hub draws bars itself."""
    if out.draws_bars:
        yield None
        return
    with out.progress() as on_event, _no_download_bars():
        yield on_event


@contextlib.contextmanager
def _no_download_bars() -> Iterator[None]:
    """Keep huggingface_hub, which is imported inside the ``with`` block, from drawing bars."""
    if NO_BARS in os.environ:
        yield
        return
    os.environ[NO_BARS] = "1"
    try:
        yield
    finally:
        del os.environ[NO_BARS]


def calibration_of(
    given: Given[Calibration],
    model: str,
    method: Method,
    refine: bool,
    reconstruct: bool,
    device: str | None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Calibration | None:
    """The calibration settings from the options; None where nothing is calibrated.

    Args:
        model: the model to prune: ``demo``, and a folder made from it, need no source.
        refine, reconstruct: whether survivors are fitted, which needs calibration with any method.
        device: where the samples are run; None is ``auto``.
        names: names of options that differ from their fields, by field.
    """
    if not (method.spec.is_calibrated or refine or reconstruct):
        for name in given.typed:
            option = {"source": "calibration", **names}.get(name, name).replace("_", "-")
            raise InvalidOption(
                f"--{option} is for calibration, and method {method} has none",
                hint=CALIBRATED_INSTEAD,
            )
        return None
    if "damping" in given.typed and method.spec.needs is not Needs.MOMENTS and not refine:
        raise InvalidOption(
            f"--damping is added to second moments, which method {method} does not use",
            hint=f"choose --method {listed(needing(Needs.MOMENTS))}, or add --refine",
        )
    reads_demo = model == demo.NAME or demo.has_its_tokenizer(expanded(model))
    texts = given.values["source"] or ((demo.NAME,) if reads_demo else ())
    if texts:
        from prunectl.data.source import parse_source

        parse_source(texts, "--calibration")
    return given.make(source=texts, device=device or "auto")
