"""Several models, strategies and settings on several benchmarks, in one table.

Each cell is an ordinary run in a folder of its own, so a sweep goes on where it was stopped.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.common.errors import AprError, UsageError
from apr.common.files import write_json
from apr.eval.benchmarks import ALL
from apr.eval.generators import Model
from apr.eval.generators.model import find_model
from apr.eval.history.compare import Comparison, chance, compare, holm
from apr.eval.history.read import Run, summary
from apr.eval.history.sweep_file import Row, key_of, read_sweep, sweep_rows
from apr.eval.history.table import more_scores
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.evaluate import Interrupted, evaluate
from apr.eval.run.result import percent
from apr.eval.run.suite import names_of, settings_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Cell:
    """One row on one benchmark. run: None where it failed, and `error` says how.

    against_first: with the run of the first row, where both are there; adjusted_p: its p-value
    after Holm's correction for all rows of the benchmark.
    """

    row: Row
    benchmark: str
    run: Run | None = None
    error: str = ""
    against_first: Comparison | None = None
    adjusted_p: float | None = None

    def to_json(self) -> dict[str, Any]:
        value = {"row": self.row.label, "benchmark": self.benchmark}
        if self.run is None:
            return {**value, "error": self.error}
        return {**value, **summary(self.run), "against_first": self._compared()}

    def _compared(self) -> dict[str, Any] | None:
        if self.against_first is None:
            return None
        found = self.against_first.to_json()
        differing = found.pop("differing_settings")
        return {**found, "p_value_holm": self.adjusted_p, "differing_settings": differing}


@dataclass(frozen=True)
class SweepResult:
    """cells: benchmark by benchmark, the rows of each in order. path: of the JSON file."""

    cells: Sequence[Cell]
    path: Path

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.run is None]

    def to_json(self) -> dict[str, Any]:
        rows = {cell.row.label: _plain(cell.row.options) for cell in self.cells}
        return {
            "rows": rows,
            "first": next(iter(rows)),
            "cells": [cell.to_json() for cell in self.cells],
            "file": str(self.path),
        }


def run_sweep(
    path: Path, base: EvalSettings, find: Callable[[EvalSettings], Model] = find_model
) -> SweepResult:
    """Run or resume every cell of the sweep in `path`, and write what it found as JSON.

    base: the settings of the command line, for all that the file does not say; its `out` is the
    folder of the sweep (default: runs/). A cell that fails is kept with its error, and the others
    run. Raises UsageError for a request that is wrong, before anything is run.
    """
    sweep = read_sweep(path)
    base = replace(base, benchmark=",".join(sweep.benchmarks) or base.benchmark)
    benchmarks = list(names_of(base.benchmark))
    if base.benchmark == ALL:
        raise UsageError("`benchmark` all with `sweep`", "name the benchmarks")
    if base.data is not None and len(benchmarks) > 1:
        raise UsageError("`data` with several benchmarks", "sweep them one by one")
    rows = sweep_rows(sweep, base, path)
    models = _Models(find)
    cells: list[Cell] = []
    for row in rows:  # those of one model one after the other: it is loaded once
        for benchmark in benchmarks:
            if base.progress:
                done = f"{len(cells) + 1} of {len(rows) * len(benchmarks)}"
                print(f"apr: {row.label}: {benchmark} ({done})", file=sys.stderr)
            cells.append(_cell(row, benchmark, models))
    found = [cell for name in benchmarks for cell in _compared(cells, name)]
    result = SweepResult(found, (base.out or Path("runs")) / f"sweep-{path.stem}.json")
    write_json(result.path, result.to_json())
    return result


class _Models:
    """The latest model, as long as rows ask for the same."""

    def __init__(self, find: Callable[[EvalSettings], Model]) -> None:
        self._find = find
        self._known: tuple[Any, Model] | None = None

    def get(self, settings: EvalSettings) -> Model:
        how = (settings.dtype, settings.device, settings.max_context)
        key = (settings.model, settings.adapter, settings.endpoint, *how)
        if self._known is None or self._known[0] != key:
            self._known = None  # its weights go before others come
            self._known = key, self._find(settings)
        return self._known[1]


def _cell(row: Row, benchmark: str, models: _Models) -> Cell:
    out = row.settings.out and row.settings.out / _slug(row.label)
    settings = settings_of(replace(row.settings, out=out), benchmark)
    try:
        result, folder = evaluate(settings, models.get(settings))
    except Interrupted:
        raise
    except AprError as error:
        return Cell(row, benchmark, error=str(error.named(key_of)))
    return Cell(row, benchmark, Run(folder, result.to_json()))


def _slug(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label).strip("-.")


def _compared(cells: Sequence[Cell], benchmark: str) -> list[Cell]:
    """The cells of a benchmark, those after the first compared with it."""
    first, *others = (cell for cell in cells if cell.benchmark == benchmark)
    found = [
        replace(cell, against_first=compare(first.run, cell.run))
        if first.run and cell.run
        else cell
        for cell in others
    ]
    compared = [cell.against_first.p_value for cell in found if cell.against_first]
    adjusted = iter(holm(compared))
    return [
        first,
        *(replace(c, adjusted_p=next(adjusted)) if c.against_first else c for c in found),
    ]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(options), default=str))


def sweep_table(found: SweepResult) -> Table:
    """A row a cell: pass@1 with its interval, and how sure its difference from the first row is."""
    from rich.table import Table

    table = Table(
        caption="difference: from the first row of the benchmark, in points, with 95 % interval."
        " p: of one as large by chance (McNemar's test; a paired permutation test where samples of"
        " a task differ), with Holm's correction for the rows of a benchmark.",
        caption_justify="left",
    )
    for name in ("benchmark", "row", "pass@1", "difference", "p", "fixed", "broken", "more"):
        right = name in ("fixed", "broken")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    last = ""
    for cell in found.cells:
        if last and cell.benchmark != last:
            table.add_section()
        shown = cell.benchmark if cell.benchmark != last else ""
        last = cell.benchmark
        table.add_row(shown, cell.row.label, *_columns(cell))
    return table


def _columns(cell: Cell) -> tuple[str, ...]:
    if cell.run is None:
        return ("failed",)
    low, high = cell.run.results["pass@1_ci95"]
    score = f"{percent(cell.run.results['pass@1'])} ({100 * low:.1f} to {100 * high:.1f})"
    other, more = cell.against_first, more_scores(cell.run)
    if other is None or cell.adjusted_p is None:
        return (score, "", "", "", "", more)
    d = other.scores[1]
    difference = f"{100 * d.points:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
    p_value = chance(cell.adjusted_p).removeprefix("p ").removeprefix("= ")
    return (score, difference, p_value, str(len(other.fixed)), str(len(other.broken)), more)
