"""The ``push`` verb."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import InvalidOption
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.publishing.result import PushResult
from prunectl.publishing.selection import ATTRIBUTES, card_of, listed_names, local_files
from prunectl.sink.hub_card import merged_card, same_text
from prunectl.sink.hub_state import Content, Digests, HubState, differing, matching
from prunectl.sink.manifest import Manifest, read_manifest
from prunectl.sink.push_errors import InvalidRepository, NotVerified, PushConflict, PushError
from prunectl.sink.target import CARD_NAME, MANIFEST_NAME
from prunectl.sink.upload import HubRepository, check_repo_id, hub_repository
from prunectl.verification.verb import verify

_OTHER_WEIGHTS = re.compile(
    r"(model|pytorch_model)[\w.-]*\.(safetensors|bin)(\.index\.json)?", re.ASCII
)
"""Files in whose place a loader would not look at ours."""


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

    What the manifest lists goes up, with the manifest and the model card; nothing else does. If
    the Hub has all of it already, nothing is committed. Files that an earlier output of prunectl
    had there and this one has not are deleted in the same commit; other files stay.

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
    report = verify(
        path, source=source, token=token, trust_remote_code=trust_remote_code, jobs=jobs,
        on_event=on_event,
    )  # fmt: skip
    if not report.ok:
        problems = (f"{found.where} {found.detail}" for found in report.differences)
        raise NotVerified(path, tuple(problems))
    files = local_files(path, manifest)
    with hub_repository(repo_id, token=token, on_event=on_event) as repo:
        repo.create(private=private, exist_ok=exist_ok)
        job = _Job(repo, path, manifest, files, tuple(delete), on_event)
        state = _state(repo, revision)
        if private and not state.private:
            why = "is public, and --private was asked for"
            raise InvalidRepository(repo.repo_id, why, hint="make it private on the Hub first")
        done = _commit(job, state, revision, create_pr, commit_message, commit_description)
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
class _Job:
    """What is to be published where."""

    repo: HubRepository
    folder: Path
    manifest: Manifest
    files: dict[str, Content]
    delete: tuple[str, ...]
    on_event: OnEvent
    digests: Digests = field(default_factory=dict)


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
    if state is None and revision is not None:
        repo.make_branch(revision)
        state = repo.state(revision)
    if state is None:
        raise PushError(repo.repo_id, f"the Hub has no revision {revision or 'main'}")
    return state


def _commit(
    job: _Job,
    state: HubState,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    description: str | None,
) -> _Done:
    repo = job.repo
    changed, deleted = _changes(job, state, tell=True)
    if not changed and not deleted:
        return _Done(False, state.commit, repo.address(state.commit))
    if create_pr and (pull := _same_pull(job)):
        return pull
    if CARD_NAME in changed:
        repo.check_card(_text(job, changed[CARD_NAME]))
    sizes = [len(c) if isinstance(c, bytes) else c.stat().st_size for c in changed.values()]
    made = repo.commit(
        state,
        changed,
        deleted,
        job.digests,
        revision=revision,
        create_pr=create_pr,
        message=message or _message(job.manifest),
        description=description or "",
    )
    after = repo.state(made.commit)
    missing = sorted(_changes(job, after)[0]) if after else ["the commit"]
    if missing:
        why = f"the Hub has made commit {made.commit[:7]} without {', '.join(missing[:3])}"
        raise PushError(repo.repo_id, why)
    return _Done(
        True, made.commit, made.url, made.pull, tuple(sorted(changed)), tuple(deleted), sum(sizes)
    )


def _same_pull(job: _Job) -> _Done | None:
    """An open pull request that already is what would be suggested."""
    for revision, url in job.repo.pulls():
        state = job.repo.state(revision)
        if state is not None and _changes(job, state) == ({}, []):
            return _Done(False, state.commit, job.repo.address(state.commit), url)
    return None


def _changes(
    job: _Job, state: HubState, *, tell: bool = False
) -> tuple[dict[str, Content], list[str]]:
    """Files to send, and names to delete, so that the revision becomes what was asked for."""
    there = job.repo.read(state, CARD_NAME)
    theirs = None if there is None else _text(job, there)
    ours = card_of(job.folder, job.manifest, job.repo.repo_id)
    if tell and theirs is not None and not same_text(ours, theirs):
        job.on_event(Note(f"{CARD_NAME} on the Hub keeps its own text, but for prunectl's section"))
    files = job.files | {CARD_NAME: merged_card(ours, theirs).encode()}
    changed = differing(files, state, job.digests, job.on_event)
    if ATTRIBUTES in changed:
        # The Hub adds a line for each large file without a rule; its lines stay.
        own = (job.folder / ATTRIBUTES).read_bytes()
        if (job.repo.read(state, ATTRIBUTES) or b"").startswith(own):
            del changed[ATTRIBUTES]
    return changed, _deletions(job, state, set(files))


def _deletions(job: _Job, state: HubState, ours: set[str]) -> list[str]:
    """Names that go: of an earlier output of prunectl, and those that were asked for.

    Raises:
        PushConflict: weights of another model would stay, and be loaded in the place of ours.
    """
    others = [name for name in state.files if name not in ours and name != ATTRIBUTES]
    gone = set(matching(others, job.delete))
    listed = job.repo.read(state, MANIFEST_NAME)
    if listed is not None:
        gone |= listed_names(listed) & set(others)
    stay = [name for name in others if name not in gone and _OTHER_WEIGHTS.fullmatch(name)]
    if stay:
        raise PushConflict(
            job.repo.repo_id,
            f"holds other weights: {', '.join(stay[:3])}, which loaders could take for these",
            hint="push elsewhere, or delete them in the same commit: --delete "
            + " --delete ".join(f"'{name}'" for name in stay[:3]),
        )
    return sorted(gone)


def _text(job: _Job, content: Content) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError:
        why = f"{CARD_NAME} on the Hub is not UTF-8"
        raise PushError(job.repo.repo_id, why, hint="correct or delete it there") from None


def _message(manifest: Manifest) -> str:
    layouts = {tensor.layout for tensor in manifest.tensors} - {"dense"}
    stored = f", stored {' and '.join(sorted(layouts))}" if layouts else ""
    return f"prunectl: {manifest.prunable.achieved:.1%} of the prunable weights are zero{stored}"
