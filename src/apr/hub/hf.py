"""`hf://org/name`: a Hugging Face repository, through huggingface_hub and its shared cache.

The hub's cache keeps the files (HF_HOME); `apr` adds a manifest with sizes and checksums, so that
a second look-up needs no network and `apr check` can tell whether a file was damaged since.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from apr.errors import AprError, UsageError
from apr.hub.cache import cache_lock, cache_root
from apr.hub.manifest import (
    Manifest,
    missing_files,
    read_manifest,
    record_files,
    write_manifest,
)
from apr.hub.model_files import gguf_models, split_siblings
from apr.hub.progress import note
from apr.hub.refs import HfRef

# What a model folder needs; weights in other formats, samples and images stay away.
_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "LICEN[CS]E*",
    "NOTICE*",
)
# Mistral repositories carry the same weights twice.
_LEFT_OUT = ("consolidated*.safetensors",)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class _RemoteFile:
    """sha256 for large (LFS) files, git's blob id for the others."""

    path: str
    size: int | None
    sha256: str | None
    blob_id: str | None


def pull_hf(
    ref: HfRef, *, offline: bool = False, progress: bool = True, refresh: bool = False
) -> tuple[Manifest, bool]:
    """The repository's model files in the hub's cache; True when they were there already.

    refresh: ask the hub for a newer commit, and fetch again what is damaged.
    Raises UsageError (no such repository, revision or file), AprError (network, access, checksum).
    """
    offline = offline or _hub_offline()
    found = None if refresh and not offline else _cached(ref, progress)
    if found is not None:
        return found, True
    with cache_lock(f"hf--{ref.repo.replace('/', '--')}", progress):
        found = None if refresh and not offline else _cached(ref, progress)
        if found is not None:
            return found, True
        with _hub_errors(ref):
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


def _fetch(ref: HfRef, progress: bool) -> Manifest:
    from huggingface_hub import HfApi

    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint, library_name="apr")
    info = api.model_info(ref.repo, revision=ref.revision, files_metadata=True)
    commit = info.sha
    if commit is None:
        raise AprError(f"{ref}: the hub names no commit", "check HF_ENDPOINT")
    remote = [
        _RemoteFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in info.siblings or []
    ]
    chosen = _choose(ref, remote)
    size = sum(file.size or 0 for file in chosen) / 1e6
    note(f"pulling {len(chosen)} files, {size:.1f} MB, from {ref}", progress)
    folder = _snapshot(ref, commit, chosen, progress, force=False)
    damaged = [file for file in chosen if _differs(folder / file.path, file)]
    if damaged:
        note(f"{damaged[0].path} is damaged in the cache: fetching it again", progress)
        _snapshot(ref, commit, damaged, progress, force=True)
    for file in damaged:
        if _differs(folder / file.path, file):
            raise AprError(
                f"{ref}: {file.path} does not have the checksum the hub promises",
                "try again; if it stays, the repository is damaged",
            )
    return _manifest(ref, folder, commit, [file.path for file in chosen])


def _snapshot(
    ref: HfRef, commit: str, files: list[_RemoteFile], progress: bool, force: bool
) -> Path:
    from huggingface_hub import constants, snapshot_download

    return Path(
        snapshot_download(
            ref.repo,
            revision=commit,
            cache_dir=constants.HF_HUB_CACHE,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
            allow_patterns=[_literally(file.path) for file in files],
            force_download=force,
            tqdm_class=None if progress and sys.stderr.isatty() else _no_bars(),
        )
    )


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
    present = [
        _RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size, None, None)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    chosen = _choose(ref, present)
    _check_shards(ref, folder)
    return _manifest(ref, folder, folder.name, [file.path for file in chosen])


def _check_shards(ref: HfRef, folder: Path) -> None:
    """A folder another program left half-fetched must not pass for a model."""
    import json

    index = folder / "model.safetensors.index.json"
    if ref.file is not None or not index.is_file():
        return
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise AprError(f"{ref}: {missing[0]} is not in the cache", "pull it without --offline")


def _manifest(ref: HfRef, folder: Path, commit: str, paths: list[str]) -> Manifest:
    exact = HfRef(ref.repo, commit, ref.file)
    model = next((p for p in sorted(paths) if p.endswith(".gguf")), ".")
    files = record_files(folder, [folder / path for path in paths])
    source = {
        "repository": ref.repo,
        "revision": ref.revision or "main",
        "commit": commit,
        "endpoint": os.environ.get("HF_ENDPOINT") or "https://huggingface.co",
    }
    return Manifest(str(exact), folder, model, files, source)


