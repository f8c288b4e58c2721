"""Training rows that repeat a benchmark's prompts, solutions or tests: found, reported with the
matched words, left out.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.common.files import output_file
from apr.common.progress import counted
from apr.common.rows import read_fields, row_writer
from apr.data.overlap import NgramIndex
from apr.data.training_rows import CONVERSATIONS, column_names, read_examples, words_of
from apr.eval.benchmarks.humaneval import packaged_data
from apr.eval.benchmarks.mbpp import SPLITS
from apr.hub.data_files import find_data_files
from apr.hub.data_registry import DATASETS

METHOD = (
    "words are runs of letters, digits and _ in lower case, single characters in scripts without"
    " spaces; a row is contaminated if at least"
    " `threshold` of the words of a reference text lie in runs of `ngram` words that the row has"
)


@dataclass(frozen=True)
class Finding:
    """A contaminated row and the text it repeats most. coverage: part of that text's words.

    spans: the repeated words, with their place in the row's text (prompt, newline, response,
    newline, what its tools' schemas say).
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
    columns: Sequence[str] = (),
) -> Decontamination:
    """Compare every row with the reference texts; write the others to `output`, if given.

    references: as `read_reference` takes them. threshold: least coverage that counts, 0 to 1; at
    0 one shared run of `ngram` words is enough. columns: as `column_names` takes them. Raises
    UsageError, AprError.
    """
    if not references:
        raise UsageError("no `reference` to compare with", "e.g. `reference` humaneval,mbpp")
    if not 0 <= threshold <= 1:
        raise UsageError(f"`threshold` {threshold:g} is not from 0 to 1")
    if ngram < 1:
        raise UsageError(f"`ngram` {ngram} is less than 1")
    texts = [text for name in dict.fromkeys(references) for text in read_reference(name)]
    index = NgramIndex([text.text for text in texts], ngram)
    rows = overlapping = 0
    findings: list[Finding] = []
    tasks: set[tuple[str, str]] = set()
    with row_writer(output) if output else nullcontext() as write:
        for example in counted(read_examples(data, column_names(columns)), "rows compared"):
            rows += 1
            text = f"{example.text}\n{words_of(example.tools)}"
            overlaps = index.overlaps(text)
            overlapping += bool(overlaps)
            over = [one for one in overlaps if one.coverage >= threshold]
            if over:
                best = texts[over[0].text]
                spans = index.spans(text, over[0].text)
                findings.append(_finding(example.where, text, best, over[0].coverage, spans))
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
    with output_file(path) as file:
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


# The fields that hold text, in the benchmarks' own names and in those of training rows.
PROMPTS = (
    *("prompt", "text", "question_content", "complete_prompt", "instruct_prompt", "instruction"),
    *("content", "starter_code"),
)
SOLUTIONS = ("canonical_solution", "code", "solution", "response", "completion", "output")
TESTS = ("test", "test_list")


@dataclass(frozen=True)
class ReferenceText:
    """A part of a task: the field it stands in, "docstring" (its prose, of a prompt that is code)
    or "program" (prompt and solution, where one of them is short).
    """

    reference: str
    task: str
    part: str
    text: str


def read_reference(name: str) -> list[ReferenceText]:
    """The texts of a benchmark (`humaneval`), of one in a file of yours (`humaneval=FILE`), or of
    any file with rows of text. Of MBPP, the tasks of its test split.

    Raises UsageError.
    """
    label, _, file = name.partition("=")
    known = label.partition("@")[0] in {dataset.name for dataset in DATASETS}
    if file and not known:
        raise UsageError(f"`reference` {name}: {label} is no benchmark", _known())
    if file or not known:
        paths: tuple[Path, ...] = (Path(file or label),)
        if not paths[0].is_file():
            hint = "" if file else _known()
            raise UsageError(f"`reference` {name}: no such {'file' if file else 'data'}", hint)
    elif label == "humaneval":
        paths = (packaged_data(),)
    else:
        paths = find_data_files(label)
    texts = [text for path in paths for text in _texts_of_file(path, label)]
    if not texts:
        raise UsageError(f"`reference` {name} holds no text")
    return texts


def _known() -> str:
    names = dict.fromkeys(dataset.name for dataset in DATASETS)
    return f"a file of rows, or one of {', '.join(names)}"


def _texts_of_file(path: Path, label: str) -> Iterator[ReferenceText]:
    for number, (where, row) in enumerate(read_fields(path), 1):
        task = row.get("task_id", row.get("question_id", number))
        if label in ("mbpp", "mbpp-sanitized") and not _in_test_split(task):
            continue
        parts = dict(_parts(row))
        if not parts:
            raise UsageError(
                f"{where} has none of the fields {', '.join((*PROMPTS, *SOLUTIONS, *TESTS))}"
            )
        for part, text in parts.items():
            yield ReferenceText(label, str(task), part, text)


def _in_test_split(task: object) -> bool:
    first, last = SPLITS["test"]
    return isinstance(task, int) and first <= task <= last


def _parts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = {}
    for name in (*PROMPTS, *SOLUTIONS, *TESTS):
        value = row.get(name)
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        if isinstance(value, str) and value.strip():
            found[name] = value
    for name in CONVERSATIONS:
        if name in row:
            found[name] = words_of(row[name])
    yield from found.items()
    prompt = next((found[name] for name in PROMPTS if name in found), "")
    solution = next((found[name] for name in SOLUTIONS if name in found), "")
    prose = docstring_prose(prompt)
    if prose:
        yield "docstring", prose
    if prompt and solution:
        yield "program", f"{prompt}\n{solution}"


def docstring_prose(prompt: str) -> str:
    """What the docstring of a prompt says (of its last function, or of the module: MBPP+), without
    examples; "" if the prompt is not code.

    Training data often asks in these words alone, without signature and examples.
    """
    for code in (f"{prompt}\n    pass\n", prompt):
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        docstring = ast.get_docstring(functions[-1] if functions else tree) or ""
        return re.split(r">>>|^assert ", docstring, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return ""
