"""Generations and verdicts of one run, in SQLite as they come: a killed run loses what was in
flight and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from apr.common.errors import AprError, UsageError
from apr.common.rows import is_unicode
from apr.sandbox import LEVELS, Level, Outcome

SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS generation (
  task_id TEXT, sample INTEGER, completion TEXT NOT NULL, text TEXT NOT NULL,
  finish_reason TEXT NOT NULL, prompt_tokens INTEGER, tokens INTEGER, seconds REAL,
  mean_logprob REAL,
  PRIMARY KEY (task_id, sample)
);
CREATE TABLE IF NOT EXISTS verdict (
  task_id TEXT, sample INTEGER, verdict TEXT NOT NULL, detail TEXT NOT NULL,
  cpu_seconds REAL, wall_seconds REAL, level TEXT, judge TEXT, retried INTEGER,
  part TEXT NOT NULL DEFAULT '', close INTEGER, spent_seconds REAL,
  PRIMARY KEY (task_id, sample)
);
CREATE TABLE IF NOT EXISTS behaviour (
  task_id TEXT, sample INTEGER, calls TEXT NOT NULL, answers TEXT NOT NULL, shown INTEGER,
  PRIMARY KEY (task_id, sample)
);
"""
# What runs of the first version lack.
_LATER = (
    ("verdict", "part", "TEXT NOT NULL DEFAULT ''"),
    ("generation", "mean_logprob", "REAL"),
    ("verdict", "close", "INTEGER"),
    ("verdict", "spent_seconds", "REAL"),
)


@dataclass(frozen=True)
class Generation:
    """One sample. text: what the model wrote; completion: the official form of it."""

    task_id: str
    sample: int
    completion: str
    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    seconds: float
    mean_logprob: float | None = None  # see Answer


@dataclass(frozen=True)
class StoredVerdict:
    task_id: str
    sample: int
    verdict: str
    detail: str
    cpu_seconds: float
    wall_seconds: float
    level: str
    judge: str
    retried: bool
    part: str = ""  # of the tests, in which it failed (Job.parts)
    close: bool = False  # to its time limit, see Outcome
    spent_seconds: float | None = None  # cpu_seconds of all runs; None in runs of earlier versions

    def passed(self, part: str = "") -> bool:
        """With all tests, or with those up to the end of a part that is not the last."""
        return self.verdict == "passed" or (part != "" and self.part not in ("", part))

    @property
    def unknown(self) -> bool:
        """Whether the sandbox failed, not the program."""
        return self.verdict == "sandbox-error"

    @property
    def place(self) -> tuple[str, int]:
        return self.task_id, self.sample

    @classmethod
    def of(cls, outcome: Outcome) -> StoredVerdict:
        """outcome: of a job whose id is TASK#SAMPLE."""
        task_id, _, sample = outcome.job_id.rpartition("#")
        names = (f.name for f in fields(cls) if f.name not in ("task_id", "sample"))
        return cls(task_id, int(sample), **{name: getattr(outcome, name) for name in names})


