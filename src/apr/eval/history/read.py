"""Runs on this disk: which there are, and what is in one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.common.errors import AprError, UsageError
from apr.eval.run.result import natural
from apr.eval.run.store import from_store

RESULTS, DATABASE, MANIFEST = "results.json", "run.sqlite", "manifest.json"


@dataclass(frozen=True)
class JudgedSample:
    """A verdict. suspect: reasons to look at it (suspect.py)."""

    task_id: str
    sample: int
    verdict: str
    detail: str
    suspect: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


@dataclass(frozen=True)
class Written:
    """What a model wrote for a sample. text: all of it; completion: the code taken from it."""

    completion: str
    text: str


@dataclass(frozen=True)
class Run:
    """A run. path: its folder, or the result file it was read from. results: what `apr eval --json`
    prints; of one that is not finished, as much of that as is known. finished: date and time, as
    in its manifest; empty where unknown. settings: the manifest's.
    """

    path: Path
    results: Mapping[str, Any]
    finished: str = ""
    settings: Mapping[str, Any] | None = None
    complete: bool = True

    @property
    def benchmark(self) -> str:
        return str(self.results["benchmark"])

    @property
    def subject(self) -> str:
        return str(self.results["subject"])

    @property
    def speed(self) -> float | None:
        """Tokens a second."""
        return self.results.get("generation", {}).get("tokens_per_second")

    def samples(self) -> list[JudgedSample]:
        return [
            JudgedSample(task, s["sample"], s["verdict"], s["detail"], tuple(s.get("suspect", ())))
            for task, samples in self.results["per_task"].items()
            for s in samples
        ]

    def passes(self) -> dict[str, list[bool]]:
        """Task -> whether each of its samples passed, of those that could be judged."""
        found: dict[str, list[bool]] = {}
        for sample in self.samples():
            if sample.verdict == "sandbox-error":
                continue
            found.setdefault(sample.task_id, []).append(sample.passed)
        return found

    def written(self) -> dict[tuple[str, int], Written]:
        """(Task id, sample) -> what was written; nothing where the run's database is not here."""
        database = self.path / DATABASE
        if not database.is_file():
            return {}
        rows = _select(database, "SELECT task_id, sample, completion, text FROM generation")
        return {(task, sample): Written(*written) for task, sample, *written in rows}


def read_run(path: Path) -> Run:
    """A run's folder, or a file with a result. Raises UsageError naming what is wrong."""
    file = path / RESULTS if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / DATABASE).is_file():
        return _unfinished(path)
    if not file.is_file():
        what = f"{path} holds no {RESULTS}" if path.is_dir() else f"{path}: no such file or folder"
        raise UsageError(what, "name a folder that apr eval wrote, or its results.json")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        missing = {"benchmark", "subject", "per_task"} - set(results)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{file} is no result of apr eval or apr score: {error}") from None
    if missing:
        raise UsageError(f"{file} is no result of apr eval or apr score: no {sorted(missing)[0]!r}")
    manifest = _manifest(file.parent / MANIFEST) if file.name == RESULTS else {}
    run = Run(path, results, str(manifest.get("finished", "")), manifest.get("settings"))
    try:
        run.samples()
    except (AttributeError, KeyError, TypeError):
        raise UsageError(f"{file} field 'per_task' does not hold verdicts by task") from None
    return run


def is_run(path: Path) -> bool:
    return path.is_file() or (path / RESULTS).is_file() or (path / DATABASE).is_file()


def find_runs(folders: Iterable[Path], benchmark: str = "", model: str = "") -> list[Run]:
    """Runs in these folders and below them, the newest last and those that are not finished first.

    benchmark, model: parts of names to be found. Folders with anything else are passed over.
    """
    places: set[Path] = set()
    for folder in folders:
        if not folder.exists():
            raise UsageError(f"{folder}: no such folder", "apr eval writes its runs to runs/")
        if is_run(folder):
            places.add(folder)
        else:
            places |= {file.parent for name in (RESULTS, DATABASE) for file in folder.rglob(name)}
    found = [read_run(place) for place in sorted(places)]
    chosen = [r for r in found if benchmark in r.benchmark and model in r.subject]
    return in_order(chosen, "finished")


