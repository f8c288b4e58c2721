"""Rows in and out: JSON lines, JSON, CSV and Parquet, but for the last perhaps gzipped. Errors name
file and line.

Reading streams, except from .json, which is one array.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from apr.common.errors import AprError, UsageError
from apr.common.files import output_file


def read_rows(
    path: Path, on_bad: Callable[[UsageError], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank. Raises UsageError.

    A file named .json or .json.gz is one array of objects, and these are numbered. on_bad: told
    of a line that is no object, instead of an error.
    """
    if path.name.removesuffix(".gz").endswith(".json"):
        yield from enumerate(_array(path), 1)
        return
    for number, _, row in read_located_rows(path, on_bad):
        yield number, row


def read_located_rows(
    path: Path, on_bad: Callable[[UsageError], None] | None = None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, its place for `read_row_at`, object) of each line that is not blank."""
    at = 0
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            text = line.decode("utf-8-sig")
            if text.strip():
                try:
                    row = json_object(f"{path} line {number}", text)
                except UsageError as error:
                    if on_bad is None:
                        raise
                    on_bad(error)
                else:
                    yield number, at, row
            at += len(line)


def read_fields(
    path: Path, on_bad: Callable[[UsageError], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("PATH line N", object) of each row (.jsonl, .json, .csv, each also .gz; .parquet).

    on_bad: told of a line that is no JSON object, instead of an error. Raises UsageError.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a .jsonl, .json, .csv or .parquet file")
    if path.suffix == ".parquet":
        for number, fields in enumerate(read_parquet(path), 1):
            yield f"{path} row {number}", fields
        return
    if path.name.removesuffix(".gz").endswith(".csv"):
        yield from _csv_rows(path)
        return
    unit = "row" if path.name.removesuffix(".gz").endswith(".json") else "line"
    for number, fields in read_rows(path, on_bad):
        yield f"{path} {unit} {number}", fields


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises UsageError, and AprError where pyarrow is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AprError(f"{path} is a parquet file", "pip install pyarrow reads it") from None
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from map(_without_fillers, batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a parquet file that can be read: {error}") from None


def _without_fillers(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the nulls inside its values: Parquet gives every object the keys of all."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items() if inner is not None}
        return [clean(inner) for inner in value] if isinstance(value, list) else value

    return {key: clean(value) for key, value in row.items()}


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of text under the names of the first line; commas, semicolons or tabs between them,
    whichever that line has most of. Raises UsageError.
    """
    csv.field_size_limit(2**31 - 1)
    with _opened(path) as file:
        lines = io.TextIOWrapper(file, "utf-8-sig", newline="")
        header = lines.readline()
        delimiter = max(",;\t", key=header.count)
        names = next(csv.reader([header], delimiter=delimiter), [])
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        number = 0
        try:
            for number, values in enumerate(reader, 1):
                if len(values) == len(names):
                    yield f"{path} row {number}", dict(zip(names, values, strict=True))
                elif values:
                    raise UsageError(
                        f"{path} row {number} has {len(values)} values, the first line"
                        f" {len(names)} names"
                    )
        except csv.Error as error:
            raise UsageError(f"{path} row {number + 1} is not CSV: {error}") from None


def read_task_rows(
    path: Path, fields: Sequence[str], key: str = "task_id"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("PATH line N", row) of a benchmark's tasks.

    fields: those that must be texts; an `entry_point` among them is the name of a function. key:
    the field that tells tasks apart. Raises UsageError, also for a file without a task.
    """
    seen: set[str] = set()
    for line, row in read_rows(path):
        where = f"{path} line {line}"
        for field in fields:
            if not isinstance(row.get(field), str):
                raise UsageError(f"{where} has no text in field {field!r}")
        if "entry_point" in fields and not row["entry_point"].isidentifier():
            raise UsageError(
                f"{where}: entry_point {row['entry_point']!r} is not a function's name"
            )
        if row[key] in seen:
            raise UsageError(f"{where}: {key} {row[key]!r} occurs twice")
        seen.add(row[key])
        yield where, row
    if not seen:
        raise UsageError(f"{path} has no tasks")


def read_row_at(path: Path, at: int) -> dict[str, Any]:
    """One row again (from a packed file only as fast as it unpacks)."""
    with _opened(path) as lines:
        lines.seek(at)
        return json_object(str(path), lines.readline().decode("utf-8-sig"))


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object of a file, which may be packed. Raises UsageError."""
    found = _json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not a JSON object")
    return found


def is_object(path: Path) -> bool:
    """Whether a file begins as a JSON object does. Raises UsageError."""
    with _opened(path) as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"


def is_unicode(text: str) -> bool:
    """JSON can hold half of a character, which no program file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_object(where: str, line: str) -> dict[str, Any]:
    """The object that a line holds. where: file and line, for the UsageError."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error.msg}") from None
    except RecursionError:
        raise UsageError(f"{where} is not JSON of a reasonable depth") from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise UsageError(f"{where} has a number too long to read") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not a JSON object")
    return row


@contextmanager
def row_writer(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes one row as a JSON line (.jsonl or .jsonl.gz).

    The file appears at the end, whole; after an error there is none, or the one from before.
    The same rows give the same bytes. Raises UsageError for another kind of file.
    """
    if path.name.removesuffix(".gz").rpartition(".")[2] != "jsonl":
        raise UsageError(f"-o {path}: rows are written as JSON lines", "end it .jsonl or .jsonl.gz")
    with output_file(path) as file:
        if path.suffix != ".gz":
            yield lambda row: put_row(file, row)
            return
        with gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
            yield lambda row: put_row(cast(IO[bytes], packed), row)


def put_row(file: IO[bytes], row: Mapping[str, Any]) -> None:
    """Write one line, escaped to ASCII: a row may hold half a surrogate pair, which UTF-8 cannot.
    Parquet's own types (dates, decimals) become text.
    """
    file.write(json.dumps(row, default=str).encode() + b"\n")


def _array(path: Path) -> list[dict[str, Any]]:
    rows = _json(path)
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise UsageError(f"{path} is not an array of JSON objects")
    return rows


def _json(path: Path) -> Any:
    with _opened(path) as file:
        text = file.read().decode("utf-8-sig")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked; what goes wrong with them inside is a UsageError."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole gzip file: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
