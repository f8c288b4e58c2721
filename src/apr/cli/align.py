"""`apr align`: train a model on preferences between answers."""

from __future__ import annotations

import typer

from apr.align.align_settings import AlignRequest
from apr.cli.training_output import Done, run_training
from apr.train.train_settings import ScoreRequest


def register(app: typer.Typer) -> None:
    app.command("align", help="Train on preferences: DPO, ORPO, SimPO or KTO.")(align)


def align(context: typer.Context, request: AlignRequest, scores: ScoreRequest, done: Done) -> None:
    from apr.align.learning import PREFERENCES

    run_training(context, request, PREFERENCES, scores, done)