ORDERS: dict[str, Callable[[Run], Any]] = {
    "finished": lambda run: run.finished,
    "score": lambda run: run.results.get("pass@1", -1.0),
    "speed": lambda run: run.speed or 0.0,
    "benchmark": lambda run: run.benchmark,
    "model": lambda run: run.subject,
}


def in_order(runs: Iterable[Run], by: str) -> list[Run]:
    """by: one of ORDERS; the largest last, and the same by their folders."""
    return sorted(runs, key=lambda run: (ORDERS[by](run), str(run.path)))


def summary(run: Run) -> dict[str, Any]:
    """All of a run but its single verdicts."""
    return {
        "folder": str(run.path),
        "finished": run.finished,
        "complete": run.complete,
        **{k: v for k, v in run.results.items() if k != "per_task"},
    }


def select(
    run: Run, task: str = "", failed: bool = False, suspect: bool = False
) -> list[JudgedSample]:
    """Its samples in the order of the tasks: of one task, that failed, that have a reason to be
    looked at. Raises UsageError if the run has no such task.
    """
    if task and task not in run.results["per_task"]:
        raise UsageError(f"{run.path} has no task {task}", f"apr results {run.path} lists them")
    return [
        s
        for s in sorted(run.samples(), key=lambda s: (natural(s.task_id), s.sample))
        if (not task or s.task_id == task)
        and (not failed or not s.passed)
        and (not suspect or s.suspect)
    ]


def whole_programs(run: Run) -> Callable[[str, str], str | None]:
    """(Task id, completion) -> the program that was judged; None where the benchmark's data, in the
    version of the run, is not at hand.
    """
    from apr.eval.benchmarks import load_benchmark

    known = run.settings or {}
    data = Path(known["data"]) if known.get("data") else None
    try:
        name = str(known.get("benchmark", run.benchmark))  # with the version of its data
        if name.endswith(".py"):  # not to be run because a folder of results names it
            return lambda task_id, completion: None
        benchmark = load_benchmark(name, data, split=known.get("split"))
    except AprError:
        return lambda task_id, completion: None
    tasks = benchmark.tasks
    if not benchmark.data_sha256.startswith(run.results.get("settings", {}).get("data", "?")):
        tasks = {}

    def program(task_id: str, completion: str) -> str | None:
        task = tasks.get(task_id)
        return None if task is None else benchmark.program(task, {"completion": completion})

    return program


def _unfinished(folder: Path) -> Run:
    """What the database of a run holds that was stopped, or still goes on."""
    database = folder / DATABASE
    identity = {k: json.loads(v) for k, v in _select(database, "SELECT name, value FROM setting")}
    rows = _select(database, "SELECT task_id, sample, verdict, detail, level FROM verdict")
    per_task: dict[str, list[dict[str, Any]]] = {}
    for task, sample, verdict, detail, _ in sorted(rows):
        per_task.setdefault(task, []).append(
            {"sample": sample, "verdict": verdict, "detail": detail}
        )
    results = {
        "benchmark": str(identity.get("benchmark", "?")).rpartition("-")[0],  # less its version
        "subject": folder.name,
        "settings": identity,
        "tasks": len(per_task),
        "samples": len(rows),
        "isolation": sorted({row[-1] for row in rows}),
        "per_task": per_task,
    }
    return Run(folder, results, complete=False)


def _select(database: Path, query: str) -> Sequence[tuple[Any, ...]]:
    try:
        uri = f"{database.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as db:
            return [tuple(from_store(row)) for row in db.execute(query)]
    except sqlite3.Error as error:
        raise AprError(f"{database} cannot be read: {error}") from None


def _manifest(path: Path) -> dict[str, Any]:
    """Nothing where it is missing or damaged: it only adds to what is shown."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
