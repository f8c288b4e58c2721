"""Texts to measure a model on: a file, WikiText-2 as papers join it, the Python sample in apr."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from apr.common.errors import UsageError
from apr.common.rows import read_rows
from apr.hub.data_files import find_data

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
