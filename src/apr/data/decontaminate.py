"""Training rows that repeat a benchmark: found, reported with the matched words, left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr.common.counted import counted
from apr.common.errors import UsageError
from apr.data.overlap import NgramIndex
from apr.data.references import ReferenceText, read_reference
from apr.data.rows import atomic_file, read_examples, row_writer

METHOD = (
    "words are runs of letters, digits and _ in lower case; a row is contaminated if at least"
    " `threshold` of the words of a reference text lie in runs of `ngram` words that the row has"
)


@dataclass(frozen=True)
class Finding:
    """A contaminated row and the text it repeats most. coverage: part of that text's words.

    spans: the repeated words, with their place in the row's text (prompt, newline, response).
    """

    where: str
    reference: str
    task: str
    part: str
    coverage: float
    spans: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Decontamination:
    """Counts of rows, and every finding. overlapping: rows that share any run of n words.

    references: name -> tasks, texts, how many texts are too short to be found, and how many tasks
    are in the data. tasks: name -> these tasks.
    """

    data: str
    ngram: int
    threshold: float
    rows: int
    overlapping: int
    references: dict[str, dict[str, int]]
    tasks: dict[str, list[str]]
    found: tuple[Finding, ...]

    @property
    def clean(self) -> int:
        return self.rows - len(self.found)

    def to_json(self) -> dict[str, Any]:
        return {"method": METHOD, **asdict(self), "contaminated": len(self.found)}


def decontaminate(
    data: Path,
    references: Sequence[str],
    *,
    ngram: int = 10,
    threshold: float = 0.5,
    output: Path | None = None,
) -> Decontamination:
    """Compare every row with the reference texts; write the others to `output`, if given.

    references: as `read_reference` takes them. threshold: least coverage that counts, 0 to 1; at
    0 one shared run of `ngram` words is enough. Raises UsageError, AprError.
    """
    if not references:
        raise UsageError("no --reference to compare with", "e.g. --reference humaneval,mbpp")
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g} is not from 0 to 1")
    if ngram < 1:
        raise UsageError(f"--ngram {ngram} is less than 1")
    texts = [text for name in dict.fromkeys(references) for text in read_reference(name)]
    index = NgramIndex([text.text for text in texts], ngram)
    rows = overlapping = 0
    findings: list[Finding] = []
    tasks: set[tuple[str, str]] = set()
    with row_writer(output) if output else nullcontext() as write:
        for example in counted(read_examples(data), "rows compared"):
            rows += 1
            overlaps = index.overlaps(example.text)
            overlapping += bool(overlaps)
            over = [one for one in overlaps if one.coverage >= threshold]
            if over:
                best = texts[over[0].text]
                spans = index.spans(example.text, over[0].text)
                findings.append(
                    _finding(example.where, example.text, best, over[0].coverage, spans)
                )
                tasks |= {(texts[one.text].reference, texts[one.text].task) for one in over}
            elif write is not None:
                write(example.fields)
    summary = _summary(texts, index, tasks)
    named = {name: sorted(task for of, task in tasks if of == name) for name in summary}
    return Decontamination(
        str(data), ngram, threshold, rows, overlapping, summary, named, tuple(findings)
    )


def write_report(result: Decontamination, path: Path) -> None:
    """All of it as one JSON object."""
    with atomic_file(path) as file:
        file.write(json.dumps(result.to_json(), indent=1).encode() + b"\n")


def _finding(
    where: str, row: str, text: ReferenceText, coverage: float, spans: list[tuple[int, int]]
) -> Finding:
    marked = tuple({"start": start, "end": end, "text": row[start:end]} for start, end in spans)
    return Finding(where, text.reference, text.task, text.part, round(coverage, 4), marked)


def _summary(
    texts: Sequence[ReferenceText], index: NgramIndex, tasks: set[tuple[str, str]]
) -> dict[str, dict[str, int]]:
    short = index.lengths < index.n
    known = Counter(name for name, _ in {(text.reference, text.task) for text in texts})
    found = Counter(name for name, _ in tasks)
    return {
        name: {
            "tasks": known[name],
            "texts": sum(text.reference == name for text in texts),
            "too_short": sum(
                bool(is_short)
                for text, is_short in zip(texts, short, strict=True)
                if text.reference == name
            ),
            "tasks_found": found[name],
        }
        for name in known
    }
