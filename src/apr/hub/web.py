"""What all downloads share: the HTTP they need, URLs as they may be shown, failures in one line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import httpx

from apr.common.errors import AprError


class Unreachable(AprError):
    """The network or the server failed; trying again or another source may help."""


class Web(Protocol):
    """Sends GET requests with whatever credentials and certificates the host asks for."""

    def stream(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[httpx.Response]: ...


def file_path(url: str) -> Path:
    """The path a file:// URL names."""
    return Path(unquote(urlsplit(url).path))


def absolute(base: str, link: str) -> str:
    """A link of a page at `base`, without its fragment."""
    return urlsplit(urljoin(base, link))._replace(fragment="").geturl()


def redacted(url: str) -> str:
    """The URL as it may be shown: without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def unreachable(url: str, error: Exception) -> Unreachable:
    """The one line for a connection that failed."""
    reason = str(error) or type(error).__name__
    return Unreachable(
        f"cannot reach {redacted(url)}: {reason}",
        "check the network; --offline uses only what is already in the cache",
    )


def refused(url: str, response: httpx.Response) -> Unreachable:
    """The one line for a server that answered with an error."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    hint = "try again later"
    if response.status_code in (401, 403, 407):
        hint = "check your credentials for this host"
    return Unreachable(f"{redacted(url)} answered {status}", hint)
