"""Options that several commands share, spelled once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunectl import demo
from prunectl.cli.command_line import ARGV, RANKS, recorded_command
from prunectl.cli.output import NO_BARS
from prunectl.errors import InvalidOption
from prunectl.methods.table import DEFAULT, Method
from prunectl.numbers import listed
from prunectl.plan.settings import Scope
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.checkpoint.mask_file import MaskFile
    from prunectl.checkpoint.remote import RemoteModel
    from prunectl.cli.model_argument import ModelChoice
    from prunectl.cli.output import Output
    from prunectl.events import OnEvent
    from prunectl.parallel.ranks import Ranks

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def examples(*commands: str) -> str:
    """An epilog of one command a line; the backspace keeps typer from joining the lines."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {command}" for command in commands)


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Hub id (org/name or org/name@revision), folder, weights file, or demo (a small "
        "model that is part of prunectl). Left out: "
        "$PRUNECTL_MODEL, else the current folder if it holds a checkpoint, else the model "
        "analyzed last.",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit on the Hub.")
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="Hub token; default: the one hf is logged in with."
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        parser=expanded,
        help="Hub cache to use; default: that of hf.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the model's own Python code run.",
    ),
]
Remote = Annotated[
    bool,
    typer.Option(
        "--remote",
        help="Of a model on the Hub, read only headers (by range requests); download no weights.",
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Read the weights even if their analysis is kept.")
]


def _usual_scopes() -> str:
    """What methods compare together: the default's scope, and that of those that have another."""
    others = dict.fromkeys(method.spec.scope for method in Method)
    del others[DEFAULT.spec.scope]
    users = {scope: [one for one in Method if one.spec.scope is scope] for scope in others}
    of_others = [f"{scope} for {listed(methods, 'and')}" for scope, methods in users.items()]
    return ", ".join([DEFAULT.spec.scope, *of_others])


ScopeOption = Annotated[
    Scope | None,
    typer.Option(
        "--scope",
        help=f"What is compared together (unstructured only); default: {_usual_scopes()}.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="NAME",
        help="Also prune these tensors: a name, a module, a glob, re:EXPRESSION (repeatable).",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="NAME", help="Leave these tensors as they are (repeatable)."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        metavar="N",
        show_default=False,
        help="Threads; default: one per core, up to 8.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and no tables.")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only warnings and errors (and what --json prints)."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]


def open_source(
    choice: ModelChoice,
    token: str | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    out: Output,
    *,
    compressed: bool = False,
) -> Checkpoint:
    """Open the chosen model, with a word on what takes time or trust.

    Args:
        compressed: whether the folder may be one that ``prunectl export`` has written.

    Raises:
        SourceError: as :func:`prunectl.open_checkpoint`.
    """
    from prunectl.checkpoint.opening import open_checkpoint, open_stored
    from prunectl.hub.snapshot import is_repo_id, split_revision
    from prunectl.loading.compressed import dense_view

    if trust_remote_code:
        out.warn(f"--trust-remote-code lets Python code that comes with {choice.model} run here")
    is_local = choice.model == demo.NAME or os.path.exists(expanded(choice.model))  # noqa: PTH110
    if not is_local and is_repo_id(split_revision(choice.model)[0]):
        out.note(f"looking for {choice.model} on the Hub and in its cache")
    with _download_progress(out) as on_event:
        found = (open_stored if compressed else open_checkpoint)(
            choice.model,
            revision=choice.revision,
            token=token,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            on_event=on_event,
        )
    return dense_view(found) if found.format == "compressed" else found


def keep_source(source: Checkpoint | MaskFile, writes: Iterable[Path | None]) -> None:
    """Refuse to put what a command writes in the place of a file of its model, or of its masks.

    Only what prunectl wrote is replaced in a model's folder: anything else may belong to the model.

    Raises:
        InvalidOption: one of ``writes`` is the model's.
    """
    for path in writes:
        if path is not None and path.exists() and _is_of(source, path):
            raise InvalidOption(
                f"{path} is a file of the model, which is never changed", hint="give another name"
            )


def _is_of(source: Checkpoint | MaskFile, path: Path) -> bool:
    from prunectl.checkpoint.mask_file import MaskFile
    from prunectl.checkpoint.sidefiles import is_model_file

    if isinstance(source, MaskFile):
        return path.resolve() == source.path.resolve()
    folder, place = source.folder.resolve(), path.parent.resolve() / path.name
    if source.kind == "file":  # the folder may be full of other things
        return place.parent == folder and is_model_file(path.name)
    return place.is_relative_to(folder) and not _is_result(path)


def _is_result(path: Path) -> bool:
    """Whether a file is a page, picture or table, or a JSON document of prunectl's."""
    if path.suffix.lower() in _RESULTS:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_OURS)) == _OURS


_RESULTS = (".html", ".csv", ".png", ".svg")
_OURS = b'{\n  "schema": "prunectl.'


def open_headers(
    choice: ModelChoice,
    token: str | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    jobs: int | None,
    out: Output,
) -> RemoteModel:
    """Read the headers of the chosen model on the Hub, with a word on what takes time or trust.

    Raises:
        SourceError, InvalidOption: as :func:`prunectl.checkpoint.remote.open_remote`.
    """
    from prunectl.checkpoint.remote import REQUESTS, open_remote

    if trust_remote_code:
        out.warn(f"--trust-remote-code lets Python code that comes with {choice.model} run here")
    out.note(f"reading the headers of {choice.model} on the Hub")
    with _no_download_bars():
        return open_remote(
            choice.model,
            revision=choice.revision,
            token=token,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            requests=jobs or REQUESTS,
        )


def parsed_size(text: str) -> int:
    """A size such as ``5GB`` in bytes.

    Raises:
        InvalidOption: it is none.
    """
    from prunectl.output.shards import parse_size

    return parse_size(text)


def command_of(
    context: typer.Context, given: str | None, choice: ModelChoice, checkpoint: Checkpoint
) -> str:
    """The command as it is written down: it means the same to others, who lack our last model.

    A local path that was not typed is left out: it says nothing to them.
    """
    typed = context.obj[ARGV]
    if given is None and checkpoint.kind in ("hub", "demo"):
        typed = [typed[0], choice.model, *typed[1:]]
    return recorded_command(typed)


def ranks_of(context: typer.Context) -> Ranks:
    """The processes that share this command."""
    from prunectl.parallel.ranks import ALONE

    ranks: Ranks | None = context.obj[RANKS]
    return ranks or ALONE


def warn_of(checkpoint: Checkpoint, out: Output) -> None:
    """Print what the user should know of how a checkpoint was opened, where no verb says it."""
    for text in checkpoint.notes:
        out.warn(text)


@contextlib.contextmanager
def _download_progress(out: Output) -> Iterator[OnEvent | None]:
    """Who draws the progress of a download: huggingface_hub its bars (None), else we our lines."""
    if out.draws_bars:
        yield None
        return
    with out.progress() as on_event, _no_download_bars():
        yield on_event


@contextlib.contextmanager
def _no_download_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars: it is imported inside the block."""
    if NO_BARS in os.environ:
        yield
        return
    os.environ[NO_BARS] = "1"
    try:
        yield
    finally:
        del os.environ[NO_BARS]
