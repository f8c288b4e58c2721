"""Python source files: of folders, of corpora, of the standard library, of installed packages."""

from __future__ import annotations

import importlib.metadata
import io
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from apr.common.errors import AprError, UsageError
from apr.common.rows import read_fields

CORPORA = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
TEST_FOLDERS = frozenset({"test", "tests", "testing", "idle_test", "lib2to3", "turtledemo"})


@dataclass(frozen=True)
class SourceFile:
    """name: where it is from, for the rows. text: None if it cannot be decoded. licence: if the
    corpus or the package says.
    """

    name: str
    text: str | None
    licence: str | None = None

    @property
    def is_test(self) -> bool:
        *folders, name = PurePosixPath(self.name).parts
        is_named = name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"
        return is_named or not TEST_FOLDERS.isdisjoint(folders)


def source_files(
    paths: Iterable[Path], *, stdlib: bool = False, installed: bool = False
) -> Iterator[SourceFile]:
    """The sources of each path (a .py file, a folder, a corpus with a `content` or `text` field),
    then the running interpreter's standard library, then its installed packages.

    Names are the same wherever the files lie, and so is their order. Raises UsageError, AprError.
    """
    for path in paths:
        yield from _of_path(path)
    if stdlib:
        root = Path(sysconfig.get_paths()["stdlib"])
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for file in _python_files(root):
            yield _read(file, f"{version}/{file.relative_to(root).as_posix()}", "PSF-2.0")
    if installed:
        yield from _of_packages()


def _of_path(path: Path) -> Iterator[SourceFile]:
    if path.is_dir():
        root = path.resolve()
        for file in _python_files(root):
            yield _read(file, f"{root.name}/{file.relative_to(root).as_posix()}")
    elif path.name.endswith(CORPORA):
        yield from _of_corpus(path)
    elif path.suffix not in (".py", ".pyi"):
        kinds = ", ".join(CORPORA)
        raise UsageError(f"{path} is not Python", f"name .py files, folders or corpora ({kinds})")
    elif not path.is_file():
        raise UsageError(f"{path}: no such file")
    else:
        yield _read(path, path.name)


def _of_corpus(path: Path) -> Iterator[SourceFile]:
    for number, (where, row) in enumerate(read_fields(path), 1):
        text = row.get("content", row.get("text"))
        if not isinstance(text, str):
            raise UsageError(f"{where} has no text in field 'content' or 'text'")
        name = next((row[key] for key in ("path", "file", "name") if row.get(key)), number)
        repository = row.get("repo") or row.get("repository") or path.name
        licence = row.get("license") or row.get("licence")
        yield SourceFile(f"{repository}/{name}", _unix(text), str(licence) if licence else None)


def _of_packages() -> Iterator[SourceFile]:
    packages = {d.metadata["Name"]: d for d in importlib.metadata.distributions()}
    for name in sorted(filter(None, packages), key=str.lower):
        licence = _licence(packages[name])
        for file in sorted(packages[name].files or (), key=str):
            path = Path(str(packages[name].locate_file(file)))
            if file.suffix == ".py" and ".." not in file.parts and path.is_file():
                yield _read(path, file.as_posix(), licence)


def _licence(package: importlib.metadata.Distribution) -> str | None:
    """As its metadata name it: an SPDX expression, a short text, or a classifier."""
    fields = (package.metadata.get_all(name) for name in ("License-Expression", "License"))
    stated = next((values[0] for values in fields if values and values[0]), "")
    if stated and len(stated) < 60 and "\n" not in stated and stated.upper() != "UNKNOWN":
        return stated
    classifiers = package.metadata.get_all("Classifier") or ()
    named = (c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: "))
    return next(named, None)


def _python_files(root: Path) -> Iterator[Path]:
    """Sorted; without hidden folders and other people's packages."""
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        hidden = any(folder.startswith(".") for folder in folders)
        if not hidden and SKIPPED_FOLDERS.isdisjoint(folders) and path.is_file():
            yield path


def _read(path: Path, name: str, licence: str | None = None) -> SourceFile:
    """Decoded as its first lines say (PEP 263)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AprError(f"{path} cannot be read: {error.strerror}") from None
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return SourceFile(name, _unix(data.decode(encoding)), licence)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return SourceFile(name, None, licence)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
