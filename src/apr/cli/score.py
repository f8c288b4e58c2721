"""`apr score`: judge completions made elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from apr.common.errors import AprError, UsageError
from apr.common.files import write_whole
from apr.common.settings import option
from apr.eval.run.eval_settings import ScoreSettings


@dataclass(frozen=True)
class Scored:
    """What is judged, and what is told of it."""

    samples: Path | None = option(
        None,
        "JSON lines (.jsonl, .jsonl.gz) or an array (.json) of samples, or EvalPlus' results"
        " (…eval_results.json) or folder (HumanEval_0/0.py).",
        argument=True,
    )
    check_gt: bool = option(
        False,
        "Run only the reference solutions; exit with status 1 if one fails.",
        panel="Judging",
    )
    allow_partial: bool = option(
        False, "Score the tasks that have samples, though others have none.", panel="Judging"
    )
    per_task: bool = option(False, "Show every task.", panel="Output")
    out: Path | None = option(
        None,
        "Write the result there as well, as JSON: a file, or a folder for results.json. apr results"
        " and apr compare read it.",
        panel="Output",
    )
    as_json: bool = option(False, "Print one JSON object.", flag="json", panel="Output")


def register(app: typer.Typer) -> None:
    app.command("score", help="Judge a file of samples; needs no model.")(score)


def score(settings: ScoreSettings, scored: Scored) -> None:
    from apr.cli.eval_output import print_result
    from apr.eval.run.scoring import run_references, score_samples

    how: dict[str, Any] = {
        "data": settings.data,
        "python": settings.python,
        "workers": settings.workers,
        "level": settings.level,
        "allow_weak": settings.allow_weak,
    }
    if scored.check_gt:
        found = run_references(settings.benchmark, **how)
        if scored.as_json:
            print(json.dumps(found.to_json()))
        else:
            print("\n".join([found.summary(), *found.notes()]))
        raise typer.Exit(1 if found.broken else 0)
    if scored.samples is None:
        raise UsageError("no file of samples is named", "apr score SAMPLES, or --check-gt")
    result = score_samples(
        scored.samples,
        settings.benchmark,
        **how,
        dates=settings.dates,
        ks=settings.ks,
        rerank=settings.rerank,
        exclude_broken=settings.exclude_broken,
        allow_partial=scored.allow_partial,
        form=settings.form,
    )
    if scored.out is not None:
        _write(scored.out, result.to_json())
    if scored.as_json:
        print(json.dumps(result.to_json()))
    else:
        print_result(result, scored.per_task)


def _write(out: Path, result: dict[str, Any]) -> None:
    path = out if out.suffix == ".json" and not out.is_dir() else out / "results.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise AprError(f"`out` {path} cannot be written: {error.strerror}") from None
