"""Samples made elsewhere, in the forms they come in: rows of a file, EvalPlus' folders and results.

A folder has one folder a task, named after it with _ for /, and in it programs 0.py, 1.py, …
(evalplus/data/utils.py). EvalPlus' results (`…eval_results.json`) hold the programs they are of.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.common.record import sha256_of
from apr.common.rows import is_object, is_unicode, read_object, read_rows
from apr.eval.benchmarks.task import Benchmark, PromptStyle
from apr.eval.code.thoughts import without_thoughts
from apr.eval.generators import Source, Submission, Submissions
from apr.eval.generators.chat_rows import MESSAGES, TEXTS, chat_rows
from apr.eval.run.eval_settings import Form
from apr.eval.run.recorded import recorded_of
from apr.hub.data_registry import DATASETS

RESULTS = "eval_results.json"
ANSWER = "answer without thoughts"  # what a chat row's completion was taken from


class SampleFile(Source):
    """Samples from a file or folder as a `Source`. Rows of the same task are its samples, numbered
    from 0; all of them are there already.
    """

    chat_hint = "score them as chat answers with --from chat"

    def __init__(
        self,
        path: Path,
        benchmark: Benchmark,
        allow_partial: bool = False,
        form: Form = "samples",
    ) -> None:
        """form: "chat" for rows of raw chat answers. Raises UsageError naming file, line and field,
        and unless allow_partial for tasks that have no sample.
        """
        self._benchmark, self._rows = benchmark, read_samples(path, benchmark, form)
        self._thoughts: int | None = None
        if form == "chat":
            said = [without_thoughts(row["text"]) for row in self._rows]
            self._thoughts = sum(one.unfinished for one in said)
            self._rows = [
                _extracted(benchmark, row, one.text)
                for row, one in zip(self._rows, said, strict=True)
            ]
            self.chat_hint = ""
        counts = Counter(row["task_id"] for row in self._rows)
        self._other_data = other_data(path, benchmark)
        missing = [task for task in benchmark.tasks if task not in counts]
        if missing and not allow_partial:
            raise UsageError(
                f"{path} has no sample of {len(missing)} of {len(benchmark.tasks)} tasks,"
                f" first {missing[0]}",
                _version_that_fits(benchmark, counts) or "--allow-partial scores the others alone",
            )
        self.name = path.name
        self.identity = {
            "benchmark": benchmark.version,
            "data": benchmark.data_sha256[:16],
            "samples": samples_sha256(path)[:16],
            **({"from": form} if form != "samples" else {}),
        }
        self.tasks = [benchmark.tasks[name] for name in counts]
        self.most = max(counts.values())  # samples of a task
        self.total, self.ready = len(self._rows), None

    def samples(self, made: Callable[[int], None]) -> Submissions:
        counts: Counter[str] = Counter()
        for row in self._rows:
            name, completion = row["task_id"], row.get("completion")
            program = self._benchmark.program(self._benchmark.tasks[name], row)
            text = completion if isinstance(completion, str) else None
            yield Submission(
                *(name, counts[name], program, text),
                answer=row.get(ANSWER, text),
                finish_reason=str(row.get("finish_reason") or ""),
            )
            counts[name] += 1

    def notes(self) -> Sequence[str]:
        return [self._other_data] if self._other_data else []

    def recorded(self) -> dict[tuple[str, int], dict[str, bool]]:
        counts: Counter[str] = Counter()
        found = {}
        for row in self._rows:
            name = row["task_id"]
            found[name, counts[name]] = recorded_of(row)
            counts[name] += 1
        return found

    def generation(self, counted: Sequence[Submission]) -> Mapping[str, Any]:
        completions = [(s.task_id, s.completion) for s in counted if s.completion is not None]
        cut = {} if self._thoughts is None else {"cut_while_thinking": self._thoughts}
        return {**cut, **self._benchmark.measure(completions)}


def read_samples(
    path: Path, benchmark: Benchmark, form: Form = "samples"
) -> list[Mapping[str, Any]]:
    """Rows with the `task_id` of a task and a text in `completion` or `solution`, or of a chat
    answer in `text`; at least one.

    Raises UsageError naming file, line and field.
    """
    rows = []
    found = list(_found(path, benchmark, form))
    for where, row in found:
        task_id = row.get("task_id")
        if not isinstance(task_id, str):
            raise UsageError(f"{where} has no text in field 'task_id'")
        if task_id not in benchmark.tasks:
            named = {str(row.get("task_id")) for _, row in found}
            raise UsageError(
                f"{where}: task_id {task_id!r} is not in {benchmark.name}",
                _version_that_fits(benchmark, named),
            )
        fields = ("completion", "solution") if form == "samples" else ("text",)
        present = [name for name in fields if isinstance(row.get(name), str)]
        if not present:
            raise UsageError(
                f"{where} has neither a 'completion' nor a 'solution' text", _chat_hint(row)
            )
        for name in present:
            if not is_unicode(row[name]):
                raise UsageError(
                    f"{where} field {name!r} is not text: a surrogate without its pair"
                )
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} has no samples")
    return rows


def samples_sha256(path: Path) -> str:
    """Of a file's bytes; of a folder's programs and their names."""
    if not path.is_dir():
        return sha256_of(path)
    digest = hashlib.sha256()
    for program in sorted(path.glob("*/*.py")):
        text = program.read_bytes()
        digest.update(f"{program.relative_to(path)} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def _extracted(benchmark: Benchmark, row: Mapping[str, Any], answer: str) -> Mapping[str, Any]:
    """A row of a chat answer as one of a completion, as `apr eval` takes it from the answer."""
    task = benchmark.tasks[row["task_id"]]
    completion = benchmark.completion(task, answer, PromptStyle("chat", prefill=False))
    return {**row, "completion": completion, ANSWER: answer}


def _chat_hint(row: Mapping[str, Any]) -> str:
    """What to do about a row of a chat answer."""
    return "--from chat reads raw chat answers" if set(row).intersection(TEXTS + MESSAGES) else ""


def _found(path: Path, benchmark: Benchmark, form: Form) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows, not looked at yet, and where they are."""
    if form == "chat":
        if "chat" not in benchmark.modes:
            raise UsageError(f"`form` chat: {benchmark.name} is not asked in chat")
        if path.is_dir():
            raise UsageError(f"`form` chat: {path} is a folder", "chat answers are rows of a file")
        for number, raw in read_rows(path):
            where = f"{path} line {number}"
            for answer in chat_rows(raw, where):
                yield from ((where, sample) for sample in benchmark.read_row(answer, where))
    elif path.is_dir():
        yield from _folder(path, benchmark)
    elif path.name.removesuffix(".gz").endswith(RESULTS):
        yield from _results(path)
    else:
        for number, row in _rows(path, benchmark.one_object):
            where = f"{path} line {number}"
            for sample in benchmark.read_row(row, where):
                yield where, sample


