"""What goes wrong at the Hub: huggingface_hub's errors as ours, and texts without secrets."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prunectl.errors import (
    AccessDenied,
    HubUnreachable,
    ModelNotFound,
    OutputError,
    PrunectlError,
    SourceError,
)
from prunectl.events import Note, OnEvent

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{8,}")
_SHORTEST_TOKEN = 8
"""Replacing anything shorter would only garble the text."""
_LOGIN = re.compile(r"(https?://)[^\s/@'\"]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_DETAILS = 300
"""Characters of the Hub's own words that are shown."""
_NOT_THE_HUB = "what answers is not the Hub"


class PushError(OutputError):
    """The Hub did not take a push; the branch is as it was."""

    def __init__(self, repo: str, why: str, *, hint: str = "") -> None:
        again = "repeat the command: what was uploaded is not uploaded again"
        super().__init__(f"{repo}: {why}", hint=hint or again)
        self.repo, self.why = repo, why


class PushDenied(PushError):
    """No token, an unknown token, or a token without the right to write there."""

    def __init__(self, repo: str, why: str, *, hint: str = "") -> None:
        usual = (
            "give a token with the role write (--token, HF_TOKEN or 'hf auth login'); "
            "who may only read can suggest the change with --create-pr"
        )
        super().__init__(repo, why, hint=hint or usual)


class PushConflict(PushError):
    """Somebody else has committed meanwhile, or files there would have to go first."""


class InvalidRepository(PushError):
    """A repository or branch that cannot exist, or is not what was asked for."""

    exit_code = 2

    def __init__(self, repo: str, why: str, *, hint: str = "") -> None:
        super().__init__(repo, why, hint=hint or "name it ORG/NAME, as on the Hub")


# --- secrets --------------------------------------------------------------------------------------


def without_tokens(text: str, tokens: Iterable[str]) -> str:
    """``text`` with these tokens, and whatever looks like a token of the Hub, as ``***``."""
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) >= _SHORTEST_TOKEN:
            text = text.replace(token, "***")
    return _TOKEN.sub("***", text)


def without_secrets(text: str, token: str | None) -> str:
    """``text`` on one line, without tokens, logins in addresses and queries of signed addresses."""
    flat = " ".join(without_tokens(text, [token or ""]).split())
    return _QUERY.sub(r"\1", _LOGIN.sub(r"\1", flat))


def shown_address(url: str) -> str:
    """An address without the login that HF_ENDPOINT may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_sendable(token: str | None) -> bool:
    """Whether a header can carry the token."""
    return token is None or (token.isascii() and token.isprintable())


def server_words(error: HfHubHTTPError, token: str | None) -> str:
    """What the Hub itself said, shortened and without secrets."""
    return without_secrets(error.server_message or "", token)[:_DETAILS]


@contextmanager
def logged_as_notes(token: str | None, on_event: OnEvent) -> Iterator[None]:
    """Make notes of what huggingface_hub logs (retries, waits), instead of lines on stderr."""
    logger, notes = logging.getLogger("huggingface_hub"), logging.Handler(logging.WARNING)
    notes.emit = lambda record: on_event(  # type: ignore[method-assign]
        Note(without_secrets(record.getMessage(), token))
    )
    handlers, logger.handlers = logger.handlers, [notes]
    try:
        yield
    finally:
        logger.handlers = handlers


# --- kinds of errors ------------------------------------------------------------------------------


def not_the_hub(model: str) -> HubUnreachable:
    """An answer that no Hub gives."""
    return HubUnreachable(model, f"{_NOT_THE_HUB} (see HF_ENDPOINT)")


def is_connection_error(error: BaseException) -> bool:
    """Whether the Hub gave no answer, or one that says nothing about what was asked."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status == 429
    no_answer = errors.HTTPError  # type: ignore[attr-defined]
    return isinstance(error, (no_answer, ConnectionError, TimeoutError))


