"""``prunectl push``: publish an output on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunectl.cli import options, push_options
from prunectl.cli.output import Output
from prunectl.userdirs import expanded

EPILOG = options.examples(
    "prunectl push out/ org/name-pruned",
    "prunectl push out/ org/name --revision sparsity-40",
    "prunectl push out/ org/name --create-pr --commit-message 'Prune to 40%'",
    "prunectl push small/ org/name --delete '*.bin' --json | jq -r .commit_url",
)


def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            show_default=False,
            parser=expanded,
            help="A folder written by prunectl prune or export.",
        ),
    ],
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME", show_default=False, help="Repository; it is made if it is missing."
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="BRANCH",
            help="Branch to commit to, made from main if it is missing; default: main.",
        ),
    ] = None,
    private: push_options.Private = False,
    exist_ok: Annotated[
        bool,
        typer.Option(
            "--exist-ok/--no-exist-ok", help="Whether the repository may be there already."
        ),
    ] = True,
    create_pr: push_options.CreatePr = False,
    commit_message: push_options.CommitMessage = None,
    commit_description: Annotated[
        str | None,
        typer.Option(
            "--commit-description", metavar="TEXT", help="What follows the commit's first line."
        ),
    ] = None,
    delete: Annotated[
        list[str] | None,
        typer.Option(
            "--delete",
            metavar="GLOB",
            help="Delete files on the Hub that fit, in the same commit (repeatable).",
        ),
    ] = None,
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    jobs: options.Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Verify an output and publish it as one commit on the Hub.

    The manifest and the files that it lists go up, with the model card and the results of bench,
    evaluate and sweep next to them; results that measure other weights do not, nor does anything
    else. A second push of the same folder commits nothing; an interrupted push goes on where it
    stopped. A model card that was edited on the Hub keeps its text: only prunectl's section is
    replaced.

    Exit code 3: verification found a difference, and nothing was pushed.
    """
    out = Output(json=json, quiet=quiet, verbose=verbose)
    result = push_options.publish(
        folder,
        repo_id,
        out,
        revision=revision,
        private=private,
        exist_ok=exist_ok,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
        delete=delete or (),
        token=token,
        trust_remote_code=trust_remote_code,
        jobs=jobs,
    )
    if json:
        out.data(result.to_json())
