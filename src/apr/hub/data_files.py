"""Benchmark files onto this disk: found, fetched or copied, and checked before anyone sees them."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from apr.common.errors import AprError, UsageError
from apr.common.files import new_file
from apr.common.rows import read_parquet
from apr.hub.cache import cache_lock, cache_root, unwritable
from apr.hub.data_registry import DataFile, DataSet, find_dataset

if TYPE_CHECKING:
    from apr.hub.download import Web


@dataclass(frozen=True)
class PulledData:
    """paths: the files, in the order of `dataset.files`. from_cache: all were there already."""

    dataset: DataSet
    paths: tuple[Path, ...]
    from_cache: bool


def find_data(name: str, data: Path | None = None) -> Path:
    """The one file of a data set: `data` if the user named one, else the pulled copy.

    Raises UsageError, with the command that gets it, if neither is there.
    """
    return find_data_files(name, data)[0]


def find_data_files(name: str, data: Path | None = None) -> tuple[Path, ...]:
    """As `find_data`, for a data set of one or more files."""
    if data is not None:
        if not data.is_file():
            raise UsageError(f"`data` {data}: no such file", f"apr data pull {name} fetches it")
        return (data,)
    dataset = find_dataset(name)
    paths = tuple(cached_path(file) for file in dataset.files)
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise UsageError(
            f"the data of {name} is not here ({missing})",
            f"apr data pull {name} fetches it; apr eval and score take a file as `data`",
        )
    return paths


def cached_path(file: DataFile) -> Path:
    """Where a pulled file lies, complete or absent."""
    return cache_root() / "data" / file.name


def pull_data(dataset: DataSet, source: Path | None = None, progress: bool = True) -> PulledData:
    """Put the files of a data set into the cache; a damaged one there is replaced.

    source: a copy on this disk, or a folder that holds one (searched below, too), to be used
    instead of the network. Raises UsageError (no copy there), AprError (wrong checksum, network,
    disk); what was in the cache stays then.
    """
    if source is not None and not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    paths, fetched = [], False
    for file in dataset.files:
        target = cached_path(file)
        with cache_lock(f"data--{file.name}", progress):
            if not _is_good(target, file):
                _obtain(file, target, source, progress)
                fetched = True
        paths.append(target)
    return PulledData(dataset, tuple(paths), from_cache=not fetched)


def describe(dataset: DataSet) -> dict[str, object]:
    """A data set as plain data; `paths` only if all its files are here."""
    paths = [cached_path(file) for file in dataset.files]
    return {
        "name": dataset.label,
        "paper": dataset.paper,
        "licence": dataset.licence,
        "rows": dataset.rows,
        "evalplus_hash": dataset.evalplus_hash or None,
        "files": [{"url": file.url, "sha256": file.sha256} for file in dataset.files],
        "paths": [str(path) for path in paths] if all(p.is_file() for p in paths) else None,
    }


def matches(path: Path, file: DataFile) -> bool:
    """Whether a file holds what was published: its bytes, or its text packed or unpacked.

    Raises OSError.
    """
    texts = {file.unpacked_sha256 or file.sha256}
    if _sha256(path.open("rb")) in {file.sha256, *texts}:
        return True
    try:
        return path.suffix == ".gz" and _sha256(cast(IO[bytes], gzip.open(path))) in texts
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False


def _is_good(target: Path, file: DataFile) -> bool:
    """A parquet file was checked before it was rewritten; nobody published that form's checksum."""
    try:
        return target.is_file() and (file.is_parquet or matches(target, file))
    except OSError as error:
        raise AprError(f"{target} cannot be read: {error.strerror}") from None


def _obtain(file: DataFile, target: Path, source: Path | None, progress: bool) -> None:
    incoming = cache_root() / "downloads" / file.name
    if file.is_parquet:
        incoming = incoming.with_suffix(".parquet")
        _need_parquet(file)
    try:
        if source is None:
            _download(file, incoming, progress)
        else:
            incoming.parent.mkdir(parents=True, exist_ok=True)
            _copy(_find_copy(file, source), incoming)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_parquet:
            _write_rows(read_parquet(incoming), target)
            incoming.unlink()
        else:
            if zipfile.is_zipfile(incoming):
                _unzip(incoming, target.name.removesuffix(".gz"))
            incoming.replace(target)
    except OSError as error:
        raise unwritable(target, error) from None


def _download(file: DataFile, target: Path, progress: bool) -> None:
    from apr.hub.download import Unreachable, download
    from apr.hub.hf import endpoint

    url = file.url.replace("https://huggingface.co", endpoint(), 1)
    try:
        with _public_web() as web:
            download(web, url, target, file.sha256, label=file.name, progress=progress)
    except Unreachable as error:
        raise Unreachable(
            error.message, "try again later, or give a copy: apr data pull --from FILE"
        ) from None


@contextmanager
def _public_web() -> Iterator[Web]:
    """Requests without credentials: all these files are public."""
    import httpx

    from apr import __version__

    class Public:
        def stream(self, url: str, headers: dict[str, str]) -> AbstractContextManager:
            return client.stream("GET", url, headers=headers)

    headers = {"User-Agent": f"apr/{__version__}"}
    with httpx.Client(follow_redirects=True, timeout=30, headers=headers) as client:
        yield cast("Web", Public())


def _find_copy(file: DataFile, source: Path) -> Path:
    """The copy of a file that `source` is or holds. Raises UsageError, AprError."""
    if source.is_file():
        candidates = [source]
    else:
        names = {file.name, file.published_name}
        plain = {name.removesuffix(".gz") for name in names}
        names |= plain | {f"{name}.gz" for name in plain}
        candidates = sorted(path for path in source.rglob("*") if path.name in names)
    for path in candidates:
        try:
            if path.is_file() and matches(path, file):
                return path
        except OSError as error:
            raise AprError(f"{path} cannot be read: {error.strerror}") from None
    if candidates:
        raise AprError(
            f"{candidates[0]} is not {file.published_name} as published: another checksum",
            f"its source is {file.url}",
        )
    raise UsageError(f"{source} holds no {file.published_name}", f"it is published at {file.url}")


def _copy(path: Path, target: Path) -> None:
    """Copy, packed with gzip or not as the target's name says; a zip archive as it is."""
    packed = target.suffix == ".gz"
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    if is_packed == packed or zipfile.is_zipfile(path):
        shutil.copyfile(path, target)
    elif packed:
        with path.open("rb") as plain, _gzipped(target) as out:
            shutil.copyfileobj(plain, out)
    else:
        with gzip.open(path) as unpacked, target.open("wb") as out:
            shutil.copyfileobj(unpacked, out)


def _unzip(archive: Path, name: str) -> None:
    """Put a file of the archive, packed with gzip, in the archive's place."""
    with new_file(archive) as temporary, zipfile.ZipFile(archive) as found:
        member = next(entry for entry in found.namelist() if Path(entry).name == name)
        with found.open(member) as text, _gzipped(temporary) as out:
            shutil.copyfileobj(text, out)


@contextmanager
def _gzipped(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written packed; neither time nor name is in it."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as out:
        yield cast(IO[bytes], out)


def _need_parquet(file: DataFile) -> None:
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise AprError(f"{file.url} is a parquet file", "pip install pyarrow")


def _write_rows(rows: Iterable[dict[str, object]], target: Path) -> None:
    """Gzipped JSON lines; the same rows give the same bytes."""
    with new_file(target) as temporary, _gzipped(temporary) as out:
        for row in rows:
            out.write(json.dumps(row).encode() + b"\n")


def _sha256(stream: IO[bytes]) -> str:
    with stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