def is_offline_mode(error: BaseException) -> bool:
    """Whether no request was made, since HF_HUB_OFFLINE is set."""
    return type(error).__name__ == "OfflineModeIsEnabled"


def why_no_answer(error: BaseException) -> str:
    """Words for an error that :func:`is_connection_error` recognizes."""
    from huggingface_hub.errors import HfHubHTTPError

    name = type(error).__name__
    if is_offline_mode(error):
        return "offline mode is on (HF_HUB_OFFLINE)"
    if name == "UnsupportedProtocol":
        return "the Hub cannot be reached: HF_ENDPOINT is no address that begins with https://"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub cannot be reached (HTTP {error.response.status_code})"
    is_start = name.startswith("Connect")  # ConnectError, ConnectTimeout, ConnectionRefusedError
    return "the Hub cannot be reached" if is_start else f"the download was cut off ({name})"


def _is_malformed_answer(error: BaseException) -> bool:
    """Whether huggingface_hub stumbled over an answer: it takes the members as they come.

    A member that is missing or of another type, or deep nesting, ends in an error of Python, raised
    in its own code.
    """
    expected = LookupError | TypeError | AttributeError | AssertionError | RecursionError
    last = error.__traceback__ if isinstance(error, expected | ValueError) else None
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = str(last.tb_frame.f_globals.get("__name__", "")) if last is not None else ""
    return where.partition(".")[0] in ("huggingface_hub", "json")


# --- reading --------------------------------------------------------------------------------------


@contextmanager
def reading(model: str) -> Iterator[None]:
    """Turn errors of reading into ours. Texts of huggingface_hub, which hold addresses, are left
    out.

    Raises:
        ModelNotFound: no such repository or revision.
        AccessDenied: private or gated, and no token that opens it.
        HubUnreachable: no connection, offline mode, or no Hub.
        SourceError: the download cannot be stored.
    """
    try:
        yield
    except Exception as error:  # an unknown one is raised again as it is
        raise _of_reading(model, error) from None


def _of_reading(model: str, error: Exception) -> Exception:
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    match error:
        case PrunectlError():
            return error
        case errors.GatedRepoError():
            return AccessDenied(model, "access to this repository is gated")
        case errors.RepositoryNotFoundError() if status in (401, 403):
            return AccessDenied(model, "not on the Hub, or private and no token given opens it")
        case errors.RepositoryNotFoundError():
            hint = (
                "check the spelling; for a private repository run 'hf auth login' or set HF_TOKEN"
            )
            return ModelNotFound(
                model, "neither a local path nor a repository on the Hub", hint=hint
            )
        case errors.RevisionNotFoundError():
            hint = "give a branch, tag or commit"
            return ModelNotFound(model, "the repository has no such revision", hint=hint)
        case errors.HFValidationError():
            return ModelNotFound(model, "neither a local path nor a Hub id (org/name)")
        case errors.HfHubHTTPError() if status in (401, 403):
            return AccessDenied(model, f"the Hub refused access (HTTP {status})")
        case (
            errors.LocalEntryNotFoundError()
            | errors.RevisionResolutionError()
            | errors.FileMetadataError()
            | errors.XetDownloadError()
        ):
            return HubUnreachable(model, f"the download was cut off ({type(error).__name__})")
        case _ if is_connection_error(error):
            return HubUnreachable(model, why_no_answer(error))
        case errors.HfHubHTTPError():
            return HubUnreachable(model, f"the Hub answered HTTP {status}")
        case json.JSONDecodeError():
            return HubUnreachable(model, f"{_NOT_THE_HUB} (no JSON)")
        case OSError():
            return SourceError(
                f"{model}: the download cannot be stored: {error.strerror or error}",
                hint="free some space, or choose another cache with --cache-dir or HF_HOME",
            )
        case ImportError():  # a SOCKS proxy that httpx lacks the package for
            return HubUnreachable(model, " ".join(str(error).split()))
        case _:
            return not_the_hub(model) if _is_malformed_answer(error) else error


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def writing(repo: str, token: str | None) -> Iterator[None]:
    """Turn errors of publishing into :class:`PushError`.

    Args:
        token: kept out of all texts.
    """
    try:
        yield
    except Exception as error:  # an unknown one is raised again as it is
        raise _of_writing(repo, error, token) from None


