"""What a revision on the Hub lacks of an output, and what has to go there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from prunectl.events import Note, OnEvent
from prunectl.output.hub_card import merged_card, same_text, section_of, sections
from prunectl.output.hub_state import Content, Digests, HubState, differing, matching
from prunectl.output.measured import named_results
from prunectl.output.push_errors import PushConflict, PushError
from prunectl.output.target import CARD_NAME, MANIFEST_NAME
from prunectl.output.upload import HubRepository
from prunectl.publishing.selection import ATTRIBUTES, listed_names

_OTHER_WEIGHTS = re.compile(
    r"(model|pytorch_model)[\w.-]*\.(safetensors|bin)(\.index\.json)?", re.ASCII
)
"""Files in whose place a loader would not look at ours."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be published where.

    Attributes:
        files: by name, without the model card. card: that of the folder, as it goes to this place.
        delete: globs of files on the Hub. digests: of large files, as they become known.
    """

    repo: HubRepository
    folder: Path
    files: dict[str, Content]
    card: str
    delete: tuple[str, ...]
    on_event: OnEvent
    digests: Digests = field(default_factory=dict)


def changes(
    job: Job, state: HubState, *, tell: bool = False
) -> tuple[dict[str, Content], list[str]]:
    """Files to send, and names to delete, so that the revision becomes what was asked for.

    Args:
        tell: say what is odd about the model card there.

    Raises:
        PushConflict: weights of another model would stay, and be loaded in the place of ours.
        PushError: the model card there cannot be read.
    """
    there = job.repo.read(state, CARD_NAME)
    theirs = None if there is None else text_of(job, there)
    if tell and theirs is not None:
        _tell_of_card(job, theirs)
    files = job.files | {CARD_NAME: merged_card(job.card, theirs).encode()}
    changed = differing(files, state, job.digests, job.on_event)
    if ATTRIBUTES in changed:
        # The Hub adds a line for each large file without a rule; its lines stay.
        own = (job.folder / ATTRIBUTES).read_bytes()
        if (job.repo.read(state, ATTRIBUTES) or b"").startswith(own):
            del changed[ATTRIBUTES]
    return changed, _deletions(job, state, set(files), named_results(section_of(theirs or "")))


def text_of(job: Job, content: Content) -> str:
    """A model card's text.

    Raises:
        PushError: it is not UTF-8.
    """
    data = content if isinstance(content, bytes) else content.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError:
        why = f"{CARD_NAME} on the Hub is not UTF-8"
        raise PushError(job.repo.repo_id, why, hint="correct or delete it there") from None


def _tell_of_card(job: Job, theirs: str) -> None:
    if not same_text(job.card, theirs):
        job.on_event(Note(f"{CARD_NAME} on the Hub keeps its own text, but for prunectl's section"))
    if (count := sections(theirs)) > 1:
        what = f"{CARD_NAME} on the Hub has {count} sections of prunectl; only the first is renewed"
        job.on_event(Note(what, warning=True))


def _deletions(job: Job, state: HubState, ours: set[str], results: set[str]) -> list[str]:
    """Names that go: of an earlier output of prunectl, and those that were asked for.

    Args:
        results: those that the card there is about: they measure the weights that go.

    Raises:
        PushConflict: weights of another model would stay, and be loaded in the place of ours.
    """
    others = [name for name in state.files if name not in ours and name != ATTRIBUTES]
    gone = set(matching(others, job.delete)) | (results & set(others))
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
