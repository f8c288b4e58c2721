"""What huggingface_hub and its HTTP library raise, as one line each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from apr.common.errors import AprError, UsageError
from apr.hub.refs import HfRef

_LOG_IN = "log in (`hf auth login`, or set HF_TOKEN)"
# Depending on huggingface_hub's version.
_HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3")


@contextmanager
def hub_errors(ref: HfRef) -> Iterator[None]:
    """Let nothing but AprError out of calls to huggingface_hub, bugs excepted."""
    try:
        yield
    except AprError:
        raise
    except Exception as error:
        described = _describe(ref, error)
        if described is None:
            raise
        raise described from None


def endpoint() -> str:
    """The hub in use."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_offline() -> bool:
    """Whether huggingface_hub's own switch forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _describe(ref: HfRef, error: Exception) -> AprError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return AprError(f"{ref} is gated", f"accept its terms on the hub, then {_LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"{ref}: no such repository, or a private one",
            f"check the name; for a private one {_LOG_IN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{ref}: no such revision", "name a branch, a tag or a commit")
    if isinstance(error, errors.LocalEntryNotFoundError):
        if error.__cause__ is not None and not hub_offline():
            return _no_network(ref, error.__cause__)
        return AprError(f"{ref} is not in the cache", "pull it without --offline")
    if isinstance(error, errors.HfHubHTTPError):
        return AprError(f"{ref}: the hub answered: {_first_line(error)}", "try again later")
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{ref}: {_first_line(error)}", "write hf://org/name[@revision]")
    if type(error).__module__.split(".")[0] in _HTTP_LIBRARIES:
        return _no_network(ref, error)
    if isinstance(error, OSError):
        return AprError(f"{ref}: {_first_line(error)}", "check HF_HOME and free disk space")
    return None


def _no_network(ref: HfRef, error: BaseException) -> AprError:
    return AprError(
        f"{ref}: cannot reach {endpoint()}: {_first_line(error)}",
        "check the network; --offline uses only what is already in the cache",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
