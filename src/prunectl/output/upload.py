"""A repository on the Hub as something to publish to: what a branch holds, and one commit on top.

Large files go up first, where nobody sees them; the commit then shows all files at once. What a
push that was cut off has uploaded is there the next time, and is not sent again.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from prunectl.events import Note, OnEvent
from prunectl.output.hub_state import Content, Digests, HubState, listed_files
from prunectl.output.push_errors import InvalidRepository, PushDenied, PushError
from prunectl.output.upload_errors import (
    bad_endpoint,
    hub_errors,
    hub_log,
    not_created,
    not_the_hub,
    shown_address,
    without_secrets,
)
from prunectl.output.upload_progress import Uploading, batches

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_AT_ONCE = 4
"""Large files that are uploaded together."""
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_LARGEST_READ = 64 << 20
"""A model card or manifest on the Hub is smaller."""
_PULLS = 10
"""Open pull requests, from the newest on, that are looked at for the same change."""
_NOTHING_IGNORED = "# everything that is listed in prunectl.json belongs here\n"
"""Stands for a .gitignore: one on the Hub could leave out weights without a word."""


@dataclass(frozen=True, slots=True)
class Published:
    """The commit that was made, and the pull request's address if it is one."""

    commit: str
    url: str
    pull: str | None = None


class HubRepository:
    """One repository; made by :func:`hub_repository`.

    Attributes:
        repo_id: after :meth:`create`, with its owner.
    """

    def __init__(self, api: HfApi, repo_id: str, token: str | None, on_event: OnEvent) -> None:
        self.repo_id = repo_id
        self._api, self._token, self._on_event = api, token, on_event

    # --- looking --------------------------------------------------------------------------------

    def create(self, *, private: bool, exist_ok: bool) -> None:
        """Make the repository, unless it is there.

        Raises:
            InvalidRepository: it is there and ``exist_ok`` is false.
            PushError: the Hub refuses.
        """
        from huggingface_hub.errors import HfHubHTTPError

        try:
            url = self._api.create_repo(
                self.repo_id, private=private or None, exist_ok=exist_ok, repo_type="model"
            )
        except HfHubHTTPError as error:
            why = not_created(self.repo_id, error, self._token)
            raise why or error from None
        self.repo_id = url.repo_id

    def state(self, revision: str | None) -> HubState | None:
        """What a branch, pull request or commit holds; None if there is no such revision.

        Raises:
            InvalidRepository: there is no such model, although the name is taken.
        """
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            info = self._api.model_info(self.repo_id, revision=revision)
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError:
            why = "the name is taken on the Hub, and not by a model that this token can see"
            raise InvalidRepository(self.repo_id, why, hint="choose another name") from None
        if not _COMMIT.fullmatch(info.sha or ""):
            raise not_the_hub(self.repo_id)
        tree = self._api.list_repo_tree(self.repo_id, recursive=True, revision=info.sha)
        files = listed_files(entry for entry in tree if isinstance(entry, RepoFile))
        if files is None:
            raise not_the_hub(self.repo_id)
        return HubState(info.sha or "", bool(info.private), files)

    def check_branch(self, revision: str) -> None:
        """Find out before anything is uploaded whether commits can be made there.

        Raises:
            InvalidRepository: it is a tag or a commit.
        """
        if revision.startswith("refs/pr/"):
            return
        branches = self._api.list_repo_refs(self.repo_id).branches
        if revision not in (branch.name for branch in branches):
            why = f"'{revision}' is a tag or a commit there, not a branch"
            raise InvalidRepository(self.repo_id, why, hint="choose another --revision")

    def make_branch(self, branch: str) -> None:
        """A new branch at the head of main.

        Raises:
            InvalidRepository: no branch can be called so.
        """
        from huggingface_hub.errors import BadRequestError

        try:
            self._api.create_branch(self.repo_id, branch=branch, exist_ok=True)
        except BadRequestError:
            why = f"no branch can be called '{branch}'"
            raise InvalidRepository(self.repo_id, why, hint="choose another --revision") from None

    def read(self, state: HubState, name: str) -> bytes | None:
        """A small file's bytes at that commit; None if there is none."""
        if name not in state.files:
            return None
        if state.files[name].size > _LARGEST_READ:
            why = f"{name} on the Hub has {state.files[name].size:,} bytes, too many for one"
            raise PushError(self.repo_id, why, hint="delete it there")
        with tempfile.TemporaryDirectory(prefix="prunectl-push-") as folder:
            path = self._api.hf_hub_download(
                self.repo_id, name, revision=state.commit, local_dir=folder
            )
            return Path(path).read_bytes()

    def pulls(self) -> Iterator[tuple[str, str]]:
        """Revisions and addresses of the newest open pull requests."""
        found = self._api.get_repo_discussions(
            self.repo_id, discussion_type="pull_request", discussion_status="open"
        )
        for _, pull in zip(range(_PULLS), found, strict=False):
            yield f"refs/pr/{pull.num}", shown_address(pull.url)

    def address(self, commit: str) -> str:
        """Where people look at a commit."""
        return shown_address(f"{self._api.endpoint}/{self.repo_id}/commit/{commit}")

    # --- changing -------------------------------------------------------------------------------

    def check_card(self, text: str) -> None:
        """Let the Hub look at a card's metadata, before anything large is uploaded.

        Raises:
            PushError: it does not take them.
        """
        from huggingface_hub import ModelCard

        try:
            ModelCard(text).validate()
        except ValueError as error:
            said = " ".join(without_secrets(str(error), self._token).split())[:300]
            raise PushError(
                self.repo_id,
                f"the Hub does not take the metadata of README.md: {said}",
                hint="correct the lines between --- at its top, here or on the Hub",
            ) from None

    def commit(
        self,
        parent: HubState,
        files: Mapping[str, Content],
        deleted: Sequence[str],
        digests: Digests,
        *,
        revision: str | None,
        create_pr: bool,
        message: str,
        description: str,
        last_look: Callable[[], None],
    ) -> Published:
        """Upload files and make one commit on top of ``parent``.

        Args:
            digests: of large files, where they are known; those of all uploaded ones are added.
            last_look: called when all is uploaded; what it raises keeps the commit from being made.

        Raises:
            PushConflict: the branch has moved on meanwhile.
            PushError: whatever else went wrong; the branch is as it was.
        """
        from huggingface_hub import CommitOperationDelete

        uploading = Uploading(self._on_event)
        adds = [self._add(name, content, uploading) for name, content in files.items()]
        deletes = [CommitOperationDelete(name, is_folder=False) for name in deleted]
        for add in adds:
            if add.path_in_repo in digests:
                add.upload_info.sha256 = bytes.fromhex(digests[add.path_in_repo])
        self._upload(adds, uploading, None if create_pr else revision, create_pr)
        for add in adds:
            if add.upload_info.is_hashed and isinstance(add.path_or_fileobj, str):
                digests[add.path_in_repo] = add.upload_info.sha256.hex()
        last_look()
        with warnings.catch_warnings(record=True) as caught:
            made = self._api.create_commit(
                self.repo_id,
                [*adds, *deletes],
                commit_message=message,
                commit_description=description,
                revision=revision,
                create_pr=create_pr,
                parent_commit=parent.commit,
            )
        for warning in caught:
            self._on_event(Note(without_secrets(str(warning.message), self._token), warning=True))
        pull = shown_address(made.pr_url) if made.pr_url else None
        return Published(made.oid, shown_address(made.commit_url), pull)

    def _add(self, name: str, content: Content, uploading: Uploading) -> CommitOperationAdd:
        """A file of the commit, which tells how much of it was sent."""
        from huggingface_hub import CommitOperationAdd

        class Add(CommitOperationAdd):
            @contextmanager
            def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
                # A bar is asked for where the file is sent, and nowhere else.
                with super().as_file() as file:
                    yield uploading.watched(file, name) if with_tqdm else file

        return Add(name, content if isinstance(content, bytes) else str(content))

    def _upload(
        self,
        adds: list[CommitOperationAdd],
        uploading: Uploading,
        revision: str | None,
        create_pr: bool,
    ) -> None:
        sizes = {add.path_in_repo: add.upload_info.size for add in adds}
        by_name = {add.path_in_repo: add for add in adds}
        with uploading.phase(sum(sizes.values())):
            for names in batches(sizes, _AT_ONCE):
                self._api.preupload_lfs_files(
                    self.repo_id,
                    [by_name[name] for name in names],
                    revision=revision,
                    create_pr=create_pr,
                    num_threads=_AT_ONCE,
                    free_memory=False,
                    gitignore_content=_NOTHING_IGNORED,
                )
                uploading.finish({name: sizes[name] for name in names})


