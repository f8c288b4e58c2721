"""One file over HTTP: resumed where it stopped, checked before anyone sees it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import httpx

from apr.errors import AprError
from apr.hub.cache import unwritable
from apr.hub.index_client import IndexClient, Unreachable, file_path, redacted, refused, unreachable
from apr.hub.progress import ByteProgress

CHUNK = 1 << 20  # bytes


def download(
    client: IndexClient,
    url: str,
    target: Path,
    sha256: str | None,
    *,
    progress: bool = True,
    attempts: int = 4,
    pause: float = 0.5,
) -> str:
    """Fetch `url` into `target`, going on from `target`.part where an earlier call stopped.

    sha256: expected checksum in hexadecimal, or None. Returns the file's checksum. A connection
    that breaks after bringing something is taken up again (Range), up to `attempts` times in all,
    with growing pauses (seconds). Raises AprError: no connection, a refusal, a wrong checksum (the
    partial file is removed then, otherwise kept), a full disk.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith("file:"):
            actual = _copy(file_path(url), part, progress)
        else:
            actual = _fetch_checked(client, url, part, sha256, progress, attempts, pause)
        if sha256 is not None and actual != sha256:
            part.unlink()
            raise AprError(
                f"{redacted(url)} has sha256 {actual}, the index promises {sha256}",
                "the file is damaged or was replaced on the way: try again, then tell its owner",
            )
        part.replace(target)
    except OSError as error:
        raise unwritable(part, error) from None
    return actual


def _fetch_checked(
    client: IndexClient,
    url: str,
    part: Path,
    sha256: str | None,
    progress: bool,
    attempts: int,
    pause: float,
) -> str:
    resumed = part.exists()
    actual = _fetch(client, url, part, progress, attempts, pause)
    if resumed and sha256 is not None and actual != sha256:
        # What an earlier run left may be the damaged half: once more, from the beginning.
        part.unlink()
        actual = _fetch(client, url, part, progress, attempts, pause)
    return actual


def _fetch(
    client: IndexClient, url: str, part: Path, progress: bool, attempts: int, pause: float
) -> str:
    """Fill `part` to its end; returns its checksum."""
    for attempt in range(1, attempts + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            return _stream(client, url, part, progress)
        except Unreachable:
            moved = part.exists() and part.stat().st_size > before
            if attempt == attempts or not moved:
                raise
        time.sleep(pause * attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _stream(client: IndexClient, url: str, part: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    have = _hash_existing(part, digest)
    headers = {"Accept-Encoding": "identity"}  # a Range counts bytes of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with client.session(url).stream("GET", client.authorize(url), headers=headers) as response:
            if response.status_code == 416 and have:
                # Nothing follows what we have: it is complete, or not this file at all.
                if _range_total(response) == have:
                    return digest.hexdigest()
                part.unlink()
                return _stream(client, url, part, progress)
            if response.is_error:
                raise refused(url, response)
            if response.status_code != 206 or not _continues_at(response, have):
                digest, have = hashlib.sha256(), 0
            _append(response, part, have, digest, progress)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(url, error) from None
    return digest.hexdigest()


def _append(
    response: httpx.Response, part: Path, have: int, digest: hashlib._Hash, progress: bool
) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    label = part.name.removesuffix(".part")
    with part.open("ab" if have else "wb") as out, ByteProgress(label, total, progress) as bar:
        bar.done = have
        for block in response.iter_bytes(CHUNK):
            out.write(block)
            digest.update(block)
            bar.advance(len(block))
    if total is not None and part.stat().st_size != total:
        raise httpx.RemoteProtocolError(
            f"the connection ended at {part.stat().st_size} of {total} bytes"
        )


def _continues_at(response: httpx.Response, have: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _range_total(response: httpx.Response) -> int | None:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _hash_existing(part: Path, digest: hashlib._Hash) -> int:
    if not part.exists():
        return 0
    with part.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return part.stat().st_size


def _copy(source: Path, part: Path, progress: bool) -> str:
    """A file:// URL: nothing to resume."""
    digest = hashlib.sha256()
    if not source.is_file():
        raise AprError(f"{source} is listed by the index but does not exist")
    total = source.stat().st_size
    bar = ByteProgress(source.name, total, progress)
    with source.open("rb") as stream, part.open("wb") as out, bar:
        while block := stream.read(CHUNK):
            out.write(block)
            digest.update(block)
            bar.advance(len(block))
    return digest.hexdigest()
