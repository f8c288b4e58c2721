"""`apr distill`: train a smaller model on what a larger one would say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import typer

from apr.cli.training_output import Done, run_training
from apr.common.errors import UsageError
from apr.common.settings import option
from apr.distill.distill_settings import DistillRequest
from apr.train.train_settings import ScoreRequest


@dataclass(frozen=True)
class Surgery:
    """How the student comes to be."""

    student_from: str | None = option(
        None,
        "Make the student of the teacher first: depth=0.5 takes half of its layers out, those that"
        " change least (apr prune --method depth).",
        metavar="depth=SHARE",
        panel="Model",
    )


def register(app: typer.Typer) -> None:
    app.command("distill", help="Train a student on a teacher's distributions.")(distill)


def distill(
    context: typer.Context,
    request: DistillRequest,
    surgery: Surgery,
    scores: ScoreRequest,
    done: Done,
) -> None:
    from apr.distill.learning import TAUGHT

    if bool(request.model) == (surgery.student_from is not None):
        raise UsageError(
            "the student is `model`, or made by `student_from`, one of the two",
            "`model` MODEL, or `student_from` depth=0.5",
        )
    if surgery.student_from is not None:
        if done.output is None:
            raise UsageError("no folder to write", "-o FOLDER")
        request = replace(request, model=str(_student(surgery.student_from, request, done)))
    run_training(context, request, TAUGHT, scores, done)


def _student(text: str, request: DistillRequest, done: Done) -> Path:
    """OUT-student: the teacher with layers less; made once."""
    from apr.prune.prune_run import prepare, run_prune
    from apr.prune.prune_settings import PruneSettings

    method, _, share = text.partition("=")
    try:
        sparsity = float(share)
    except ValueError:
        sparsity = -1.0
    if method != "depth" or not 0 < sparsity < 1:
        raise UsageError(f"`student_from` {text} is not known", "depth=0.5, say")
    assert done.output is not None
    folder = done.output.with_name(done.output.name + "-student")
    if not (folder / "config.json").is_file():
        settings = PruneSettings(request.teacher[0], "depth", sparsity)
        run_prune(prepare(settings, offline=done.offline), folder)
    return folder
