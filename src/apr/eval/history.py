"""Runs on this disk: which there are, and what is in one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.errors import AprError, UsageError

RESULTS = "results.json"


@dataclass(frozen=True)
class Run:
    """A finished run. path: its folder, or the result file it was read from. results: what `apr
    eval --json` prints. finished: date and time, as in its manifest; empty where unknown.
    """

    path: Path
    results: dict[str, Any]
    finished: str = ""

    @property
    def benchmark(self) -> str:
        return str(self.results["benchmark"])

    @property
    def subject(self) -> str:
        return str(self.results["subject"])

    def passes(self) -> dict[str, list[bool]]:
        """Task -> whether each of its samples passed."""
        return {
            task: [sample["verdict"] == "passed" for sample in samples]
            for task, samples in self.results["per_task"].items()
        }


@dataclass(frozen=True)
class Failure:
    """One sample that did not pass. program, text: "" where only its verdict is known."""

    task_id: str
    sample: int
    verdict: str
    detail: str
    completion: str
    text: str


def read_run(path: Path) -> Run:
    """A run's folder, or a file with a result. Raises UsageError naming what is wrong."""
    file = path / RESULTS if path.is_dir() else path
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
    return Run(path, results, _finished(file.parent / "manifest.json"))


def find_runs(folders: Iterable[Path], benchmark: str = "", model: str = "") -> list[Run]:
    """Finished runs in these folders and right below them, the newest last.

    benchmark, model: parts of names to be found. Folders with anything else are passed over.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder", "apr eval writes its runs to runs/")
        for file in sorted({*folder.glob(RESULTS), *folder.glob(f"*/{RESULTS}")}):
            run = read_run(file.parent)
            if benchmark in run.benchmark and model in run.subject:
                found.append(run)
    return sorted(found, key=lambda run: (run.finished, str(run.path)))


def failures(run: Run, task: str = "") -> list[Failure]:
    """Samples that did not pass, with what was written where the run's database is there.

    task: only this one, whether it passed or not. Raises UsageError if the run has no such task.
    """
    if task and task not in run.results["per_task"]:
        raise UsageError(f"{run.path} has no task {task}", "apr results RUN lists them")
    written = _written(run.path / "run.sqlite")
    found = []
    for name, samples in run.results["per_task"].items():
        for s in samples:
            if name == task if task else s["verdict"] != "passed":
                texts = written.get((name, s["sample"]), ("", ""))
                found.append(Failure(name, s["sample"], s["verdict"], s["detail"], *texts))
    return found


def _written(database: Path) -> dict[tuple[str, int], tuple[str, str]]:
    if not database.is_file():
        return {}
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
            rows = db.execute("SELECT task_id, sample, completion, text FROM generation").fetchall()
    except sqlite3.DatabaseError as error:
        raise AprError(f"{database} cannot be read: {error}") from None
    return {(task, sample): (completion, text) for task, sample, completion, text in rows}


def _finished(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
