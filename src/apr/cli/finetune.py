"""`apr finetune`: train an adapter, or a whole model, on instruction data or text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import typer

from apr.cli.options import JSON_HELP, OFFLINE_HELP, OUTPUT, only_flags
from apr.common.errors import UsageError
from apr.common.settings import check, option, settings_in
from apr.train.train_settings import FimSettings, FinetuneRequest, LoraSettings, ScoreRequest


@dataclass(frozen=True)
class Done:
    """What becomes of a run, and what is shown of it."""

    output: Path | None = option(
        None,
        "Folder of the run; the same command again goes on with it.",
        short="-o",
        panel=OUTPUT,
    )
    merge: bool = option(False, "Merge --adapter into MODEL and train nothing.", panel="Method")
    report_to: str = option(
        "none", "Send metrics to tensorboard or trackio, beside metrics.jsonl.", panel=OUTPUT
    )
    plan: bool = option(
        False, "Say how much memory and how many steps it would take, and stop.", panel=OUTPUT
    )
    show_samples: int = option(
        0,
        "Print so many documents, coloured by what is learned, and stop.",
        least=0,
        panel=OUTPUT,
    )
    force: bool = option(False, "Begin anew in a folder that holds a run.", panel=OUTPUT)
    offline: bool = option(False, OFFLINE_HELP, panel=OUTPUT)
    as_json: bool = option(False, JSON_HELP, flag="json", panel=OUTPUT)

    def __post_init__(self) -> None:
        check(self)


def register(app: typer.Typer) -> None:
    app.command("finetune", help="Train a LoRA adapter, or the whole model, on your data.")(
        finetune
    )


def finetune(
    context: typer.Context, request: FinetuneRequest, scores: ScoreRequest, done: Done
) -> None:
    from apr.cli import training_output as out
    from apr.train.finetune import finetune as run
    from apr.train.finetune import finished_result
    from apr.train.metrics import check_report
    from apr.train.prepare import prepare
    from apr.train.report import add_scores, check_scores, score_run
    from apr.train.supervised import SUPERVISED

    output, offline, as_json = done.output, done.offline, done.as_json
    if output is None and not (done.plan or done.show_samples):
        raise UsageError("no folder to write", "-o FOLDER, or --plan to see what would be done")
    if done.merge:
        from apr.train.adapter_files import merge_adapter

        if request.adapter is None or output is None:
            raise UsageError("`merge` needs `adapter` DIR and -o OUT")
        ours = {"model", "output", "adapter", "merge", "force", "offline", "as_json"}
        only_flags(context, ours, "with `merge`")
        merged = merge_adapter(
            request.model, request.adapter, output, force=done.force, offline=offline
        )
        print(json.dumps(merged)) if as_json else out.show_merged(merged)
        return
    _check_flags(context, request, scores)
    check_report(done.report_to)
    prepared = prepare(request, SUPERVISED, offline=offline)
    if scores.benchmark:
        check_scores(prepared.request, scores, offline=offline)
    if done.show_samples:
        out.show_samples(prepared, done.show_samples, as_json)
        return
    summary = prepared.summary()
    if done.plan:
        print(json.dumps(summary)) if as_json else out.show_plan(summary, prepared)
        return
    assert output is not None
    if not as_json:
        out.show_plan(summary, prepared, to_stderr=True)
    # A run that was stopped while it was scored, or is to be scored now, is trained already.
    result = finished_result(prepared, output) if scores.benchmark and not done.force else None
    if result is None:
        with out.TrainProgress() as progress:
            result = run(
                prepared,
                output,
                force=done.force,
                on_log=progress.on_line,
                report_to=done.report_to,
            )
    if scores.benchmark:
        result["scores"] = score_run(prepared.request, scores, output, offline=offline)
        add_scores(output, result["scores"])
    print(json.dumps(result)) if as_json else out.show_result(result)


def _check_flags(context: typer.Context, request: FinetuneRequest, scores: ScoreRequest) -> None:
    """Raises UsageError for a flag that would change nothing."""
    known = {parameter.name or "" for parameter in context.command.params}
    if request.method == "full":
        lora = {one.name for one in settings_in(LoraSettings)} | {"lora_plus"}
        only_flags(context, known - lora, "with `method` full")
    if not request.fim.rate:
        fim = {one.name for one in settings_in(FimSettings)} - {"rate"}
        only_flags(context, known - fim, "without `rate`")
    if not scores.benchmark:
        only_flags(context, known - {"samples", "limit"}, "without `benchmark`")
