"""What goes wrong when the Hub is read: the errors of huggingface_hub, in our words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from prunectl.errors import AccessDenied, HubUnreachable, ModelNotFound, SourceError

_NOT_THE_HUB = "what answered is not the Hub (see HF_ENDPOINT)"


def not_the_hub(model: str) -> HubUnreachable:
    """An answer that cannot be the Hub's."""
    return HubUnreachable(model, _NOT_THE_HUB)


def is_malformed_answer(error: BaseException) -> bool:
    """Whether huggingface_hub itself stumbled over what it was told.

    It takes the members of an answer as they come; one that is missing, or of another type, ends in
    an error of Python that was raised in its own code.
    """
    expected = LookupError | TypeError | AttributeError | AssertionError | RecursionError
    if not isinstance(error, expected | ValueError):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = str(last.tb_frame.f_globals.get("__name__", "")) if last is not None else ""
    return where.partition(".")[0] in ("huggingface_hub", "json")


def why_no_answer(error: Exception) -> str:
    """Words for an error that :func:`is_connection_error` knows."""
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline_mode(error):
        return "offline mode is on (HF_HUB_OFFLINE)"
    if type(error).__name__ == "UnsupportedProtocol":
        return "the Hub cannot be reached: HF_ENDPOINT is no address that begins with https://"
    status = f" (HTTP {error.response.status_code})" if isinstance(error, HfHubHTTPError) else ""
    return f"the Hub cannot be reached{status}"


def is_offline_mode(error: Exception) -> bool:
    """Whether there was no request, since the user wants none."""
    return type(error).__name__ == "OfflineModeIsEnabled"


def is_connection_error(error: Exception) -> bool:
    """Whether the Hub gave no answer, or one that says nothing of what was asked."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status == 429
    no_answer = errors.HTTPError  # type: ignore[attr-defined]
    return isinstance(error, (no_answer, ConnectionError, TimeoutError))


@contextmanager
def hub_errors(model: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours; their texts may carry URLs, never tokens."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise AccessDenied(model, "access to this repository is gated") from None
    except errors.RepositoryNotFoundError as error:
        if error.response.status_code in (401, 403):
            raise AccessDenied(
                model, "not on the Hub, or private and no token given opens it"
            ) from None
        raise ModelNotFound(
            model,
            "neither a local path nor a repository on the Hub",
            hint="check the spelling; for a private repository run 'hf auth login' or set HF_TOKEN",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(
            model, "the repository has no such revision", hint="give a branch, tag or commit"
        ) from None
    except errors.HFValidationError:
        raise ModelNotFound(model, "neither a local path nor a Hub id (org/name)") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AccessDenied(model, f"the Hub refused access (HTTP {status})") from None
        raise HubUnreachable(model, f"the Hub answered HTTP {status}") from None
    except json.JSONDecodeError:
        raise HubUnreachable(model, "what answered is not the Hub (no JSON)") from None
    except (
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        errors.FileMetadataError,
        errors.XetDownloadError,
        errors.HTTPError,  # type: ignore[attr-defined]
        ConnectionError,
        TimeoutError,
    ) as error:
        raise HubUnreachable(model, f"the download was cut off ({type(error).__name__})") from None
    except OSError as error:
        raise SourceError(
            f"{model}: the download cannot be stored: {error.strerror or error}",
            hint="free some space, or choose another cache with --cache-dir or HF_HOME",
        ) from None
    except ImportError as error:  # a SOCKS proxy that httpx lacks the package for
        raise HubUnreachable(model, " ".join(str(error).split())) from None
    except Exception as error:
        if is_malformed_answer(error):
            raise not_the_hub(model) from None
        raise
