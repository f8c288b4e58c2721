"""`apr finetune`: train an adapter, or a whole model, on instruction data or text."""

from __future__ import annotations

import json
from dataclasses import dataclass

import typer

from apr.cli.options import only_flags
from apr.cli.training_output import Done, run_training, show_merged
from apr.common.errors import UsageError
from apr.common.settings import option, settings_in
from apr.train.train_settings import METHOD, FimSettings, FinetuneRequest, ScoreRequest


@dataclass(frozen=True)
class Merging:
    """Instead of training."""

    merge: bool = option(False, "Merge --adapter into MODEL and train nothing.", panel=METHOD)


def register(app: typer.Typer) -> None:
    app.command("finetune", help="Train a LoRA adapter, or the whole model, on your data.")(
        finetune
    )


def finetune(
    context: typer.Context,
    request: FinetuneRequest,
    scores: ScoreRequest,
    done: Done,
    merging: Merging,
) -> None:
    from apr.train.supervised import SUPERVISED

    output = done.output
    if merging.merge:
        from apr.train.adapter_files import merge_adapter

        if request.adapter is None or output is None:
            raise UsageError("`merge` needs `adapter` DIR and -o OUT")
        ours = {"model", "output", "adapter", "merge", "force", "offline", "as_json"}
        only_flags(context, ours, "with `merge`")
        merged = merge_adapter(
            request.model, request.adapter, output, force=done.force, offline=done.offline
        )
        print(json.dumps(merged)) if done.as_json else show_merged(merged)
        return
    if not request.fim.rate:
        known = {parameter.name or "" for parameter in context.command.params}
        fim = {one.name for one in settings_in(FimSettings)} - {"rate"}
        only_flags(context, known - fim, "without `rate`")
    run_training(context, request, SUPERVISED, scores, done)
