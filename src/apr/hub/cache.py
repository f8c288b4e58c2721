"""Where downloads live, how several processes share that place, and the record beside what was
fetched: which files, how long, with which checksum.

<cache>/pypi/<package>/<version>/   files/ and manifest.json, complete or absent
<cache>/hf/<org>--<name>/           manifests only: the files stay in the hub's own cache
<cache>/downloads/                  what a pull is fetching; *.part resumes
<cache>/locks/
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apr.common.errors import AprError
from apr.common.files import write_json
from apr.common.progress import note
from apr.common.record import FORMAT, FileRecord, sha256_of


def cache_root() -> Path:
    """APR_CACHE, else the XDG cache folder's `apr` (~/.cache/apr)."""
    own = os.environ.get("APR_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(xdg) if xdg else Path.home() / ".cache"
    return base.absolute() / "apr"


class CacheFull(AprError):
    """The cache folder cannot take the files: what was downloaded so far is kept."""


@contextmanager
def cache_lock(name: str, progress: bool = True) -> Iterator[None]:
    """Hold the lock `name` among all processes that share this cache; waits for it.

    The kernel drops the lock when its holder dies. Raises AprError when the cache is not writable.
    """
    from filelock import FileLock, Timeout

    path = cache_root() / "locks" / f"{name}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=2)
        except Timeout:
            note(f"waiting for another process that is pulling {name}", progress)
            lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: OSError) -> CacheFull:
    """The one line for a cache that cannot be written (full disk, no permission)."""
    return CacheFull(
        f"cannot write {path}: {error.strerror or error}",
        "make room, or set APR_CACHE to another folder",
    )


@dataclass(frozen=True)
class Manifest:
    """ref: the exact source (version or commit included). root: folder of the files.

    model: path under root of the model itself (a .gguf file, or "." for the folder).
    source: where it came from (index, url, commit, settings), for people and reports.
    """

    ref: str
    root: Path
    model: str
    files: tuple[FileRecord, ...]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def model_path(self) -> Path:
        return self.root if self.model == "." else self.root / self.model


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write atomically. The root is stored relative to the manifest where it lies below it."""
    root = manifest.root
    if root.is_relative_to(path.parent):
        root = root.relative_to(path.parent)
    value = {
        "format": FORMAT,
        "ref": manifest.ref,
        "root": str(root),
        "model": manifest.model,
        "files": [asdict(file) for file in manifest.files],
        "source": manifest.source,
    }
    write_json(path, value)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file; None when there is none. AprError when it is not one of ours."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AprError(f"cannot read {path}: {error.strerror}") from None
    try:
        value = json.loads(text)
        if value["format"] != FORMAT:
            raise AprError(
                f"{path} has format {value['format']}, this apr reads format {FORMAT}",
                "delete the file to fetch the model again",
            )
        return Manifest(
            ref=value["ref"],
            root=path.parent / value["root"],
            model=value["model"],
            files=tuple(FileRecord(**file) for file in value["files"]),
            source=value["source"],
        )
    except (ValueError, KeyError, TypeError):
        raise AprError(f"{path} is not a manifest", "delete it to fetch the model again") from None


def missing_files(manifest: Manifest) -> list[str]:
    """What is wrong at first sight (files gone or of another length); reads no contents."""
    problems = []
    for file in manifest.files:
        path = manifest.root / file.path
        try:
            size = path.stat().st_size
        except OSError:
            problems.append(f"{path} is missing")
            continue
        if size != file.size:
            problems.append(f"{path} has {size} bytes, expected {file.size}")
    return problems


def damaged_files(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the files, one line each, by hashing all of them."""
    for file in manifest.files:
        path = manifest.root / file.path
        try:
            actual = sha256_of(path)
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"
            continue
        if actual != file.sha256:
            yield f"{path} has sha256 {actual}, expected {file.sha256}"
