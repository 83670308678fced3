"""``prunectl push``: publish an output on the Hub; also after ``prune`` and ``export``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.command_line import visible
from prunectl.cli.output import Output
from prunectl.cli.tables import facts, heading, sentence
from prunectl.errors import InvalidOption, PrunectlError
from prunectl.option import PUSHING, Fields, Option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.publishing.verb import PushResult

EXAMPLES = (
    "prunectl push out/ org/name-pruned",
    "prunectl push out/ org/name --revision sparsity-40",
    "prunectl push out/ org/name --create-pr --commit-message 'Prune to 40%'",
    "prunectl push small/ org/name --delete '*.bin' --json | jq -r .commit_url",
)


@dataclass(frozen=True)
class Commit:
    """The commit that a push makes."""

    revision: Annotated[
        str | None,
        Option(
            "Branch to commit to, made from main if it is missing; default: main.",
            "BRANCH",
            PUSHING,
        ),
    ] = None
    private: Annotated[
        bool, Option("Make the repository private, if it is made.", heading=PUSHING)
    ] = False
    create_pr: Annotated[bool, Option("Suggest the commit as a pull request.", heading=PUSHING)] = (
        False
    )
    commit_message: Annotated[
        str | None,
        Option("First line of the commit; default: what the folder is.", "TEXT", PUSHING),
    ] = None


@dataclass(frozen=True)
class PushAfter(Commit):
    """What shall be done with an output once it is written; ``repo_id`` None is nothing."""

    revision: Annotated[
        str | None,
        Option(
            "With --push: branch to commit to; default: main.",
            "BRANCH",
            PUSHING,
            "--push-revision",
        ),
    ] = None
    repo_id: Annotated[
        str | None,
        Option(
            "Verify the output and publish it there on the Hub; see prunectl push.",
            "ORG/NAME",
            PUSHING,
            "--push",
        ),
    ] = None

    def check(self) -> None:
        """Find out before the work what cannot be."""
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
                        f"{name} needs --push",
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
        self,
        folder: Path,
        access: options.Access,
        jobs: int | None,
        out: Output,
        source: Checkpoint | None = None,
    ) -> dict[str, Any]:
        """Publish the finished output, if that was asked for.

        Args:
            source: the open checkpoint that it is compared with first.

        Returns:
            what the push adds to the document of the command before it.
        """
        if self.repo_id is None:
            return {}
        try:
            return {"push": _push(folder, self.repo_id, self, access, jobs, out, source=source)}
        except PrunectlError:
            out.warn(f"{folder} is complete, but not pushed; prunectl push repeats only the push")
            raise


def push(
    folder: Annotated[
        Path, Option("A folder written by prunectl prune or export.", "DIR", is_argument=True)
    ],
    repo_id: Annotated[
        str, Option("Repository; it is made if it is missing.", "ORG/NAME", is_argument=True)
    ],
    commit: Commit,
    access: Annotated[options.Access, Fields(without=("cache_dir",))],
    out: Output,
    exist_ok: Annotated[
        bool,
        Option(
            "Whether the repository may be there already.",
            heading=PUSHING,
            name="--exist-ok/--no-exist-ok",
        ),
    ] = True,
    commit_description: Annotated[
        str | None, Option("What follows the commit's first line.", "TEXT", PUSHING)
    ] = None,
    delete: Annotated[
        tuple[str, ...],
        Option(
            "Delete files on the Hub that fit, in the same commit (repeatable).", "GLOB", PUSHING
        ),
    ] = (),
    jobs: options.Jobs = None,
) -> None:
    """Verify an output and publish it as one commit on the Hub.

    The manifest and the files that it lists go up, with the model card and the results of bench,
    evaluate and sweep next to them; results that measure other weights do not, nor does anything
    else. A second push of the same folder commits nothing; an interrupted push goes on where it
    stopped. A model card that was edited on the Hub keeps its text: only prunectl's section is
    replaced.

    Exit code 3: verification found a difference, and nothing was pushed.
    """
    more = {"exist_ok": exist_ok, "commit_description": commit_description, "delete": delete}
    out.data(_push(folder, repo_id, commit, access, jobs, out, **more))


def _push(
    folder: Path,
    repo_id: str,
    commit: Commit,
    access: options.Access,
    jobs: int | None,
    out: Output,
    **more: Any,
) -> dict[str, Any]:
    """Publish a folder and show what was done; the result as a document."""
    from prunectl.publishing.verb import push

    with out.progress() as on_event:
        result = push(
            folder,
            repo_id,
            revision=commit.revision,
            private=commit.private,
            create_pr=commit.create_pr,
            commit_message=commit.commit_message,
            token=access.token,
            trust_remote_code=access.trust_remote_code,
            jobs=jobs,
            on_event=on_event,
            **more,
        )
    out.show(*push_screen(result, everything=out.verbose))
    return result.to_json()


_MOST_FILES = 5


def push_screen(result: PushResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
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
