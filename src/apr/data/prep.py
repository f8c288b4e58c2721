"""Instruction and response pairs from Python sources: docstring and signature in, code out."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr.calibrate.texts import SourceFile
from apr.common.errors import AprError, UsageError
from apr.common.progress import counted
from apr.common.rows import row_writer
from apr.data.definitions import Definition, Rejected, definitions
from apr.data.prep_settings import TEXT, PrepSettings

WORDINGS = (
    "Write a Python {what} that begins with\n\n```python\n{header}\n```\n\n{docstring}",
    "Implement `{name}` in Python.\n\n{docstring}\n\nIt begins with `{header}`.",
    "{docstring}\n\nWrite this as a Python {what}: `{header}`",
)


@dataclass
class PrepCounts:
    """files: read. definitions: functions and classes at their top level. dropped: reason ->
    definitions (or files, for reasons that name files).
    """

    files: int = 0
    definitions: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "definitions": self.definitions,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
        }


def write_pairs(files: Iterable[SourceFile], path: Path, settings: PrepSettings) -> PrepCounts:
    """The pairs as JSON lines. Raises UsageError, AprError."""
    with row_writer(path) as write:
        pairs, counts = make_pairs(counted(files, "files read"), settings)
        if not counts.files:
            raise UsageError("no Python source", "name files or folders, `stdlib` or `installed`")
        if not pairs:
            raise AprError(*_nothing_kept(counts))
        for pair in pairs:
            write(pair)
    return counts


def _nothing_kept(counts: PrepCounts) -> tuple[str, str]:
    reasons = ", ".join(f"{reason} ({number})" for reason, number in counts.dropped.most_common(3))
    found = f"{counts.definitions} functions and classes in {counts.files} files"
    return (
        f"no pair is left of {found}" + (f": {reasons}" if reasons else ""),
        "name more sources, or change `min_length`, `max_length` or `methods`",
    )


def make_pairs(
    files: Iterable[SourceFile], settings: PrepSettings
) -> tuple[list[dict[str, str]], PrepCounts]:
    """Rows {instruction, response, source[, licence]}, of kind text {text, source[, licence]}, in
    the order of the files.

    A response is a whole function or class as it stands in its source, below what it needs
    of its module.
    """
    counts = PrepCounts()
    pairs: list[dict[str, str]] = []
    codes: set[bytes] = set()
    questions: set[bytes] = set()
    whole_class = ""
    for file, found in _candidates(files, settings, counts):
        reason = _misfit(found, settings)
        code, question = _digest(found.key), _digest(found.header + found.docstring)
        if not reason and code in codes:
            reason = "same code"
        if not reason and question in questions:
            reason = "same question"
        if found.what == "method" and found.name.rpartition(".")[0] == whole_class:
            reason = "method of a class that is there"
        if reason:
            counts.dropped[reason] += 1
            continue
        if found.what == "class":
            whole_class = found.name
        codes.add(code)
        questions.add(question)
        pairs.append(_pair(file, found, settings))
    if settings.limit is not None and len(pairs) > settings.limit:
        chosen = random.Random(settings.seed).sample(range(len(pairs)), settings.limit)
        counts.dropped["over the limit"] = len(pairs) - settings.limit
        pairs = [pairs[i] for i in sorted(chosen)]
    counts.kept = len(pairs)
    return pairs, counts


def _candidates(
    files: Iterable[SourceFile], settings: PrepSettings, counts: PrepCounts
) -> Iterator[tuple[SourceFile, Definition]]:
    for file in files:
        counts.files += 1
        if file.text is None or file.is_test:
            reason = "file of tests" if file.is_test else "file cannot be decoded"
            counts.dropped[reason] += 1
            continue
        try:
            found = list(definitions(file.text, settings.methods))
        except SyntaxError:
            counts.dropped["file does not parse"] += 1
            continue
        counts.definitions += len(found)
        for one in found:
            if isinstance(one, Rejected):
                counts.dropped[one.reason] += 1
            else:
                yield file, one


def _misfit(found: Definition, settings: PrepSettings) -> str:
    length = len(found.program)
    if length < settings.min_length:
        return f"shorter than {settings.min_length} characters"
    return f"longer than {settings.max_length} characters" if length > settings.max_length else ""


def _pair(file: SourceFile, found: Definition, settings: PrepSettings) -> dict[str, str]:
    draw = random.Random(f"{settings.seed} {found.key}")
    kind = draw.choice(settings.kind)
    code, wording = found.program + "\n", draw.choice(WORDINGS)
    if kind == TEXT:
        pair = {"text": code}
    else:
        pair = {"instruction": instruction(found, kind, wording), "response": code}
    pair["source"] = f"{file.name}:{found.name}"
    return pair | ({"licence": file.licence} if file.licence else {})


def instruction(found: Definition, kind: str, wording: str = WORDINGS[0]) -> str:
    """What is asked. kind: one of `KINDS`. wording: for docstring-to-code, one of `WORDINGS`."""
    what = found.what
    first, last = found.docstring_lines
    lines = found.code.split("\n")
    above = f"{found.context}\n\n\n" if found.context else ""
    before = (
        f"A class begins like this.\n\n```python\n{found.owner}\n```\n\n" if found.owner else ""
    )
    if kind == "complete":
        code = "\n".join(lines[: last + 1])
        return f"{before}Complete this Python {what}.\n\n```python\n{above}{code}\n```"
    if kind == "document":
        code = "\n".join(lines[:first] + lines[last + 1 :])
        return f"{before}Write a docstring for this Python {what}.\n\n```python\n{above}{code}\n```"
    return before + wording.format(
        what=what, name=found.name, header=found.header, docstring=found.docstring
    )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
