"""`hf://org/name`: a Hugging Face repository, through huggingface_hub and its shared cache.

The hub's cache keeps the files (HF_HOME), where other programs find them too. `apr` adds
- resuming: huggingface_hub begins a large file again after an interruption, so those are put into
  its cache by `apr.hub.download` first;
- a manifest with sizes and checksums, so that a second look-up needs no network and `apr check`
  can tell whether a file was damaged since.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from apr.common.errors import AprError, UsageError
from apr.common.progress import note
from apr.hub.cache import (
    FileRecord,
    Manifest,
    cache_lock,
    cache_root,
    missing_files,
    read_manifest,
    sha256_of,
    write_manifest,
)
from apr.hub.download import download
from apr.hub.model_files import choose_files
from apr.hub.refs import HfRef

_LOG_IN = "log in (`hf auth login`, or set HF_TOKEN)"
# Depending on huggingface_hub's version.
_HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3")


def pull_hf(
    ref: HfRef, *, offline: bool = False, progress: bool = True, refresh: bool = False
) -> tuple[Manifest, bool]:
    """The repository's model files in the hub's cache; True when they were there already.

    refresh: ask the hub for a newer commit, and fetch again what is damaged.
    Raises UsageError (no such repository, revision or file), AprError (network, access, checksum).
    """
    offline = offline or hub_offline()
    look = offline or not refresh
    found = _cached(ref, progress) if look else None
    if found is not None:
        return found, True
    with cache_lock(f"hf--{ref.repo.replace('/', '--')}", progress):
        # Another process may have fetched it while we waited for the lock.
        found = _cached(ref, progress) if look else None
        if found is not None:
            return found, True
        with hub_errors(ref):
            manifest = _adopt(ref) if offline else _fetch(ref, progress)
        write_manifest(_manifest_path(ref), manifest)
    return manifest, offline


def _manifest_path(ref: HfRef) -> Path:
    name = "--".join(filter(None, (ref.revision or "main", ref.file))).replace("/", "--")
    return cache_root() / "hf" / ref.repo.replace("/", "--") / f"{name}.json"


def _cached(ref: HfRef, progress: bool) -> Manifest | None:
    manifest = read_manifest(_manifest_path(ref))
    problems = missing_files(manifest) if manifest else []
    if problems:
        note(f"{problems[0]}: it has to be fetched again", progress)
        return None
    return manifest


@dataclass(frozen=True)
class _RemoteFile:
    """size: bytes. sha256: of large (LFS) files, the others have git's blob id."""

    path: str
    size: int
    sha256: str | None
    blob_id: str | None