def check_repo_id(repo_id: str) -> None:
    """Check a name without asking the Hub.

    Raises:
        InvalidRepository: no repository can have it.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with hub_errors(repo_id, None):
        validate_repo_id(repo_id)


@contextmanager
def hub_repository(
    repo_id: str, *, token: str | None, on_event: OnEvent
) -> Iterator[HubRepository]:
    """A repository; inside, errors of the Hub are :class:`PushError`, and hf draws no bars.

    Args:
        repo_id: ``org/name``; or ``name`` alone, which is the user's own.
        token: None stands for the one that hf uses.
        on_event: told of progress, and of what huggingface_hub logs.

    Raises:
        PushDenied: the token holds characters that none has.
        PushError: see the methods.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ValueError:  # HF_ENDPOINT is looked at when the library is imported
        raise bad_endpoint(repo_id) from None
    token = (token or "").strip() or None
    used = token or get_token()
    if used and not (used.isascii() and used.isprintable()):
        hint = "see --token and HF_TOKEN: a token is a line of letters, digits and signs"
        raise PushDenied(repo_id, "the token holds characters that no token has", hint=hint)
    with _without_bars(), hub_log(used, on_event), hub_errors(repo_id, used):
        yield HubRepository(HfApi(token=token), repo_id, used, on_event)


@contextmanager
def _without_bars() -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # Bars that the environment asks for cannot be switched off.
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
