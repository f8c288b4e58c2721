"""A run of training, for the verbs that train: its flags, plan, documents, progress and result."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.cli.options import JSON_HELP, OFFLINE_HELP, OUTPUT, only_flags
from apr.common.errors import UsageError
from apr.common.memory import process_memory
from apr.common.progress import Display
from apr.common.settings import check, option, settings_in
from apr.train.train_settings import LoraSettings, RunSettings, ScoreRequest

if TYPE_CHECKING:
    import rich.progress
    import typer
    from rich.text import Text

    from apr.text import Tokenizer
    from apr.train.packing import Document
    from apr.train.prepare import Learning, Prepared


@dataclass(frozen=True)
class Done:
    """What becomes of a run, and what is shown of it."""

    output: Path | None = option(
        None,
        "Folder of the run; the same command again goes on with it.",
        short="-o",
        panel=OUTPUT,
    )
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


def run_training(
    context: typer.Context,
    request: RunSettings,
    learning: Learning[Any],
    scores: ScoreRequest,
    done: Done,
) -> None:
    """Train, or show what would be done."""
    from apr.train.finetune import finetune, finished_result
    from apr.train.metrics import check_report
    from apr.train.prepare import prepare
    from apr.train.report import add_scores, check_scores, score_run

    output, offline, as_json = done.output, done.offline, done.as_json
    if output is None and not (done.plan or done.show_samples):
        raise UsageError("no folder to write", "-o FOLDER, or --plan to see what would be done")
    known = {parameter.name or "" for parameter in context.command.params}
    if request.method == "full":
        lora = {one.name for one in settings_in(LoraSettings)} | {"lora_plus"}
        only_flags(context, known - lora, "with `method` full")
    if not scores.benchmark:
        only_flags(context, known - {"samples", "limit"}, "without `benchmark`")
    check_report(done.report_to)
    prepared = prepare(request, learning, offline=offline)
    if scores.benchmark:
        check_scores(prepared.request, scores, offline=offline)
    if done.show_samples:
        show_samples(prepared, done.show_samples, as_json)
        return
    summary = prepared.summary()
    if done.plan:
        print(json.dumps(summary)) if as_json else show_plan(summary, prepared)
        return
    assert output is not None
    if not as_json:
        show_plan(summary, prepared, to_stderr=True)
    # A run that was stopped while it was scored, or is to be scored now, is trained already.
    result = finished_result(prepared, output) if scores.benchmark and not done.force else None
    if result is None:
        with TrainProgress() as progress:
            result = finetune(
                prepared,
                output,
                force=done.force,
                on_log=progress.on_line,
                on_note=progress.say,
                report_to=done.report_to,
            )
    if scores.benchmark:
        result["scores"] = score_run(prepared.request, scores, output, offline=offline)
        add_scores(output, result["scores"])
    print(json.dumps(result)) if as_json else show_result(result)


def show_plan(summary: Mapping[str, Any], prepared: Prepared[Any], to_stderr: bool = False) -> None:
    """What will be trained, on what, with how much memory."""
    out = sys.stderr if to_stderr else sys.stdout
    trainable, parameters = summary["trainable_parameters"], summary["parameters"]
    print(
        f"{summary['method']} of {summary['model']} in {summary['dtype']}: {trainable:,} of"
        f" {parameters:,} parameters are trained ({100 * trainable / parameters:.2f} %)",
        file=out,
    )
    for line in prepared.report.lines():
        print(line, file=out)
    for line in prepared.eval_report.lines() if prepared.eval_report else ():
        print(f"held out: {line}", file=out)
    if summary["eval_documents"]:
        print(f"{summary['eval_documents']} documents held out", file=out)
    print(f"{summary['steps']} steps, {summary['batches_per_epoch']} batches an epoch", file=out)
    for note in summary["notes"]:
        print(f"note: {note}", file=out)
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in summary["memory"].items())
    print(f"peak memory about {summary['peak_memory_bytes'] / 1e6:,.0f} MB: {parts}", file=out)


def show_samples(prepared: Prepared[Any], count: int, as_json: bool) -> None:
    """The first documents, coloured by loss mask."""
    documents = [prepared.learning.shown(one) for one in prepared.examples[:count]]
    if as_json:
        print(json.dumps({"samples": sample_json(documents, prepared.tokenizer)}))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for number, document in enumerate(documents, 1):
        console.rule(f"{number}: {len(document)} tokens, {document.targets} learned")
        console.print(coloured(document, prepared.tokenizer), soft_wrap=True)


def runs(document: Document, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, learned) of each longest run of tokens that are all learned, or all not."""
    pairs = zip(document.ids.tolist(), document.trained.tolist(), strict=True)
    return [
        (tokenizer.decode([i for i, _ in group], skip_special_tokens=False), learned)
        for learned, group in groupby(pairs, key=lambda pair: pair[1])
    ]