class _HubWeb:
    """Requests to the hub with the user's token (which never follows to another host)."""

    def __init__(self) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers

        self._session = httpx.Client(
            follow_redirects=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            headers=build_hf_headers(library_name="apr"),
        )

    def __enter__(self) -> _HubWeb:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.close()

    def stream(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[httpx.Response]:
        return self._session.stream("GET", url, headers=dict(headers))


def _fetch(ref: HfRef, progress: bool) -> Manifest:
    commit, remote = _list_repository(ref)
    paths = choose_files(ref, [file.path for file in remote])
    chosen = [file for file in remote if file.path in paths]
    size = sum(file.size for file in chosen) / 1e6
    note(f"pulling {len(chosen)} files, {size:.1f} MB, from {ref}", progress)
    for _ in range(2):
        known = _fetch_large(ref, commit, chosen, progress)
        folder = _snapshot(ref, commit, chosen, progress)
        records = _records(folder, [file.path for file in chosen], known)
        damaged = [
            f for f, record in zip(chosen, records, strict=True) if _differs(folder, f, record)
        ]
        if not damaged:
            return _manifest(ref, folder, commit, records)
        for file in damaged:
            note(f"{file.path} is damaged in the cache: fetching it again", progress)
            _forget(folder / file.path)
    raise AprError(
        f"{ref}: {damaged[0].path} does not have the checksum the hub promises",
        "try again; if it stays, tell the repository's owner",
    )


def _list_repository(ref: HfRef) -> tuple[str, list[_RemoteFile]]:
    """(commit, all files of the repository at it)."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), library_name="apr")
    info = api.model_info(ref.repo, revision=ref.revision, files_metadata=True)
    if info.sha is None:
        raise AprError(f"{ref}: the hub names no commit", "check HF_ENDPOINT")
    files = [
        _RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in info.siblings or []
    ]
    return info.sha, files


def _fetch_large(
    ref: HfRef, commit: str, files: Iterable[_RemoteFile], progress: bool
) -> dict[str, str]:
    """Put large files where huggingface_hub looks first; path -> sha256 of those fetched now."""
    from huggingface_hub import hf_hub_url

    known = {}
    with _HubWeb() as web:
        for file in files:
            blob = _repository_cache(ref) / "blobs" / (file.sha256 or "")
            if file.sha256 is None or blob.exists():
                continue
            url = hf_hub_url(ref.repo, file.path, revision=commit, endpoint=endpoint())
            download(web, url, blob, file.sha256, label=file.path, progress=progress)
            known[file.path] = file.sha256
    return known


def _snapshot(ref: HfRef, commit: str, files: list[_RemoteFile], progress: bool) -> Path:
    """huggingface_hub's folder of this commit, holding at least these files."""
    from huggingface_hub import constants, snapshot_download

    folder = snapshot_download(
        ref.repo,
        # Not the commit: so that the hub's cache knows the branch, too (for use offline).
        revision=ref.revision,
        cache_dir=constants.HF_HUB_CACHE,
        endpoint=endpoint(),
        allow_patterns=[literally(file.path) for file in files],
        tqdm_class=None if progress and sys.stderr.isatty() else no_bars(),
    )
    if Path(folder).name != commit:
        raise AprError(f"{ref} was changed while it was pulled", "pull it again")
    return Path(folder)


def _adopt(ref: HfRef) -> Manifest:
    """Offline: what the hub's cache holds of this repository, fetched by whatever program."""
    from huggingface_hub import constants, snapshot_download

    folder = Path(
        snapshot_download(
            ref.repo,
            revision=ref.revision,
            cache_dir=constants.HF_HUB_CACHE,
            allow_patterns=["config.json"],
            local_files_only=True,
        )
    )
    present = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    chosen = sorted(choose_files(ref, present))
    _check_shards(ref, folder)
    return _manifest(ref, folder, folder.name, _records(folder, chosen, {}))


def _check_shards(ref: HfRef, folder: Path) -> None:
    """A folder another program left half-fetched must not pass for a model."""
    index = folder / "model.safetensors.index.json"
    if ref.file is not None or not index.is_file():
        return
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise AprError(f"{ref}: {missing[0]} is not in the cache", "pull it without `offline`")


def _records(folder: Path, paths: list[str], known: Mapping[str, str]) -> list[FileRecord]:
    return [
        FileRecord(
            path, (folder / path).stat().st_size, known.get(path) or sha256_of(folder / path)
        )
        for path in paths
    ]


def _manifest(ref: HfRef, folder: Path, commit: str, records: list[FileRecord]) -> Manifest:
    exact = HfRef(ref.repo, commit, ref.file)
    gguf = sorted(record.path for record in records if record.path.endswith(".gguf"))
    source = {
        "repository": ref.repo,
        "revision": ref.revision or "main",
        "commit": commit,
        "endpoint": endpoint(),
    }
    return Manifest(str(exact), folder, gguf[0] if gguf else ".", tuple(records), source)


def _differs(folder: Path, remote: _RemoteFile, record: FileRecord) -> bool:
    """Whether the contents are not what the hub says (LFS: sha256; others: git's blob id)."""
    if remote.sha256 is not None:
        return record.sha256 != remote.sha256
    if remote.blob_id is None:
        return False
    content = (folder / remote.path).read_bytes()
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() != remote.blob_id


def _forget(path: Path) -> None:
    """Remove a file of a snapshot and the blob it links to."""
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)


def _repository_cache(ref: HfRef) -> Path:
    """Documented layout: <cache>/models--org--name/{blobs,refs,snapshots}."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{ref.repo.replace('/', '--')}"


def literally(path: str) -> str:
    """A pattern that matches this path only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def no_bars() -> type:
    """A progress bar that shows nothing."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


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
        return AprError(f"{ref} is not in the cache", "pull it without `offline`")
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
        "check the network; `offline` uses only what is already in the cache",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
