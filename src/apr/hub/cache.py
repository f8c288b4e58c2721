"""Where downloads live, and how several processes share that place.

<cache>/pypi/<package>/<version>/   files/ and manifest.json, complete or absent
<cache>/hf/<org>--<name>/           manifests only: the files stay in the hub's own cache
<cache>/downloads/                  what a pull is fetching; *.part resumes
<cache>/locks/
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apr.common.errors import AprError
from apr.common.progress import note


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