def _choose(ref: HfRef, files: list[_RemoteFile]) -> list[_RemoteFile]:
    """The files of the model `ref` means. Raises UsageError or AprError when that is unclear."""
    names = [file.path for file in files]
    gguf = [name for name in names if name.endswith(".gguf")]
    if ref.file is not None:
        if ref.file not in names:
            raise UsageError(
                f"{ref}: no such file in the repository", f"it has {', '.join(gguf) or 'no .gguf'}"
            )
        wanted = set(split_siblings(ref.file, names))
    else:
        kept = [name for name in names if _is_model_file(name)]
        if not any(name.endswith(".safetensors") for name in kept):
            kept = _only_gguf(ref, names, gguf)
        wanted = set(kept)
    return [file for file in files if file.path in wanted]


def _is_model_file(name: str) -> bool:
    path = PurePosixPath(name)
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _LEFT_OUT):
        return False
    # fnmatch lets * match a slash; only the top folder holds the model.
    return any(
        fnmatch.fnmatchcase(name, pattern) and pattern.count("/") == len(path.parts) - 1
        for pattern in _PATTERNS
    )


def _only_gguf(ref: HfRef, names: list[str], gguf: list[str]) -> list[str]:
    models = gguf_models(gguf)
    if len(models) == 1:
        return split_siblings(models[0], names)
    if gguf:
        raise UsageError(
            f"{ref} holds {len(models)} GGUF files and no safetensors",
            f"name one, as hf://{ref.repo}/{models[0]}; it has {', '.join(models)}",
        )
    if any(name.endswith(_PICKLES) for name in names):
        raise AprError(
            f"{ref} has its weights only as pickles, which can run any code when they are read",
            "use a repository with .safetensors or .gguf files",
        )
    raise AprError(f"{ref} holds no model", "expected .safetensors or .gguf files")


def _differs(path: Path, remote: _RemoteFile) -> bool:
    """Whether a file's contents are not what the hub says (LFS: sha256; others: git blob id)."""
    digest: Any
    if remote.sha256 is not None:
        digest, expected = hashlib.sha256(), remote.sha256
    elif remote.blob_id is not None:
        digest, expected = hashlib.sha1(usedforsecurity=False), remote.blob_id
        digest.update(b"blob %d\0" % path.stat().st_size)
    else:
        return False
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() != expected


def _literally(path: str) -> str:
    """A pattern that matches this path only."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _no_bars() -> type:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _hub_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def _hub_errors(ref: HfRef) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into one line each."""
    from huggingface_hub import errors

    access = "accept its terms on the hub and log in (`hf auth login`, or set HF_TOKEN)"
    known: list[tuple[Any, Callable[[Exception], AprError]]] = [
        (errors.GatedRepoError, lambda e: AprError(f"{ref} is gated", access)),
        (
            errors.RepositoryNotFoundError,
            lambda e: UsageError(
                f"{ref}: no such repository, or a private one",
                "check the name; for a private one log in (`hf auth login`, or set HF_TOKEN)",
            ),
        ),
        (
            errors.RevisionNotFoundError,
            lambda e: UsageError(
                f"{ref}: no revision {ref.revision}", "name a branch, a tag or a commit"
            ),
        ),
        (errors.LocalEntryNotFoundError, lambda e: _not_cached(ref, e)),
        (errors.HfHubHTTPError, lambda e: AprError(f"{ref}: the hub answered: {_first(e)}")),
        (errors.HFValidationError, lambda e: UsageError(f"{ref}: {_first(e)}")),
    ]
    try:
        yield
    except AprError:
        raise
    except Exception as error:
        for kind, describe in known:
            if isinstance(error, kind):
                raise describe(error) from None
        # httpx, httpx2 or requests, depending on huggingface_hub's version.
        if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "requests", "urllib3"):
            raise _no_network(ref, error) from None
        if isinstance(error, OSError):
            raise AprError(f"{ref}: {_first(error)}", "check HF_HOME and free disk space") from None
        raise


def _no_network(ref: HfRef, error: BaseException) -> AprError:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return AprError(
        f"{ref}: cannot reach {endpoint}: {_first(error)}",
        "check the network; --offline uses only what is already in the cache",
    )


def _not_cached(ref: HfRef, error: BaseException) -> AprError:
    cause = error.__cause__
    if cause is not None and not _hub_offline():
        return _no_network(ref, cause)
    return AprError(f"{ref} is not in the cache", "pull it without --offline")


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
