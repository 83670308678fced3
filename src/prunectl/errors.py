"""The errors that prunectl raises on purpose; a closed set.

Each error has its facts as fields; ``str()`` states what happened and where, and ``hint`` what to
do. ``exit_code`` is the exit code of the command line: 1 failed, 2 usage, 3 verification found a
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MAX_MESSAGE = 500
"""Maximum length of a message, and of a hint."""


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """Shorten ``text`` in the middle to at most ``most`` characters.

    Names, keys and values that a message quotes from a file may have any length; the words of the
    message are around them.
    """
    end = most * 2 // 5
    return text if len(text) <= most else f"{text[: most - end - 5]} ... {text[-end:]}"


class PrunectlError(Exception):
    """Base of all errors raised on purpose. Long messages are shortened in the middle."""

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = shortened(message)
        super().__init__(self.message)
        self.hint = shortened(hint)


class UsageError(PrunectlError):
    """The arguments are not valid."""

    exit_code = 2


# --- arguments ------------------------------------------------------------------------------


class InvalidPattern(UsageError):
    """A pattern that is neither ``unstructured`` nor a valid N:M."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(
            f"pattern '{text}' is not valid: {why}",
            hint="use 'unstructured', or N:M with N kept of every M, such as 2:4",
        )
        self.text, self.why = text, why


class InvalidSparsity(UsageError):
    """A sparsity outside ``0 < s < 1``, or one that the pattern cannot reach."""

    def __init__(self, value: object, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"sparsity {value} is not valid: {why}",
            hint=hint or "give the share of prunable weights to remove, for example --sparsity 0.4",
        )
        self.value, self.why = value, why


class InvalidOption(UsageError):
    """Another option with an invalid value, or in an invalid combination."""


class RecipeError(UsageError):
    """A recipe file that cannot be read, or has an invalid entry."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"recipe {path}: {why}", hint="see docs/recipes.md for the format")
        self.path, self.why = path, why


class NoModelGiven(UsageError):
    """MODEL was left out, and no default model is known."""

    def __init__(self) -> None:
        super().__init__(
            "no MODEL given",
            hint="give a Hub id (org/name), a folder or a weights file; or set PRUNECTL_MODEL; "
            "or run in a folder with a checkpoint; or analyze a model first. "
            "To try prunectl out, give the embedded model: demo",
        )


# --- source ---------------------------------------------------------------------------------


class SourceError(PrunectlError):
    """The checkpoint cannot be used."""


class ModelNotFound(SourceError):
    """The model is neither a path nor a repository, revision or file on the Hub."""

    def __init__(self, model: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{model}: {why}", hint=hint)
        self.model, self.why = model, why


class AccessDenied(SourceError):
    """A gated or private repository, without a token that grants access."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"{model}: {why}",
            hint="ask for access on its Hub page, then run 'hf auth login' or set HF_TOKEN",
        )
        self.model, self.why = model, why


class HubUnreachable(SourceError):
    """The Hub cannot be reached, or offline mode is on, and the files are not in the cache."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"{model}: {why}",
            hint="check the connection and HF_ENDPOINT, unset HF_HUB_OFFLINE, "
            "or give a local folder",
        )
        self.model, self.why = model, why


class NoWeights(SourceError):
    """A folder or repository without readable weight files."""

    def __init__(self, where: str, found: str = "", *, hint: str = "") -> None:
        super().__init__(
            f"{where}: no weights found" + (f" ({found})" if found else ""),
            hint=hint
            or "expected *.safetensors, or torch pickles such as pytorch_model.bin, *.pt or *.pth",
        )
        self.where, self.found = where, found


class BadCheckpoint(SourceError):
    """A weights file, index or header that is damaged or contradicts itself."""

    def __init__(self, file: Path | str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{file}: {why}", hint=hint or "download or copy the file again")
        self.file, self.why = str(file), why


class UnsafePickle(SourceError):
    """A pickle that would run code, or that holds anything but tensors."""

    def __init__(self, file: Path | str, why: str) -> None:
        super().__init__(
            f"{file}: not loaded, since this pickle needs more than tensors: {why}",
            hint="pickles can run code; use a safetensors version of this checkpoint",
        )
        self.file, self.why = str(file), why


class UnsupportedCheckpoint(SourceError):
    """A known format or state that cannot be pruned: GGUF, quantized, compressed."""

    def __init__(self, where: Path | str, what: str, *, hint: str) -> None:
        super().__init__(f"{where}: {what}", hint=hint)
        self.where, self.what = str(where), what


class NaNWeights(SourceError):
    """A prunable tensor holds NaN, which has no magnitude."""

    def __init__(self, tensor: str, count: int) -> None:
        super().__init__(
            f"tensor '{tensor}' holds {count} NaN value{'s' if count != 1 else ''}, "
            "which have no magnitude",
            hint=f"the checkpoint is damaged; to keep this tensor unpruned: --exclude '{tensor}'",
        )
        self.tensor, self.count = tensor, count


class SourceChanged(SourceError):
    """The weights differ from the measured ones: the files changed in between."""

    def __init__(self, model: str, tensor: str, expected: int, found: int) -> None:
        super().__init__(
            f"{model}: tensor '{tensor}' has {found:,} zeros after pruning where its measurement "
            f"gives {expected:,}: the file changed since it was measured",
            hint="repeat the command with --no-cache",
        )
        self.model, self.tensor, self.expected, self.found = model, tensor, expected, found


class FileChanged(BadCheckpoint):
    """A file of the source changed since it was opened, or is gone."""


class BadMaskFile(SourceError):
    """A file that is not a file of masks, is damaged, or was written by a newer prunectl."""

    def __init__(self, file: Path | str, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"{file}: {why}",
            hint=hint or "mask files are written by 'prunectl export MODEL --masks-only -o FILE'",
        )
        self.file, self.why = str(file), why


class MaskMismatch(UsageError):
    """Masks of other tensors, or of other shapes, than the model's.

    Attributes:
        problems: a sentence for each tensor.
    """

    def __init__(self, file: Path | str, model: str, problems: Sequence[str]) -> None:
        more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        super().__init__(
            f"{file} does not fit {model}: {'; '.join(problems[:3])}{more}",
            hint="masks fit only models with the tensor names and shapes of their source",
        )
        self.file, self.model, self.problems = str(file), model, tuple(problems)


class NothingMasked(UsageError):
    """A model without a pruned tensor: there are no masks to write."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"{model}: no masks to write: {why}",
            hint="prune first: prunectl prune MODEL --sparsity S -o DIR",
        )
        self.model, self.why = model, why