def _rows(path: Path, one_object: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers. one_object: a .json file may be one object, which is the row."""
    if one_object and path.name.removesuffix(".gz").endswith(".json") and is_object(path):
        yield 1, read_object(path)
    else:
        yield from read_rows(path)


def _folder(path: Path, benchmark: Benchmark) -> Iterator[tuple[str, Mapping[str, Any]]]:
    names = {task_id.replace("/", "_"): task_id for task_id in benchmark.tasks}
    example = next(iter(names))
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] not in "._"):
        if folder.name not in names:
            raise UsageError(
                f"{folder} is named after no task of {benchmark.name}", f"as {example}/0.py"
            )
        programs = [p for p in folder.iterdir() if p.suffix == ".py" and p.is_file()]
        for program in sorted(programs, key=_number):
            try:
                text = program.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise UsageError(f"{program} is not UTF-8 text") from None
            except OSError as error:
                raise UsageError(f"{program} cannot be read: {error.strerror}") from None
            yield str(program), {"task_id": names[folder.name], "solution": text}


def _number(program: Path) -> tuple[bool, int, str]:
    """Numbers in their order, then names."""
    numbered = program.stem.isdecimal()
    return not numbered, int(program.stem) if numbered else 0, program.name


def _results(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    tasks = read_object(path).get("eval")
    if not isinstance(tasks, dict):
        raise UsageError(f"{path} has no object in field 'eval'", "EvalPlus' results have one")
    for task_id, found in tasks.items():
        samples = found if isinstance(found, list) else [None]
        for number, sample in enumerate(samples):
            where = f"{path} task {task_id} sample {number}"
            if not isinstance(sample, dict):
                raise UsageError(f"{where} is no object")
            known = {name: sample.get(name) for name in ("base_status", "plus_status", "status")}
            yield where, {"task_id": task_id, "solution": sample.get("solution"), **known}


def other_data(path: Path, benchmark: Benchmark) -> str:
    """A note if EvalPlus' results say that they are of another version of the benchmark's data."""
    if path.is_dir() or not path.name.removesuffix(".gz").endswith(RESULTS):
        return ""
    digest = read_object(path).get("hash")
    versions = [d for d in DATASETS if d.evalplus_hash and d.evalplus_hash == digest]
    files = [file for dataset in versions for file in dataset.files]
    here = {name for file in files for name in (file.sha256, file.unpacked_sha256)}
    if not versions or benchmark.data_sha256 in here:
        return ""
    label = versions[0].label
    return f"the file was scored with {label}, this is other data: --benchmark {label} is the same"


def _version_that_fits(benchmark: Benchmark, tasks: Collection[str]) -> str:
    """What other version of the data has as many tasks as the samples, as a hint; "" if none."""
    name = benchmark.name.partition("@")[0]
    fits = [d for d in DATASETS if d.name == name and d.rows == len(tasks) != len(benchmark.tasks)]
    if not fits:
        return ""
    label = fits[0].label
    return f"{label} has {len(tasks)} tasks, as the samples: --benchmark {label}"
