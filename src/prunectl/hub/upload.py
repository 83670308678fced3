"""A repository on the Hub to publish to: list a branch, and make one commit on top of it.

Large files are uploaded first and stay invisible until the commit, which publishes all files at
once. A push after an interrupted one does not upload the same large files again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted
from prunectl.hub.errors import (
    InvalidRepository,
    PushDenied,
    PushError,
    bad_endpoint,
    is_sendable,
    logged_as_notes,
    server_words,
    shown_address,
    without_secrets,
    writing,
)
from prunectl.hub.files import HubListing, ask_listing, ask_range

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

Content = Path | bytes
"""A file to publish: its path, or its bytes."""

COMPARING, UPLOADING = "comparing", "uploading"

_BATCH = 1 << 30
"""Approximate bytes of a batch; a larger file is a batch. Each batch is followed by progress."""
_LARGEST_READ = 64 << 20
"""Most bytes of a file that is read from the Hub: model cards and manifests are far smaller."""
_PULLS = 10
"""Number of open pull requests, newest first, that are searched for the same change."""
_NOTHING_IGNORED = "# everything that prunectl.json lists belongs here\n"
"""Replaces the .gitignore on the Hub, which could silently exclude weights."""


@dataclass(frozen=True, slots=True)
class Change:
    """A commit to make.

    Attributes:
        files: files to add or replace, by name on the Hub.
        deleted: names of files on the Hub to delete.
        revision: the branch; None is main.
        create_pr: propose the commit as a pull request to main.
    """

    files: Mapping[str, Content]
    deleted: Sequence[str]
    revision: str | None
    create_pr: bool
    message: str
    description: str


@dataclass(frozen=True, slots=True)
class Published:
    """A commit on the Hub.

    Attributes:
        url: the page of the commit.
        pull: the page of its pull request; None if it is on a branch.
        is_new: False if the Hub had the commit already.
    """

    commit: str
    url: str
    pull: str | None = None
    is_new: bool = True


class HubRepository:
    """One repository; see :func:`hub_repository`.

    Attributes:
        repo_id: as the user named it; after :meth:`create`, with the owner.
    """

    def __init__(self, repo_id: str, token: str | None, secret: str | None, on_event: OnEvent):
        from huggingface_hub import HfApi

        self.repo_id = repo_id
        self._api, self._token, self._secret = HfApi(token=token), token, secret
        self._on_event = on_event
        self._adds: dict[str, CommitOperationAdd] = {}

    # --- reading --------------------------------------------------------------------------------

    def create(self, *, private: bool, exist_ok: bool) -> None:
        """Make the repository, unless it exists.

        Raises:
            InvalidRepository: it exists and ``exist_ok`` is false, or the Hub refuses the name.
        """
        from huggingface_hub.errors import HfHubHTTPError

        try:
            url = self._api.create_repo(self.repo_id, private=private or None, exist_ok=exist_ok)
        except HfHubHTTPError as error:
            if error.response.status_code == 400:
                why = f"the Hub refuses the name: {server_words(error, self._secret)}"
                raise InvalidRepository(self.repo_id, why) from None
            if error.response.status_code == 409:
                hint = "choose another name, or leave --no-exist-ok out"
                raise InvalidRepository(self.repo_id, "exists already", hint=hint) from None
            raise
        self.repo_id = url.repo_id

    def listing(self, revision: str | None) -> HubListing | None:
        """The files of a branch, pull request or commit; None if there is no such revision.

        Raises:
            InvalidRepository: no model of this name is visible to the token; a dataset or Space may
                have the name.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            return ask_listing(self.repo_id, revision, self._token)
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError:
            why = "the name is taken on the Hub, and not by a model that this token can see"
            raise InvalidRepository(self.repo_id, why, hint="choose another name") from None

    def branch(self, revision: str | None) -> HubListing:
        """The files of a branch; a missing branch is created from main.

        Raises:
            InvalidRepository: ``revision`` is a tag or a commit, or not a valid name of a branch.
            PushError: the Hub has no such revision.
        """
        from huggingface_hub.errors import BadRequestError

        found, hint = self.listing(revision), "choose another --revision"
        if found is None and revision is not None and revision != "main":
            try:
                self._api.create_branch(self.repo_id, branch=revision, exist_ok=True)
            except BadRequestError:
                why = f"no branch can be called '{revision}'"
                raise InvalidRepository(self.repo_id, why, hint=hint) from None
            found = self.listing(revision)
        elif revision is not None and not revision.startswith("refs/pr/"):
            branches = self._api.list_repo_refs(self.repo_id).branches
            if revision not in (branch.name for branch in branches):
                why = f"'{revision}' is a tag or a commit there, not a branch"
                raise InvalidRepository(self.repo_id, why, hint=hint)
        if found is None:
            raise PushError(self.repo_id, f"the Hub has no revision {revision or 'main'}")
        return found

    def read(self, listing: HubListing, name: str) -> bytes | None:
        """The bytes of a small file at the listing's commit; None if there is no such file.

        Raises:
            PushError: the file is too large.
        """
        file = listing.files.get(name)
        if file is None:
            return None
        if file.size > _LARGEST_READ:
            why = f"{name} on the Hub has {file.size:,} bytes, too many for such a file"
            raise PushError(self.repo_id, why, hint="delete it there")
        return ask_range(listing, name, 0, file.size, self._token)

    def lacking(self, files: Mapping[str, Content], listing: HubListing) -> dict[str, Content]:
        """The files that a commit lacks or holds with other bytes.

        Only files whose size is unchanged are hashed.
        """
        sizes = {name: self._add(name, content).upload_info.size for name, content in files.items()}
        known = {
            name
            for name in files
            if name in listing.files and listing.files[name].size == sizes[name]
        }
        self._on_event(PhaseStarted(COMPARING, sum(sizes[name] for name in known)))
        found = {}
        for name, content in files.items():
            if name not in known or not self._is_same(name, content, listing):
                found[name] = content
            if name in known:
                self._on_event(Advanced(COMPARING, sizes[name], name))
        self._on_event(PhaseDone(COMPARING))
        return found

    def _is_same(self, name: str, content: Content, listing: HubListing) -> bool:
        there, add = listing.files[name], self._add(name, content)
        if there.sha256 is not None:
            return add.upload_info.sha256.hex() == there.sha256
        blob = hashlib.sha1(b"blob %d\0" % there.size)
        with add.as_file() as file:
            hashlib.file_digest(file, lambda: blob)  # type: ignore[arg-type]
        return blob.hexdigest() == there.blob

    def _add(self, name: str, content: Content) -> CommitOperationAdd:
        """The upload of a file; made once for a file on disk, whose SHA-256 it stores."""
        from huggingface_hub import CommitOperationAdd

        if isinstance(content, bytes):
            return CommitOperationAdd(name, content)
        if name not in self._adds:
            content.stat()  # raises OSError where the file cannot be read
            self._adds[name] = CommitOperationAdd(name, content.absolute())
        return self._adds[name]

    def pulls(self) -> Iterator[tuple[str, str]]:
        """Yield the revision and the page of each of the newest open pull requests."""
        found = self._api.get_repo_discussions(
            self.repo_id, discussion_type="pull_request", discussion_status="open"
        )
        for pull in islice(found, _PULLS):
            yield f"refs/pr/{pull.num}", shown_address(pull.url)

    def address(self, commit: str) -> str:
        """The page that shows a commit."""
        return shown_address(f"{self._api.endpoint}/{self.repo_id}/commit/{commit}")

    # --- changing -------------------------------------------------------------------------------

    def check_card(self, text: str) -> None:
        """Have the Hub check a card's metadata, before anything large is uploaded.

        Raises:
            PushError: the Hub would refuse the card.
        """
        from huggingface_hub import ModelCard

        try:
            ModelCard(text).validate()
        except ValueError as error:
            reason = without_secrets(str(error), self._secret)[:300]
            why = f"the Hub does not take the metadata of README.md: {reason}"
            hint = "correct the lines between --- at its top, here or on the Hub"
            raise PushError(self.repo_id, why, hint=hint) from None

    def commit(
        self, parent: HubListing, change: Change, last_look: Callable[[], None]
    ) -> Published:
        """Upload files and make one commit on top of ``parent``.

        Args:
            last_look: called when all files are uploaded; if it raises, no commit is made.

        Raises:
            PushConflict: the branch has a newer commit than ``parent``.
        """
        from huggingface_hub import CommitOperationDelete

        adds = [self._add(name, content) for name, content in change.files.items()]
        self._upload(adds, change)
        last_look()
        with warnings.catch_warnings(record=True) as caught:
            made = self._api.create_commit(
                self.repo_id,
                [*adds, *(CommitOperationDelete(name, is_folder=False) for name in change.deleted)],
                commit_message=change.message,
                commit_description=change.description,
                revision=change.revision,
                create_pr=change.create_pr,
                parent_commit=parent.commit,
            )
        for warning in caught:
            self._on_event(Note(without_secrets(str(warning.message), self._secret), warning=True))
        pull = shown_address(made.pr_url) if made.pr_url else None
        return Published(made.oid, shown_address(made.commit_url), pull)

    def _upload(self, adds: Sequence[CommitOperationAdd], change: Change) -> None:
        ends = list(accumulate(add.upload_info.size for add in adds))
        self._on_event(PhaseStarted(UPLOADING, ends[-1] if ends else 0))
        for _, group in groupby(zip(adds, ends, strict=True), lambda pair: pair[1] // _BATCH):
            batch = [add for add, _ in group]
            self._api.preupload_lfs_files(
                self.repo_id,
                batch,
                revision=None if change.create_pr else change.revision,
                create_pr=change.create_pr,
                free_memory=False,
                gitignore_content=_NOTHING_IGNORED,
            )
            for add in batch:
                self._on_event(Advanced(UPLOADING, add.upload_info.size, add.path_in_repo))
        self._on_event(PhaseDone(UPLOADING))


def matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Names that match a glob, as in ``hf upload --delete``; ``folder/`` matches all its files."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    return set(filter_repo_objects(names, allow_patterns=list(patterns)))


def check_repo_id(repo_id: str) -> None:
    """Check a name without asking the Hub.

    Raises:
        InvalidRepository: it is not a valid name of a repository.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with writing(repo_id, None):
        validate_repo_id(repo_id)


@contextmanager
def hub_repository(
    repo_id: str, *, token: str | None, on_event: OnEvent
) -> Iterator[HubRepository]:
    """Yield a repository. Inside the ``with`` block, errors of the Hub become :class:`PushError`,
    and huggingface_hub draws no progress bars.

    Args:
        repo_id: ``org/name``; ``name`` alone is a repository of the token's owner.
        token: None is the token that hf is logged in with.
        on_event: receives progress, and the messages that huggingface_hub logs, as notes.

    Raises:
        PushDenied: the token holds characters that no token has.
        PushError: HF_ENDPOINT is not an address; and as the methods raise.
    """
    try:
        from huggingface_hub import get_token
    except ValueError:  # huggingface_hub checks HF_ENDPOINT when it is imported
        raise bad_endpoint(repo_id) from None
    token = (token or "").strip() or None
    secret = token or get_token()
    if not is_sendable(secret):
        hint = "see --token and HF_TOKEN: a token is a line of letters, digits and signs"
        raise PushDenied(repo_id, "the token holds characters that no token has", hint=hint)
    with _without_bars(), logged_as_notes(secret, on_event), writing(repo_id, secret):
        yield HubRepository(repo_id, token, secret, on_event)


@contextmanager
def _without_bars() -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # Where the environment variable is set, huggingface_hub ignores these functions.
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
