"""The ``push`` verb."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import InvalidOption
from prunectl.events import OnEvent, ignore_events
from prunectl.layouts.table import DENSE
from prunectl.output.hub_state import HubState
from prunectl.output.manifest import Manifest, read_manifest
from prunectl.output.measured import results_in
from prunectl.output.push_errors import InvalidRepository, NotVerified, PushError
from prunectl.output.target import CARD_NAME
from prunectl.output.upload import HubRepository, check_repo_id, hub_repository
from prunectl.publishing.changes import Job, changes, text_of
from prunectl.publishing.result import PushResult
from prunectl.publishing.selection import (
    Stamps,
    card_of,
    local_card,
    local_files,
    published_results,
    stamps,
)
from prunectl.verification.verb import verify


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    exist_ok: bool = True,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    delete: Sequence[str] = (),
    source: Checkpoint | str | os.PathLike[str] | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    jobs: int | None = None,
    on_event: OnEvent = ignore_events,
) -> PushResult:
    """Verify an output of ``prune`` or ``export``, and publish it as one commit on the Hub.

    What the manifest lists goes up, with the manifest, the model card, and the results of
    ``bench``, ``evaluate`` and ``sweep`` beside them (the card shows them too), but for those that
    measure other weights; nothing else does. If the Hub has all of it already, nothing is
    committed. Files that an earlier output of prunectl had there and this one has not are deleted
    in the same commit; other files stay.

    Args:
        folder: the output.
        repo_id: ``org/name``; ``name`` alone is the user's own. It is made if it is missing.
        revision: branch to commit to, made from main if it is missing; None is main.
        private: whether a repository that is made is private; one that is there must be, too.
        exist_ok: whether the repository may be there already.
        create_pr: suggest the commit as a pull request to main.
        commit_message, commit_description: by default they say what the folder is.
        delete: globs; files on the Hub that fit one are deleted in the same commit.
        source: what the folder is compared with before, as for :func:`verify`.
        token: of the Hub; None is the one that hf uses.
        trust_remote_code, jobs: for the verification.
        on_event: receives progress.

    Raises:
        BadManifest: there is no manifest that can be read.
        NotVerified: the folder is not what the manifest says.
        InvalidRepository: the name or branch cannot be, or is something else.
        PushDenied: the token is missing, wrong, or not enough.
        PushConflict: somebody else has committed meanwhile, or other weights are in the way.
        PushError: the Hub cannot be reached or refuses; what it shows is as it was.
        InvalidOption: options that contradict each other.
    """
    started = time.perf_counter()
    check_push(repo_id, revision, create_pr=create_pr, commit_message=commit_message)
    path = Path(folder)
    manifest = read_manifest(path)
    files = local_files(path, manifest)
    before = stamps(path, [*files, CARD_NAME, *results_in(path, manifest.files)])
    report = verify(
        path, source=source, token=token, trust_remote_code=trust_remote_code, jobs=jobs,
        on_event=on_event,
    )  # fmt: skip
    if not report.ok:
        problems = (f"{found.where} {found.detail}" for found in report.differences)
        raise NotVerified(path, tuple(problems))
    results = published_results(path, manifest, on_event)
    files |= {result.name: path / result.name for result in results}
    text = local_card(path)  # before anything is made on the Hub
    with hub_repository(repo_id, token=token, on_event=on_event) as repo:
        repo.create(private=private, exist_ok=exist_ok)
        card = card_of(text, path, manifest, repo.repo_id, results)
        job = Job(repo, path, files, card, tuple(delete), on_event)
        state = _state(repo, revision)
        if private and not state.private:
            why = "is public, and --private was asked for"
            raise InvalidRepository(repo.repo_id, why, hint="make it private on the Hub first")
        message = commit_message or _message(manifest)
        suggestion = _Suggestion(revision, create_pr, message, commit_description or "")
        done = _commit(job, state, suggestion, before)
    return PushResult(
        path, repo.repo_id, revision, done.changed, done.commit, done.url, done.pull,
        done.uploaded, done.deleted, len(files) + 1, done.nbytes, time.perf_counter() - started,
    )  # fmt: skip


def check_push(
    repo_id: str, revision: str | None, *, create_pr: bool, commit_message: str | None
) -> None:
    """Check what can be checked before anything is done.

    Raises:
        InvalidRepository: no repository can have that name.
        InvalidOption: options that contradict each other.
    """
    check_repo_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise InvalidOption(
            "a pull request is one to main, and another revision is given",
            hint="leave --revision or --create-pr out",
        )
    if commit_message is not None and not commit_message.strip():
        raise InvalidOption("the commit message is empty", hint="leave --commit-message out")


@dataclass(frozen=True, slots=True)
class _Suggestion:
    """Where a commit goes, and what it says."""

    revision: str | None
    create_pr: bool
    message: str
    description: str


@dataclass(frozen=True, slots=True)
class _Done:
    """What was committed, if anything was."""

    changed: bool
    commit: str
    url: str
    pull: str | None = None
    uploaded: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    nbytes: int = 0


def _state(repo: HubRepository, revision: str | None) -> HubState:
    """What the branch holds; it is made where it is missing."""
    state = repo.state(revision)
    if revision is not None and revision != "main":
        if state is not None:
            repo.check_branch(revision)
        else:
            repo.make_branch(revision)
            state = repo.state(revision)
    if state is None:
        raise PushError(repo.repo_id, f"the Hub has no revision {revision or 'main'}")
    return state


def _commit(job: Job, state: HubState, suggestion: _Suggestion, before: Stamps) -> _Done:
    """Make the revision what the folder is, unless it is that already."""
    repo = job.repo
    changed, deleted = changes(job, state, tell=True)
    if not changed and not deleted:
        return _Done(False, state.commit, repo.address(state.commit))
    if suggestion.create_pr and (pull := _same_pull(job)):
        return pull
    if CARD_NAME in changed:
        repo.check_card(text_of(job, changed[CARD_NAME]))
    sizes = [len(c) if isinstance(c, bytes) else c.stat().st_size for c in changed.values()]
    made = repo.commit(
        state,
        changed,
        deleted,
        job.digests,
        revision=suggestion.revision,
        create_pr=suggestion.create_pr,
        message=suggestion.message,
        description=suggestion.description,
        last_look=lambda: _check_unchanged(job, before),
    )
    after = repo.state(made.commit)
    missing = sorted(changes(job, after)[0]) if after else ["the commit"]
    if missing:
        why = f"the Hub has made commit {made.commit[:7]} without {', '.join(missing[:3])}"
        raise PushError(repo.repo_id, why)
    return _Done(
        True, made.commit, made.url, made.pull, tuple(sorted(changed)), tuple(deleted), sum(sizes)
    )


def _check_unchanged(job: Job, before: Stamps) -> None:
    """Raise PushError if a file is no longer the one that was verified."""
    now = stamps(job.folder, before)
    different = sorted(name for name in before if now[name] != before[name])
    if different:
        why = f"{', '.join(different[:3])} changed while the folder was pushed"
        hint = "nothing was committed; when nobody writes there any more, repeat the command"
        raise PushError(job.repo.repo_id, why, hint=hint)


def _same_pull(job: Job) -> _Done | None:
    """An open pull request that already is what would be suggested."""
    for revision, url in job.repo.pulls():
        state = job.repo.state(revision)
        if state is not None and changes(job, state) == ({}, []):
            return _Done(False, state.commit, job.repo.address(state.commit), url)
    return None


def _message(manifest: Manifest) -> str:
    layouts = {tensor.layout for tensor in manifest.tensors} - {DENSE}
    stored = f", stored {' and '.join(sorted(layouts))}" if layouts else ""
    return f"prunectl: {manifest.prunable.achieved:.1%} of the prunable weights are zero{stored}"
