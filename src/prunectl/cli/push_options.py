"""A push from the command line, by ``prunectl push`` and by commands that end with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunectl import numbers
from prunectl.cli.command_line import visible
from prunectl.errors import InvalidOption, PrunectlError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.cli.output import Output
    from prunectl.publishing.verb import PushResult

Push = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="ORG/NAME",
        help="Verify the output and publish it there on the Hub; see prunectl push.",
    ),
]
PushRevision = Annotated[
    str | None,
    typer.Option(
        "--push-revision", metavar="BRANCH", help="With --push: branch to commit to; default: main."
    ),
]
Private = Annotated[
    bool, typer.Option("--private", help="Make the repository private, if it is made.")
]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Suggest the commit as a pull request.")
]
CommitMessage = Annotated[
    str | None,
    typer.Option(
        "--commit-message",
        metavar="TEXT",
        help="First line of the commit; default: what the folder is.",
    ),
]

_MOST_FILES = 5


@dataclass(frozen=True, slots=True)
class PushAfter:
    """Where to push an output once it is written; ``repo_id`` None is nowhere."""

    repo_id: str | None
    revision: str | None
    private: bool
    create_pr: bool
    commit_message: str | None
    token: str | None
    trust_remote_code: bool
    jobs: int | None

    def check(self) -> None:
        """Check the options before the work.

        Raises:
            InvalidOption: options of a push without ``--push``, or that contradict each other.
            InvalidRepository: no repository can have that name.
        """
        if self.repo_id is None:
            given = {
                "--push-revision": self.revision,
                "--private": self.private,
                "--create-pr": self.create_pr,
                "--commit-message": self.commit_message,
            }
            for name, value in given.items():
                if value:
                    raise InvalidOption(
                        f"{name} is about a push, and none is asked for",
                        hint="add --push ORG/NAME",
                    )
            return
        from prunectl.publishing.verb import check_push

        check_push(
            self.repo_id,
            self.revision,
            create_pr=self.create_pr,
            commit_message=self.commit_message,
        )

    def push(
        self, folder: Path, out: Output, *, source: Checkpoint | None = None
    ) -> PushResult | None:
        """Publish the finished output, if that was asked for.

        Args:
            source: the open checkpoint that the output is compared with first.
        """
        if self.repo_id is None:
            return None
        try:
            return publish(
                folder,
                self.repo_id,
                out,
                revision=self.revision,
                private=self.private,
                create_pr=self.create_pr,
                commit_message=self.commit_message,
                source=source,
                token=self.token,
                trust_remote_code=self.trust_remote_code,
                jobs=self.jobs,
            )
        except PrunectlError:
            out.warn(f"{folder} is complete, and not pushed; prunectl push would do that alone")
            raise


def document(pushed: PushResult | None) -> dict[str, Any]:
    """What a push adds to the document of the command before it."""
    return {} if pushed is None else {"push": pushed.to_json()}


def publish(folder: Path, repo_id: str, out: Output, **options: Any) -> PushResult:
    """Push with progress, and show what was done, unless the command prints JSON.

    Args:
        options: as for :func:`prunectl.push`.
    """
    from prunectl.publishing.verb import push

    with out.progress() as on_event:
        result = push(folder, repo_id, on_event=on_event, **options)
    if not out.json:
        out.show(*push_screen(result, everything=out.verbose))
    return result


def push_screen(result: PushResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: all changed files instead of the first five.
    """
    from prunectl.cli.tables import facts, heading, sentence

    branch = f"@{result.revision}" if result.revision else ""
    yield heading(f"{result.folder} -> {result.repo_id}{branch}")
    limit = None if everything else _MOST_FILES
    yield facts(
        [
            ("", " "),
            ("changed", _names(result.uploaded, limit)),
            ("size", numbers.size(result.nbytes) if result.changed else ""),
            ("deleted", _names(result.deleted, limit)),
            ("commit", result.commit_url),
            ("pull request", result.pull_request or ""),
            ("time", numbers.duration(result.seconds)),
        ]
    )
    if not result.changed:
        there = "The pull request" if result.pull_request else "The Hub"
        yield sentence(f"{there} has all {result.files:,} files already: nothing was committed.")
    elif result.pull_request:
        yield sentence(f"Suggested: {result.pull_request}")
    else:
        model = f"{result.repo_id}{branch}"
        yield sentence(f"Published: prunectl analyze {model} reads it from there.")


def _names(names: tuple[str, ...], limit: int | None) -> str:
    shown = visible(", ".join(names[:limit]))
    more = len(names) - len(names[:limit])
    return f"{shown} and {more:,} more" if more else shown
