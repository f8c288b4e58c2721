"""One file over HTTP: resumed where it stopped, checked before anyone sees it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import httpx

from apr.common.errors import AprError
from apr.common.progress import ByteProgress
from apr.hub.cache import unwritable

CHUNK = 1 << 20  # bytes, for reading files
ATTEMPTS = 3  # fruitless ones in a row, after the transfer has begun
PAUSE = 1.0  # seconds before taking up a broken transfer


class Unreachable(AprError):
    """The network or the server failed; trying again or another source may help."""


class Web(Protocol):
    """Sends GET requests with whatever credentials and certificates the host asks for."""

    def stream(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[httpx.Response]: ...


@dataclass(frozen=True)
class _Transfer:
    web: Web
    url: str
    part: Path
    label: str
    progress: bool


def download(
    web: Web,
    url: str,
    target: Path,
    sha256: str | None,
    *,
    label: str = "",
    progress: bool = True,
) -> str:
    """Fetch `url` into `target`, going on from `target`.part where an earlier call stopped.

    sha256: expected checksum in hexadecimal, or None. label: how progress names it. Returns the
    file's checksum. A connection that breaks after it brought something is taken up again (Range)
    after `PAUSE` seconds, until `ATTEMPTS` in a row brought nothing. Raises AprError: no connection
    or a refusal (the partial file is kept), a wrong checksum (it is removed), a full disk.
    """
    part = target.with_name(target.name + ".part")
    transfer = _Transfer(web, url, part, label or target.name, progress)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        actual = _fetch_checked(transfer, sha256)
        if sha256 is not None and actual != sha256:
            part.unlink()
            raise AprError(
                f"{redacted(url)} has sha256 {actual}, expected {sha256}",
                "the file was damaged or replaced on the way: try again, then tell its owner",
            )
        part.replace(target)
    except OSError as error:
        raise unwritable(part, error) from None
    return actual


def _fetch_checked(transfer: _Transfer, sha256: str | None) -> str:
    resumed = transfer.part.exists()
    actual = _fetch(transfer)
    if resumed and sha256 is not None and actual != sha256:
        # What an earlier run left may be the damaged half: once more, from the beginning.
        transfer.part.unlink()
        actual = _fetch(transfer)
    return actual


def _fetch(transfer: _Transfer) -> str:
    """Fill the partial file to its end; returns its checksum."""
    begun, fruitless = False, 0
    while True:
        before = _size(transfer.part)
        try:
            return _stream(transfer)
        except Unreachable:
            moved = _size(transfer.part) > before
            begun = begun or moved
            fruitless = 0 if moved else fruitless + 1
            if not begun or fruitless == ATTEMPTS:
                raise
        time.sleep(PAUSE)


def _stream(transfer: _Transfer) -> str:
    """One request, from where the partial file ends."""
    url, part = transfer.url, transfer.part
    digest = hashlib.sha256()
    have = _hash_existing(part, digest)
    headers = {"Accept-Encoding": "identity"}  # a Range counts bytes of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with transfer.web.stream(url, headers) as response:
            if response.status_code == 416 and have:
                # Nothing follows what we have: it is complete, or not this file at all.
                if _range_total(response) == have:
                    return digest.hexdigest()
                part.unlink()
                return _stream(transfer)
            if response.is_error:
                raise refused(url, response)
            if response.status_code != 206 or not _continues_at(response, have):
                digest, have = hashlib.sha256(), 0
            _append(response, transfer, have, digest)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(url, error) from None
    return digest.hexdigest()


def _append(
    response: httpx.Response, transfer: _Transfer, have: int, digest: hashlib._Hash
) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    bar = ByteProgress(transfer.label, total, transfer.progress)
    with transfer.part.open("ab" if have else "wb") as out, bar:
        bar.done = have
        for block in response.iter_bytes():
            out.write(block)
            digest.update(block)
            bar.advance(len(block))


def _continues_at(response: httpx.Response, have: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _range_total(response: httpx.Response) -> int | None:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _hash_existing(part: Path, digest: hashlib._Hash) -> int:
    if not part.exists():
        return 0
    with part.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return part.stat().st_size


def redacted(url: str) -> str:
    """The URL as it may be shown: without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def unreachable(url: str, error: Exception) -> Unreachable:
    """The one line for a connection that failed."""
    reason = str(error) or type(error).__name__
    return Unreachable(
        f"cannot reach {redacted(url)}: {reason}",
        "check the network; `offline` uses only what is already in the cache",
    )


def refused(url: str, response: httpx.Response) -> Unreachable:
    """The one line for a server that answered with an error."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    hint = "try again later"
    if response.status_code in (401, 403, 407):
        hint = "check your credentials for this host"
    return Unreachable(f"{redacted(url)} answered {status}", hint)
