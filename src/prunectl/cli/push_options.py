"""The options of a push, for ``prunectl push`` and for commands that end with one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunectl.errors import InvalidOption, PrunectlError

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.cli.output import Output
    from prunectl.publishing.result import PushResult

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


@dataclass(frozen=True, slots=True)
class PushAfter:
    """What shall be done with an output once it is written; ``repo_id`` None is nothing."""

    repo_id: str | None
    revision: str | None
    private: bool
    create_pr: bool
    commit_message: str | None
    token: str | None
    trust_remote_code: bool
    jobs: int | None

    def check(self) -> None:
        """Find out before the work what cannot be.

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
            source: the open checkpoint that it is compared with first.
        """
        if self.repo_id is None:
            return None
        from prunectl.publishing.verb import push

        try:
            with out.progress() as on_event:
                result = push(
                    folder,
                    self.repo_id,
                    revision=self.revision,
                    private=self.private,
                    create_pr=self.create_pr,
                    commit_message=self.commit_message,
                    source=source,
                    token=self.token,
                    trust_remote_code=self.trust_remote_code,
                    jobs=self.jobs,
                    on_event=on_event,
                )
        except PrunectlError:
            out.warn(f"{folder} is complete, and not pushed; prunectl push would do that alone")
            raise
        if not out.json:
            from prunectl.cli.push_screen import push_screen

            out.show(*push_screen(result, everything=out.verbose))
        return result


def document(pushed: PushResult | None) -> dict[str, Any]:
    """What a push adds to the document of the command before it."""
    return {} if pushed is None else {"push": pushed.to_json()}
