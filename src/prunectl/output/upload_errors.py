"""What goes wrong when something is put on the Hub, in our words and without a token."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prunectl.errors import PrunectlError
from prunectl.events import Note, OnEvent
from prunectl.output.push_errors import InvalidRepository, PushConflict, PushDenied, PushError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{8,}")
_LOGIN = re.compile(r"(https?://)[^\s/@'\"]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_DETAILS = 300
"""Characters of the Hub's own words that are shown."""


def without_secrets(text: str, token: str | None) -> str:
    """``text`` without tokens, logins inside of addresses, and queries of signed ones."""
    if token and len(token) >= 8:
        text = text.replace(token, "***")
    return _QUERY.sub(r"\1", _LOGIN.sub(r"\1", _TOKEN.sub("***", text)))


@contextmanager
def hub_errors(repo: str, token: str | None) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours."""
    try:
        yield
    except PrunectlError:
        raise
    except Exception as error:
        raise _ours(repo, error, token) from None


@contextmanager
def hub_log(token: str | None, on_event: OnEvent) -> Iterator[None]:
    """Let what huggingface_hub logs (retries, waits) become notes instead of lines on stderr."""
    logger = logging.getLogger("huggingface_hub")
    handlers = logger.handlers
    logger.handlers = [_Notes(token, on_event)]
    try:
        yield
    finally:
        logger.handlers = handlers


class _Notes(logging.Handler):
    def __init__(self, token: str | None, on_event: OnEvent) -> None:
        super().__init__(logging.WARNING)
        self._token, self._on_event = token, on_event

    def emit(self, record: logging.LogRecord) -> None:
        self._on_event(Note(without_secrets(record.getMessage(), self._token)))


def _ours(repo: str, error: Exception, token: str | None) -> Exception:
    from huggingface_hub import errors

    found: BaseException = error
    # An upload in a thread is wrapped, sometimes more than once.
    while isinstance(found, RuntimeError) and found.__cause__ is not None:
        found = found.__cause__
    if _is_malformed_answer(found):
        return not_the_hub(repo)
    match found:
        case errors.HFValidationError():
            return InvalidRepository(repo, "is no name that a repository on the Hub can have")
        case errors.OfflineModeIsEnabled():
            hint = "unset HF_HUB_OFFLINE"
            return PushError(repo, "not pushed: offline mode is on (HF_HUB_OFFLINE)", hint=hint)
        case errors.LocalTokenNotFoundError():
            return _denied(repo, "there is no token")
        case errors.HfHubHTTPError():
            return _answered(repo, found, token)
        case errors.FileMetadataError():
            return not_the_hub(repo)
        case errors.LocalEntryNotFoundError():
            return PushError(repo, "the connection broke off")
        case ImportError():  # a SOCKS proxy that httpx lacks the package for
            return PushError(repo, " ".join(str(found).split()))
        case Exception() if type(found).__name__ == "UnsupportedProtocol":
            return bad_endpoint(repo)
        case errors.HTTPError() | ConnectionError() | TimeoutError():  # type: ignore[attr-defined]
            return PushError(repo, f"the connection broke off ({type(found).__name__})")
        case PermissionError() if found.filename is None:  # of the Xet client
            return _denied(repo, "the Hub's storage does not accept the token")
        case OSError():
            why = f"{found.filename or 'a file'}: {found.strerror or found}"
            return PushError(repo, without_secrets(why, token), hint="nothing was committed")
        case json.JSONDecodeError():
            return PushError(repo, "what answers is not the Hub (no JSON)", hint="see HF_ENDPOINT")
        case ValueError() | RuntimeError():
            # A malformed answer, a metadata check that failed, or an error of the Xet client.
            why = " ".join(without_secrets(str(found), token).split())[:_DETAILS]
            return PushError(repo, f"not pushed: {why or type(found).__name__}")
        case _:
            return error


def not_the_hub(repo: str) -> PushError:
    """An answer that cannot be the Hub's."""
    hint = "see HF_ENDPOINT; then repeat the command"
    return PushError(repo, "what answers is not the Hub", hint=hint)


def not_created(repo: str, error: HfHubHTTPError, token: str | None) -> InvalidRepository | None:
    """Why a repository was not made; None where it is not about its name."""
    if error.response.status_code == 400:
        said = without_secrets(error.server_message or "", token)
        return InvalidRepository(repo, f"the Hub refuses the name: {said}")
    if error.response.status_code == 409:  # only where it must not be there
        hint = "choose another name, or leave --no-exist-ok out"
        return InvalidRepository(repo, "exists already", hint=hint)
    return None


def shown_address(url: str) -> str:
    """An address without the credentials that HF_ENDPOINT may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def bad_endpoint(repo: str) -> PushError:
    """``HF_ENDPOINT`` cannot be asked at all."""
    hint = "it begins with https:// or http://, or unset it"
    return PushError(repo, "HF_ENDPOINT is no address", hint=hint)


def _is_malformed_answer(error: BaseException) -> bool:
    """Whether huggingface_hub itself stumbled over what it was told.

    It takes the members of an answer as they come; one that is missing, or of another type, ends in
    an error of Python that was raised in its own code.
    """
    expected = LookupError | TypeError | AttributeError | AssertionError | RecursionError
    last = error.__traceback__ if isinstance(error, expected) else None
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = str(last.tb_frame.f_globals.get("__name__", "")) if last is not None else ""
    return where.partition(".")[0] in ("huggingface_hub", "json")


def _answered(repo: str, error: HfHubHTTPError, token: str | None) -> PushError:
    """An error by its status; the Hub's own words say the rest."""
    from huggingface_hub import errors

    status = error.response.status_code
    said = without_secrets(" ".join((error.server_message or "").split()), token)[:_DETAILS]
    words = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if isinstance(error, errors.GatedRepoError):
        return _denied(repo, f"access to it is gated ({words})")
    if status == 401:
        return _denied(repo, f"the Hub does not accept the token, or there is none ({words})")
    if status == 403:
        return _denied(repo, f"the token may not write there ({words})")
    if status in (409, 412):
        return PushConflict(
            repo,
            f"somebody else has committed meanwhile ({words})",
            hint="look at what changed, then repeat the command",
        )
    if status in (402, 413, 507):
        hint = "free space on the Hub or ask for more; what was uploaded is not uploaded again"
        return PushError(repo, f"the Hub has no room for it ({words})", hint=hint)
    if status == 429 or status >= 500:
        return PushError(repo, f"the Hub cannot take it now ({words})")
    return PushError(repo, f"the Hub refuses it ({words})", hint="nothing was committed")


def _denied(repo: str, why: str) -> PushDenied:
    return PushDenied(
        repo,
        why,
        hint="give a token with the role write (--token, HF_TOKEN or 'hf auth login'); "
        "who may only read can suggest the change with --create-pr",
    )
