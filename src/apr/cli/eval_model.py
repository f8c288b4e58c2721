"""`apr eval`: score a model on a benchmark, or measure its perplexity on a text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from apr.cli.options import only_flags
from apr.common.errors import UsageError
from apr.common.settings import check, option, settings_in
from apr.eval.run.eval_settings import EvalSettings


@dataclass(frozen=True)
class Perplexity:
    """What to measure instead of a benchmark's score."""

    perplexity: str | None = option(
        None,
        "Measure perplexity and bits per byte instead: on a file (.txt, .jsonl, packed with gzip or"
        " not), wikitext-2, or builtin, a sample of Python.",
        metavar="TEXT",
        panel="Perplexity",
    )
    window: int | None = option(
        None, "Tokens that the model sees at once. [default: 2048]", panel="Perplexity"
    )
    stride: int | None = option(
        None,
        "Tokens from the start of a window to the next; fewer than --window give each some context."
        " [default: the window]",
        panel="Perplexity",
    )
    max_windows: int | None = option(None, "Use only the first windows.", panel="Perplexity")
    threshold: float | None = option(
        None, "Exit with status 1 if the perplexity is above this.", panel="Perplexity"
    )


@dataclass(frozen=True)
class Shown:
    """What is to be told of a run."""

    sweep: Path | None = option(
        None,
        "A YAML file with benchmarks, models, strategies and settings; all of their combinations"
        " are run and compared, and the flags hold for what the file does not say.",
        panel="Output",
    )
    show_prompt: bool = option(
        False, "Print what the model would be asked of the first task, and stop.", panel="Prompt"
    )
    per_task: bool = option(False, "Show every task.", panel="Output")
    show_samples: int = option(0, "Print so many of the programs.", least=0, panel="Output")
    as_json: bool = option(False, "Print one JSON object.", flag="json", panel="Output")

    def __post_init__(self) -> None:
        check(self)


# Flags that --perplexity leaves a meaning.
_OF_BOTH = {"model", "adapter", "data", "dtype", "device", "offline", "as_json"}


def register(app: typer.Typer) -> None:
    app.command("eval", help="Score a model on a benchmark; goes on where it was stopped.")(
        evaluate
    )


def evaluate(
    context: typer.Context, settings: EvalSettings, text: Perplexity, shown: Shown
) -> None:
    if not settings.model and shown.sweep is None:
        raise UsageError("no model is named", "apr eval MODEL, or apr eval --sweep FILE")
    its_own = {one.name for one in settings_in(Perplexity)}
    if text.perplexity is not None:
        only_flags(context, its_own | _OF_BOTH, "with `perplexity`")
        _perplexity(settings, text, shown.as_json)
        return
    only_flags(context, {p.name or "" for p in context.command.params} - its_own, "on a benchmark")
    if shown.sweep is not None:
        _sweep(shown.sweep, settings, shown)
        return
    from apr.cli import eval_output as out
    from apr.eval.run.evaluate import evaluate as run
    from apr.eval.run.identity import shown_prompts
    from apr.eval.run.suite import evaluate_suite, is_suite

    if shown.show_prompt:
        out.print_prompts(shown_prompts(settings), shown.as_json)
        return
    if is_suite(settings.benchmark):
        found = evaluate_suite(settings)
        if shown.as_json:
            print(json.dumps(found.to_json()))
        else:
            out.print_suite(found, shown.per_task, shown.show_samples)
        return
    result, folder = run(settings)
    if shown.as_json:
        print(json.dumps({**result.to_json(), "folder": str(folder)}))
        return
    out.print_samples(folder, shown.show_samples)
    out.print_result(result, shown.per_task)
    print(f"samples.jsonl and results.json are in {folder}")


def _sweep(file: Path, settings: EvalSettings, shown: Shown) -> None:
    if shown.show_prompt or shown.per_task or shown.show_samples:
        raise UsageError(
            "`show_prompt`, `per_task` and `show_samples` are for one run, not for `sweep`"
        )
    from apr.cli.eval_output import print_sweep
    from apr.eval.history.sweep import run_sweep

    table = run_sweep(file, settings)
    if shown.as_json:
        print(json.dumps(table.to_json()))
    else:
        print_sweep(table)
    for cell in table.failed:
        print(f"apr: {cell.row.label}, {cell.benchmark}: {cell.error}", file=sys.stderr)
    raise typer.Exit(1 if table.failed else 0)


def _perplexity(settings: EvalSettings, text: Perplexity, as_json: bool) -> None:
    from apr.calibrate.perplexity import evaluate_perplexity
    from apr.calibrate.texts import load_text
    from apr.cli.eval_output import show_perplexity

    how = asdict(text)
    result = evaluate_perplexity(
        settings.model,
        load_text(how.pop("perplexity"), settings.data),
        adapter=settings.adapter,
        dtype=settings.dtype,
        device=settings.device,
        offline=settings.offline,
        **how,
    )
    print(json.dumps(result)) if as_json else show_perplexity(result)
    if result["passed"] is False:
        raise typer.Exit(1)
