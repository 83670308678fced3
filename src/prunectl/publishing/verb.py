"""The ``push`` verb: verify an output, merge its card with the Hub's, make one commit."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import InvalidOption, NotVerified
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.hub.errors import InvalidRepository, PushConflict, PushError
from prunectl.hub.files import HubListing
from prunectl.hub.upload import (
    Change,
    Content,
    HubRepository,
    Published,
    check_repo_id,
    hub_repository,
    matching,
)
from prunectl.layouts.table import DENSE
from prunectl.output.card import merged_card, same_text, section_of, sections
from prunectl.output.manifest import Manifest, read_manifest
from prunectl.output.measured import named_results, results_in
from prunectl.output.target import CARD_NAME, MANIFEST_NAME, listed_names
from prunectl.publishing.folder import (
    ATTRIBUTES,
    Stamps,
    card_of,
    local_card,
    local_files,
    published_results,
    stamps,
)
from prunectl.verification.verb import verify

_OTHER_WEIGHTS = re.compile(
    r"(model|pytorch_model)[\w.-]*\.(safetensors|bin)(\.index\.json)?", re.ASCII
)
"""Files that a loader would take in place of ours."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did.

    Attributes:
        folder: what was pushed. repo_id: where to.
        revision: the branch that was asked for; None is main.
        changed: whether there is a new commit; False if the Hub had everything already.
        commit: id of the commit that holds the folder's files now. commit_url: its page.
        pull_request: address of the pull request, with ``create_pr``.
        uploaded, deleted: files that the commit changes.
        files: how many files the folder has on the Hub. nbytes: of those in ``uploaded``.
        seconds: wall time, verification included.
    """

    folder: Path
    repo_id: str
    revision: str | None
    changed: bool
    commit: str
    commit_url: str
    pull_request: str | None
    uploaded: tuple[str, ...]
    deleted: tuple[str, ...]
    files: int
    nbytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        from prunectl.to_json import to_json

        return {"schema": "prunectl.push/1", **to_json(self)}


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

    The manifest and what it lists go up, with the model card and the results of ``bench``,
    ``evaluate`` and ``sweep`` next to them, which the card shows too; results that measure other
    weights do not, nor does anything else. If the Hub has all of it already, nothing is committed.
    Files of an earlier output of prunectl that this one has not are deleted in the same commit;
    other files stay.

    Args:
        folder: the output.
        repo_id: ``org/name``; ``name`` alone is the user's own. It is made if it is missing.
        revision: branch to commit to, made from main if it is missing; None is main.
        private: whether a repository that is made is private; an existing one must be, too.
        exist_ok: whether the repository may exist already.
        create_pr: suggest the commit as a pull request to main.
        commit_message, commit_description: by default they say what the folder is.
        delete: globs; files on the Hub that match one are deleted in the same commit.
        source: what the folder is compared with first, as for :func:`verify`.
        token: of the Hub; None is the one that hf uses.
        trust_remote_code, jobs: for the verification.
        on_event: receives progress.

    Raises:
        BadManifest: there is no manifest that can be read.
        NotVerified: the folder is not what the manifest says.
        InvalidRepository: the name or branch cannot exist, or is something else.
        PushDenied: the token is missing, wrong, or not enough.
        PushConflict: somebody else has committed meanwhile, or other weights are in the way.
        PushError: the Hub cannot be reached or refuses; the branch is as it was.
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
        job = _Job(repo, path, files, card, tuple(delete), before)
        listing = repo.branch(revision)
        if private and not listing.private:
            why = "is public, and --private was asked for"
            raise InvalidRepository(repo.repo_id, why, hint="make it private on the Hub first")
        changed, deleted = _changes(job, listing, on_event)
        message = commit_message or _message(manifest)
        change = Change(changed, deleted, revision, create_pr, message, commit_description or "")
        done = _publish(job, listing, change)
    sent = changed if done.is_new else {}
    nbytes = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in sent.values())
    return PushResult(
        path, repo.repo_id, revision, done.is_new, done.commit, done.url, done.pull,
        tuple(sorted(sent)), tuple(deleted if done.is_new else ()), len(files) + 1, nbytes,
        time.perf_counter() - started,
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
class _Job:
    """What is published where.

    Attributes:
        files: by name, without the model card. card: the folder's, as it goes to this repository.
        delete: globs of files on the Hub. before: stamps of the files that were verified.
    """

    repo: HubRepository
    folder: Path
    files: dict[str, Content]
    card: str
    delete: tuple[str, ...]
    before: Stamps


def _publish(job: _Job, listing: HubListing, change: Change) -> Published:
    """Make the commit, unless it would change nothing or is suggested already."""
    repo = job.repo
    if not change.files and not change.deleted:
        return Published(listing.commit, repo.address(listing.commit), is_new=False)
    for revision, url in repo.pulls() if change.create_pr else ():
        pull = repo.listing(revision)
        if pull is not None and _changes(job, pull) == ({}, []):
            return Published(pull.commit, repo.address(pull.commit), url, is_new=False)
    if CARD_NAME in change.files:
        repo.check_card(_text(job, change.files[CARD_NAME]))
    made = repo.commit(listing, change, lambda: _check_unchanged(job))
    after = repo.listing(made.commit)
    missing = sorted(_changes(job, after)[0]) if after else ["the commit"]
    if missing:
        why = f"the Hub has made commit {made.commit[:7]} without {', '.join(missing[:3])}"
        raise PushError(repo.repo_id, why)
    return made


def _changes(
    job: _Job, listing: HubListing, on_event: OnEvent = ignore_events
) -> tuple[dict[str, Content], list[str]]:
    """Files to send and names to delete, so that the revision becomes what was asked for."""
    there = job.repo.read(listing, CARD_NAME)
    theirs = None if there is None else _text(job, there)
    if theirs is not None and not same_text(job.card, theirs):
        on_event(Note(f"{CARD_NAME} on the Hub keeps its own text, but for prunectl's section"))
    if theirs is not None and (count := sections(theirs)) > 1:
        what = f"{CARD_NAME} on the Hub has {count} sections of prunectl; only the first is renewed"
        on_event(Note(what, warning=True))
    files = job.files | {CARD_NAME: merged_card(job.card, theirs).encode()}
    changed = job.repo.lacking(files, listing)
    if ATTRIBUTES in changed:
        # The Hub adds a line for each large file without a rule; its lines stay.
        own = (job.folder / ATTRIBUTES).read_bytes()
        if (job.repo.read(listing, ATTRIBUTES) or b"").startswith(own):
            del changed[ATTRIBUTES]
    others = [name for name in listing.files if name not in files and name != ATTRIBUTES]
    return changed, _deletions(job, listing, others, section_of(theirs or ""))


def _deletions(job: _Job, listing: HubListing, others: list[str], section: str) -> list[str]:
    """Files on the Hub that go: those of an earlier output, and those that were asked for."""
    listed = listed_names(job.repo.read(listing, MANIFEST_NAME) or b"") or set()
    gone = (listed | named_results(section)) & set(others) | matching(others, job.delete)
    stay = [name for name in others if name not in gone and _OTHER_WEIGHTS.fullmatch(name)][:3]
    if stay:
        raise PushConflict(
            job.repo.repo_id,
            f"holds other weights: {', '.join(stay)}, which loaders could take for these",
            hint="push elsewhere, or delete them in the same commit: "
            + " ".join(f"--delete '{name}'" for name in stay),
        )
    return sorted(gone)


def _text(job: _Job, content: Content) -> str:
    """A model card's text."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError:
        why = f"{CARD_NAME} on the Hub is not UTF-8"
        raise PushError(job.repo.repo_id, why, hint="correct or delete it there") from None


def _check_unchanged(job: _Job) -> None:
    """Raise PushError if a file is no longer the one that was verified."""
    now = stamps(job.folder, job.before)
    different = sorted(name for name in job.before if now[name] != job.before[name])
    if different:
        why = f"{', '.join(different[:3])} changed while the folder was pushed"
        hint = "nothing was committed; when nobody writes there any more, repeat the command"
        raise PushError(job.repo.repo_id, why, hint=hint)


def _message(manifest: Manifest) -> str:
    layouts = {tensor.layout for tensor in manifest.tensors} - {DENSE}
    stored = f", stored {' and '.join(sorted(layouts))}" if layouts else ""
    return f"prunectl: {manifest.prunable.achieved:.1%} of the prunable weights are zero{stored}"
