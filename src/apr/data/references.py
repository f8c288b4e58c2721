"""The texts of benchmarks that training data must not hold: prompts, solutions, tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.data.rows import read_fields
from apr.eval.benchmarks.humaneval import packaged_data
from apr.eval.benchmarks.mbpp import SPLITS
from apr.hub.data_files import find_data_files
from apr.hub.data_registry import DATASETS

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
        raise UsageError(f"--reference {name}: {label} is no benchmark", _known())
    if file or not known:
        paths: tuple[Path, ...] = (Path(file or label),)
        if not paths[0].is_file():
            hint = "" if file else _known()
            raise UsageError(f"--reference {name}: no such {'file' if file else 'data'}", hint)
    elif label == "humaneval":
        paths = (packaged_data(),)
    else:
        paths = find_data_files(label)
    texts = [text for path in paths for text in _texts_of_file(path, label)]
    if not texts:
        raise UsageError(f"--reference {name} holds no text")
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
    if isinstance(row.get("messages"), list):
        contents = [turn.get("content") for turn in row["messages"] if isinstance(turn, dict)]
        found["messages"] = "\n".join(text for text in contents if isinstance(text, str))
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