def bad_endpoint(repo: str) -> PushError:
    """``HF_ENDPOINT`` cannot be asked at all."""
    hint = "it begins with https:// or http://, or unset it"
    return PushError(repo, "HF_ENDPOINT is no address", hint=hint)


def _of_writing(repo: str, error: Exception, token: str | None) -> Exception:
    from huggingface_hub import errors

    found: BaseException = error
    # An upload in a thread is wrapped, sometimes more than once.
    while isinstance(found, RuntimeError) and found.__cause__ is not None:
        found = found.__cause__
    no_hub = PushError(repo, _NOT_THE_HUB, hint="see HF_ENDPOINT; then repeat the command")
    match found:
        case HubUnreachable():  # a listing that cannot be a Hub's
            return no_hub
        case PrunectlError():
            return found
        case errors.HFValidationError():
            return InvalidRepository(repo, "is no name that a repository on the Hub can have")
        case errors.OfflineModeIsEnabled():
            return PushError(
                repo, f"not pushed: {why_no_answer(found)}", hint="unset HF_HUB_OFFLINE"
            )
        case errors.LocalTokenNotFoundError():
            return PushDenied(repo, "there is no token")
        case errors.HfHubHTTPError():
            return _answered(repo, found, token)
        case json.JSONDecodeError():
            return PushError(repo, f"{_NOT_THE_HUB} (no JSON)", hint="see HF_ENDPOINT")
        case ImportError():  # a SOCKS proxy that httpx lacks the package for
            return PushError(repo, " ".join(str(found).split()))
        case Exception() if type(found).__name__ == "UnsupportedProtocol":
            return bad_endpoint(repo)
        case _ if is_connection_error(found):
            return PushError(repo, f"the connection broke off ({type(found).__name__})")
        case PermissionError() if found.filename is None:  # of the Xet client
            return PushDenied(repo, "the Hub's storage does not accept the token")
        case OSError():
            why = f"{found.filename or 'a file'}: {found.strerror or found}"
            return PushError(repo, without_secrets(why, token), hint="nothing was committed")
        case _ if not isinstance(found, ValueError) and _is_malformed_answer(found):
            return no_hub
        case ValueError() | RuntimeError():
            # A check of huggingface_hub that failed, or an error of the Xet client.
            why = without_secrets(str(found), token)[:_DETAILS]
            return PushError(repo, f"not pushed: {why or type(found).__name__}")
        case _:
            return error


def _answered(repo: str, error: HfHubHTTPError, token: str | None) -> PushError:
    """An error by its status; the Hub's own words say the rest."""
    from huggingface_hub.errors import GatedRepoError

    status = error.response.status_code
    said = server_words(error, token)
    words = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if isinstance(error, GatedRepoError):
        return PushDenied(repo, f"access to it is gated ({words})")
    if status == 401:
        return PushDenied(repo, f"the Hub does not accept the token, or there is none ({words})")
    if status == 403:
        return PushDenied(repo, f"the token may not write there ({words})")
    if status in (409, 412):
        why = f"somebody else has committed meanwhile ({words})"
        return PushConflict(repo, why, hint="look at what changed, then repeat the command")
    if status in (402, 413, 507):
        hint = "free space on the Hub or ask for more; what was uploaded is not uploaded again"
        return PushError(repo, f"the Hub has no room for it ({words})", hint=hint)
    if is_connection_error(error):
        return PushError(repo, f"the Hub cannot take it now ({words})")
    return PushError(repo, f"the Hub refuses it ({words})", hint="nothing was committed")