class Store:
    """The database of one run directory. Every `add_` call is on disk when it returns."""

    def __init__(
        self, path: Path | None, settings: dict[str, Any] | None = None, fresh: bool = False
    ) -> None:
        """Open or create; in memory where there is no path. Raises UsageError if the file belongs
        to a run with other settings, AprError if it is damaged, cannot be written or is in use by
        another process.
        """
        self.path, self._lock = path, None
        if path is None:
            self._db = sqlite3.connect(":memory:", isolation_level=None)
            self._db.executescript(SCHEMA)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The kernel drops the lock with its holder, however that one ends.
            self._lock = FileLock(path.with_suffix(".lock"))
            self._lock.acquire(timeout=0)
        except Timeout:
            raise AprError(
                f"{path.parent} is in use by another apr eval", "wait for it, or use --out"
            ) from None
        except OSError as error:
            raise AprError(f"{path.parent} cannot be written: {error.strerror}") from None
        try:
            self._open(path, fresh)
            self._same_settings(path.parent, settings or {})
        except BaseException:
            self._lock.release()
            raise

    def _open(self, path: Path, fresh: bool) -> None:
        if fresh:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(SCHEMA)
            for table, column, kind in _LATER:
                known = [found[1] for found in self._db.execute(f"PRAGMA table_info({table})")]
                if column not in known:
                    self._db.execute(f"ALTER TABLE {table} ADD {column} {kind}")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # of the disk, not of what is on it
                raise _not_written(path, error) from None
            raise AprError(
                f"{path} cannot be used: {error}", "--fresh starts it anew, --out names another"
            ) from None

    def _same_settings(self, folder: Path, settings: dict[str, Any]) -> None:
        stored = dict(self._db.execute("SELECT name, value FROM setting"))
        wanted = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        if stored and stored != wanted:
            changed = [k for k in {**wanted, **stored} if stored.get(k) != wanted.get(k)]
            name = changed[0]
            raise UsageError(
                f"{folder} holds a run with {name} {stored.get(name)}, not {wanted.get(name)}",
                "--fresh starts it anew, --out names another folder",
            )
        try:
            self._db.execute("BEGIN IMMEDIATE")  # all of them or, if killed here, none
            self._db.executemany("INSERT OR IGNORE INTO setting VALUES (?, ?)", [*wanted.items()])
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise _not_written(self.path, error) from None

    def add_generation(self, generation: Generation) -> None:
        self._put("generation", astuple(generation))

    def add_verdict(self, verdict: StoredVerdict) -> None:
        self._put("verdict", astuple(verdict))

    def _put(self, table: str, row: tuple[Any, ...]) -> None:
        """A row in place of one with the same key. Columns come in the order of the fields."""
        marks = ", ".join("?" * len(row))
        stored = [_to_store(value) for value in row]
        try:
            self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", stored)
        except sqlite3.OperationalError as error:
            raise _not_written(self.path, error) from None

    def generated(self) -> set[tuple[str, int]]:
        return set(self._db.execute("SELECT task_id, sample FROM generation"))

    def generations(self) -> Iterator[Generation]:
        """In the order they were stored."""
        for row in self._db.execute("SELECT * FROM generation ORDER BY rowid"):
            yield Generation(*from_store(row))

    def judged(self, level: Level) -> set[tuple[str, int]]:
        """Samples with a verdict that stands: not the sandbox's own failure, and not found at a
        weaker level of isolation than `level`.
        """
        strong = LEVELS[: LEVELS.index(level) + 1]
        return {v.place for v in self.verdicts() if not v.unknown and v.level in strong}

    def add_behaviour(
        self, place: tuple[str, int], calls: str, answers: tuple[str, ...], shown: int
    ) -> None:
        """What a sample's program does (rerank.behaviour). calls: the version of the calls."""
        self._put("behaviour", (*place, calls, json.dumps(answers), shown))

    def behaviours(self) -> Iterator[tuple[tuple[str, int], str, tuple[str, ...], int]]:
        """What `add_behaviour` was told."""
        for task_id, sample, calls, answers, shown in self._db.execute("SELECT * FROM behaviour"):
            yield (task_id, sample), calls, tuple(json.loads(answers)), shown

    def set_fact(self, name: str, value: Any) -> None:
        """Remember something about the run that does not identify it."""
        text = json.dumps(value)
        if self.facts().get(name) != json.loads(text):  # else nothing is written
            self._put("fact", (name, text))

    def facts(self) -> dict[str, Any]:
        return {k: json.loads(v) for k, v in self._db.execute("SELECT name, value FROM fact")}

    def verdicts(self) -> list[StoredVerdict]:
        rows = self._db.execute("SELECT * FROM verdict ORDER BY task_id, sample")
        found = (StoredVerdict(*row) for row in rows)
        return [replace(v, retried=bool(v.retried), close=bool(v.close)) for v in found]

    def close(self) -> None:
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def discard(self) -> None:
        """Close, and take the database away; its folder too if nothing else is in it."""
        self.close()
        if self.path is None:
            return
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def _not_written(path: Path | None, error: sqlite3.Error) -> AprError:
    return AprError(
        f"{path or 'the record of the run'} cannot be written: {error}",
        "once it can, the same command goes on from what is stored",
    )


def _to_store(value: Any) -> Any:
    """A text with half a surrogate pair (a server's answer, cut) as bytes: SQLite's is UTF-8."""
    if isinstance(value, str) and not is_unicode(value):
        return value.encode("utf-8", "surrogatepass")
    return value


def from_store(row: Iterable[Any]) -> list[Any]:
    """The values of a row as they were put into it."""
    return [v.decode("utf-8", "surrogatepass") if isinstance(v, bytes) else v for v in row]