def coloured(document: Document, tokenizer: Tokenizer) -> Text:
    """Learned text green, the rest dim; without colours, learned text stands in «»."""
    from rich.text import Text

    text = Text()
    for piece, learned in runs(document, tokenizer):
        text.append(f"«{piece}»" if learned else piece, style="green" if learned else "dim")
    return text


def sample_json(documents: Sequence[Document], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return [
        {
            "tokens": len(document),
            "learned": document.targets,
            "text": [{"text": t, "learned": learned} for t, learned in runs(document, tokenizer)],
        }
        for document in documents
    ]


def show_result(result: Mapping[str, Any]) -> None:
    from apr.train.metrics import loss_text

    print(result["folder"])
    print(
        f"{result['steps']} steps in {result['seconds']:,.0f} s,"
        f" {result['tokens_per_second']:,.0f} tok/s; {loss_text(result)}"
    )
    if result["first_eval"] is not None and result["nats"]:
        from math import exp

        print(
            f"held-out perplexity {exp(result['first_eval']):.3f} before,"
            f" {exp(result['last_eval']):.3f} after; best {exp(result['best_eval']):.3f}"
            f" (epoch {result['best_epoch']})"
        )
    elif result["first_eval"] is not None:
        for name, (first, last) in result["measures"].items():
            print(f"held-out {name.replace('_', ' ')} {first:.4f} before, {last:.4f} after")
    for score in result.get("scores", []):
        from apr.train.report import score_table

        print("\n".join(score_table(score)))
    if result["stopped"]:
        print(f"stopped early: {result['stopped']}")


def show_merged(result: Mapping[str, Any]) -> None:
    print(result["folder"])
    print(
        f"largest logit difference between adapter and merged model:"
        f" {result['max_logit_difference']:.2e} in fp32 (logits up to {result['max_logit']:.1f})"
    )


class TrainProgress(Display):
    """Loss, tokens a second, time left and memory on stderr: a bar on a terminal, else lines."""

    def columns(self) -> list[rich.progress.ProgressColumn]:
        import rich.progress as shown

        return [
            shown.TextColumn("step {task.completed}/{task.total}"),
            shown.BarColumn(),
            shown.TextColumn("{task.description}"),
        ]

    def on_line(self, line: dict[str, Any]) -> None:
        """line: of the metrics, with steps, all_tokens and all_seconds of the run."""
        if "eval_loss" in line:
            if self.enabled:
                known = {k.removeprefix("eval_"): v for k, v in line.items() if k[:5] == "eval_"}
                told = (f"{name.replace('_', ' ')} {value:.4f}" for name, value in known.items())
                self.say(f"epoch {line['epoch']}: held-out {', '.join(told)}")
            return

        def state() -> str:
            rate = line["all_tokens"] / max(line["all_seconds"], 1e-9)
            left = (line["steps"] - line["step"]) * line["all_seconds"] / max(line["step"], 1)
            return (
                f"loss {line['loss']:.4f}, {rate:,.0f} tok/s, {_duration(left)} left,"
                f" {memory_gb():.2f} GB"
            )

        self.total = line["steps"]
        step = line["step"]
        self.show(lambda: f"step {step} of {line['steps']}: {state()}", state, step)


def memory_gb() -> float:
    """Memory of this process (GPU memory where it uses one), 1e9 bytes."""
    import torch

    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return process_memory() / 1e9


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
