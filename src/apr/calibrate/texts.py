"""Texts: what a model is measured on (a file, WikiText-2 as papers join it, the Python sample in
apr), and Python source files of folders, corpora, the standard library, installed packages.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

from apr.common.errors import AprError, UsageError
from apr.common.rows import read_fields, read_rows
from apr.hub.data_files import find_data

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
            yield _source_file(file, f"{version}/{file.relative_to(root).as_posix()}", "PSF-2.0")
    if installed:
        yield from _of_packages()


def _of_path(path: Path) -> Iterator[SourceFile]:
    if path.is_dir():
        root = path.resolve()
        for file in _python_files(root):
            yield _source_file(file, f"{root.name}/{file.relative_to(root).as_posix()}")
    elif path.name.endswith(CORPORA):
        yield from _of_corpus(path)
    elif path.suffix not in (".py", ".pyi"):
        kinds = ", ".join(CORPORA)
        raise UsageError(f"{path} is not Python", f"name .py files, folders or corpora ({kinds})")
    elif not path.is_file():
        raise UsageError(f"{path}: no such file")
    else:
        yield _source_file(path, path.name)


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
                yield _source_file(path, file.as_posix(), licence)


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


def _source_file(path: Path, name: str, licence: str | None = None) -> SourceFile:
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


WIKITEXT = "wikitext-2"
BUILTIN = "builtin"


@dataclass(frozen=True)
class Text:
    """name: as on the command line. sha256: of the text in UTF-8, after joining."""

    name: str
    text: str
    sha256: str


def load_text(name: str, data: Path | None = None) -> Text:
    """The text `name` means: "builtin", "wikitext-2" (data: its file, if not the pulled one), or
    a path.

    A .jsonl file (packed with gzip or not) is its rows' `text` or `content` joined by empty lines;
    any other file is taken as it is. Raises UsageError naming file and line.
    """
    if data is not None and name != WIKITEXT:
        raise UsageError(f"--data names the file of --perplexity {WIKITEXT}, not of {name}")
    if name == BUILTIN:
        text = (files("apr.calibrate") / "python_sample.txt").read_text(encoding="utf-8")
    elif name == WIKITEXT:
        text = join_wikitext(_read(find_data(WIKITEXT, data)))
    elif Path(name.removesuffix(".gz")).suffix == ".jsonl":
        text = "\n\n".join(_row_texts(Path(name)))
    else:
        text = _read(Path(name))
    return Text(name, text, hashlib.sha256(text.encode()).hexdigest())


def join_wikitext(raw: str) -> str:
    """wiki.test.raw as GPTQ and its successors feed it to a model.

    Rows of the data set are the lines with their line ends, blank lines (" \\n") being empty rows;
    the papers' code joins rows by two line ends.
    """
    lines = raw.removesuffix("\n").split("\n")
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines)


def _row_texts(path: Path) -> list[str]:
    found = []
    for number, row in read_rows(path):
        text = row.get("text", row.get("content"))
        if not isinstance(text, str):
            raise UsageError(f"{path} line {number} has no string `text` or `content`")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{path} line {number} holds half a surrogate pair") from None
        found.append(text)
    return found


def _read(path: Path) -> str:
    """The text of a file, gunzipped where its name ends in .gz; line ends as they are."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file", f"give a text file, {WIKITEXT} or {BUILTIN}"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole gzip file: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