class PatternMismatch(SourceError):
    """A tensor does not follow its expected N:M pattern."""

    def __init__(self, tensor: str, pattern: str) -> None:
        super().__init__(
            f"tensor '{tensor}' does not follow {pattern}: a group has more nonzeros",
            hint="leave --pattern out, or compare the folder with its source: prunectl verify DIR",
        )
        self.tensor, self.pattern = tensor, pattern


class UnknownArchitecture(SourceError):
    """The module tree cannot be built; callers use the header rules, or report the error."""

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__(f"the model's module tree cannot be built: {why}", hint=hint)
        self.why = shortened(why)  # callers show it in a note


class NothingPrunable(UsageError):
    """No tensor is left to prune after roles and filters."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"nothing to prune: {why}",
            hint="see names and roles with 'prunectl analyze MODEL --all'; --include adds tensors",
        )
        self.why = why


# --- output ---------------------------------------------------------------------------------


class OutputError(PrunectlError):
    """The output cannot be written to its place."""


class OutputConflict(OutputError):
    """Something exists at the output path."""

    exit_code = 2

    def __init__(self, path: Path | str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{path}: {why}", hint=hint or "choose another -o")
        self.path, self.why = str(path), why


class NoSpace(OutputError):
    """Not enough free space for the output; ``free`` is None if the quota is used up."""

    def __init__(self, path: Path | str, needed: int, free: int | None) -> None:
        full = "the disk quota is used up" if free is None else "no space is left"
        why = f"{needed:,} bytes are needed and {free:,} are free" if needed else full
        hint = "free some space or choose -o on another disk; nothing was written"
        super().__init__(f"{path}: {why}", hint=hint)
        self.path, self.needed, self.free = str(path), needed, free


class CannotWrite(OutputError):
    """The system refused to write."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"{path}: cannot write: {why}", hint="choose a writable place")
        self.path, self.why = str(path), why


class NotVerified(OutputError):
    """A folder that differs from its manifest, and therefore is not published.

    Attributes:
        problems: a sentence for each difference.
    """

    exit_code = 3

    def __init__(self, folder: Path | str, problems: tuple[str, ...]) -> None:
        more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        super().__init__(
            f"{folder}: not pushed, since verification failed: {'; '.join(problems[:3])}{more}",
            hint=f"prunectl verify {folder} lists all; prune or export again, or undo the edits",
        )
        self.folder, self.problems = str(folder), problems


class DamagedWork(OutputError):
    """Calibrated weights stored next to an unfinished output changed on the disk."""

    def __init__(self, path: Path | str, tensor: str) -> None:
        super().__init__(
            f"{path}: the calibrated weights of '{tensor}', stored next to it, changed on disk",
            hint="repeat the command, which computes the damaged part again; check the disk",
        )
        self.path, self.tensor = str(path), tensor


class BadManifest(PrunectlError):
    """``prunectl.json`` is missing, damaged, or from a newer version."""

    def __init__(self, path: Path | str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{path}: {why}", hint=hint or "only folders written by prunectl have one")
        self.path, self.why = str(path), why


# --- libraries, calibration -----------------------------------------------------------------


class MissingLibrary(PrunectlError):
    """An optional library that is not installed, and the extra of prunectl that installs it."""

    def __init__(self, library: str, what: str, *, extra: str = "data") -> None:
        super().__init__(
            f"{what} needs the library '{library}', which is not installed",
            hint=f"pip install 'prunectl[{extra}]'",
        )
        self.library, self.what, self.extra = library, what, extra


class CalibrationFailed(PrunectlError):
    """The model could not be run on the calibration samples."""

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__(f"calibration failed: {why}", hint=hint)
        self.why = why
