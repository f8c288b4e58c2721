"""`apr eval`: score a model on a benchmark, or measure its perplexity on a text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from apr.cli.options import (
    ADAPTER_HELP,
    BROKEN_HELP,
    CUTOFF_HELP,
    FIM_TOKENS_HELP,
    FROM_HELP,
    PERPLEXITY_HELP,
    PYTHON_HELP,
    RERANK_HELP,
    SPLIT_HELP,
    STRATEGY_HELP,
    TO_HELP,
    fim_token_names,
    parse_ks,
    parse_rerank,
    parse_window,
)
from apr.common.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command("eval", help="Score a model on a benchmark; resumes where it stopped.")(evaluate)


def evaluate(
    context: typer.Context,
    model: str = typer.Argument(
        "",
        help="Short name, hf://org/name, pypi://package, folder or .gguf; with --endpoint the"
        " server's name for it.",
        show_default=False,
    ),
    adapter: str = typer.Option(None, help=ADAPTER_HELP),
    benchmark: str = typer.Option(
        "humaneval",
        help="Which benchmark, or several: a list with commas, evalplus (humaneval+,mbpp+),"
        " infilling (three kinds of gaps), or all whose data is here. Or a file of tasks of yours"
        " (.jsonl, .py).",
    ),
    n_samples: int = typer.Option(1, help="Samples a task."),
    temperature: float = typer.Option(0.0, help="0 is greedy."),
    top_p: float = typer.Option(1.0, help="Nucleus sampling."),
    top_k: int = typer.Option(0, help="0 is off."),
    min_p: float = typer.Option(0.0, help="0 is off."),
    repetition_penalty: float = typer.Option(1.0, help="1 is off."),
    k: str = typer.Option("", help="Which pass@k, e.g. 1,10. Default: 1, 10, 100 where possible."),
    prompt_strategy: str = typer.Option("standard", help=STRATEGY_HELP),
    system: str = typer.Option("", help="A system message."),
    exemplars: Path = typer.Option(
        None,
        help="JSON lines with prompt and solution, for few-shot; for scot and cgo, which show none"
        " otherwise, with a plan as well. own: ours.",
    ),
    prompt_template: list[Path] = typer.Option(
        [], help="A Jinja file in place of the strategy's template; give it twice for its second."
    ),
    rounds: int = typer.Option(None, help="reflexion: of repair. [default: 2]"),
    show_prompt: bool = typer.Option(
        False, "--show-prompt", help="Print what the model is asked of the first task, and stop."
    ),
    rerank: str = typer.Option("none", help=RERANK_HELP),
    sweep: Path = typer.Option(
        None,
        help="A YAML file with benchmarks, models, strategies and settings, all of which are run"
        " and compared; the other options are for what it does not say.",
    ),
    limit: int = typer.Option(None, help="Only the first tasks."),
    mode: str = typer.Option(
        "auto",
        help="base or chat (auto: chat if there is a template); for infilling psm, spm, or prefix: "
        "the left-to-right baseline (auto: psm).",
    ),
    fim_tokens: str = typer.Option("", help=FIM_TOKENS_HELP),
    newline: str = typer.Option(
        "auto",
        help="End of a base prompt: strip white space, keep as in the data, add a line end, or "
        "auto: as usual for the benchmark.",
    ),
    prefill: bool = typer.Option(
        None,
        "--prefill/--no-prefill",
        help="Begin the answer of a chat model, as EvalPlus does. Default: yes, but not with"
        " --endpoint.",
    ),
    max_tokens: int = typer.Option(
        None, help="At most so many new tokens a sample. Default: the benchmark's."
    ),
    seed: int = typer.Option(0),
    data: Path = typer.Option(None, help="The benchmark's file, instead of the installed one."),
    date_from: str = typer.Option("", "--from", help=FROM_HELP),
    date_to: str = typer.Option("", "--to", help=TO_HELP),
    cutoff: str = typer.Option("", help=CUTOFF_HELP),
    split: str = typer.Option(None, help=SPLIT_HELP),
    python: str = typer.Option(None, help=PYTHON_HELP),
    perplexity: str = typer.Option(None, metavar="TEXT", help=PERPLEXITY_HELP),
    window: int = typer.Option(None, help="Perplexity: tokens seen at once. Default: 2048."),
    stride: int = typer.Option(
        None, help="Perplexity: from window to window; smaller than --window gives context."
    ),
    max_windows: int = typer.Option(None, help="Perplexity: only the first windows."),
    threshold: float = typer.Option(None, help="Exit with 1 if the perplexity is above."),
    exclude_broken: bool = typer.Option(False, "--exclude-broken", help=BROKEN_HELP),
    out: Path = typer.Option(None, help="Folder of the run. Default: runs/<benchmark>-<model>-…"),
    workers: int = typer.Option(None, help="Programs judged side by side. Default: the cores."),
    sandbox_level: str = typer.Option("auto", help="full, confined, limits, or the best there is."),
    allow_weak_sandbox: bool = typer.Option(
        False, "--allow-weak-sandbox", help="Accept level limits: resource limits only."
    ),
    dtype: str = typer.Option("auto", help="bfloat16, float16 or float32."),
    device: str = typer.Option("auto", help="cpu, cuda, mps."),
    max_concurrency: int = typer.Option(32, help="Samples generated side by side."),
    endpoint: str = typer.Option(
        None,
        help="URL of an OpenAI-compatible server that has the model, e.g."
        " http://localhost:8000/v1. Its key: environment variable APR_API_KEY.",
    ),
    request_timeout: float = typer.Option(600.0, help="Seconds --endpoint has for an answer."),
    fresh: bool = typer.Option(False, "--fresh", help="Forget what the run's folder holds."),
    offline: bool = typer.Option(False, "--offline", help="Use only what is in the cache."),
    per_task: bool = typer.Option(False, "--per-task", help="Show every task."),
    show_samples: int = typer.Option(0, help="Show so many generated programs."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    from typing import get_args

    if not model and sweep is None:
        raise UsageError("no model is named", "apr eval MODEL, or apr eval --sweep FILE")
    from apr.cli.options import only_flags

    ours = {"window", "stride", "max_windows", "threshold"}
    if perplexity is not None:
        shared = {"perplexity", "model", "adapter", "data", "dtype", "device", "offline", "as_json"}
        only_flags(context, {*ours, *shared}, "with --perplexity")
        how = {"window": window, "stride": stride, "max_windows": max_windows}
        run_on = {"dtype": dtype, "device": device, "offline": offline, "adapter": adapter}
        _perplexity(model, perplexity, data, threshold, as_json, {**how, **run_on})
        return
    only_flags(context, {p.name or "" for p in context.command.params} - ours, "on a benchmark")
    if sweep is not None and (show_prompt or per_task or show_samples):
        raise UsageError("--show-prompt, --per-task and --show-samples are of one run, no --sweep")
    if show_samples < 0:
        raise UsageError(f"--show-samples is {show_samples}", "it must be 0 or more")
    from apr.cli.options import (
        one_of,
        print_prompts,
        print_result,
        print_samples,
        print_suite,
        print_sweep,
        sandbox_choice,
    )
    from apr.engine.request import Sampling
    from apr.eval.benchmarks.task import Mode, Newline
    from apr.eval.history.sweep import run_sweep
    from apr.eval.run.eval_settings import EvalSettings
    from apr.eval.run.evaluate import evaluate as run
    from apr.eval.run.identity import shown_prompts
    from apr.eval.run.suite import evaluate_suite, is_suite
    from apr.eval.strategies.strategy import load_strategy

    settings = EvalSettings(
        model=model,
        adapter=adapter,
        benchmark=benchmark,
        n_samples=n_samples,
        sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
        ks=parse_ks(k),
        strategy=load_strategy(prompt_strategy, system, exemplars, prompt_template, rounds),
        rerank=parse_rerank(rerank),
        fim_tokens=fim_token_names(fim_tokens),
        limit=limit,
        mode=one_of("mode", mode, {"auto": None, **{mode: mode for mode in get_args(Mode)}}),
        newline=one_of("newline", newline, {"auto": None, **{n: n for n in get_args(Newline)}}),
        prefill=prefill,
        max_tokens=max_tokens,
        seed=seed,
        data=data,
        out=out,
        workers=workers,
        level=sandbox_choice(sandbox_level),
        allow_weak=allow_weak_sandbox,
        dtype=dtype,
        device=device,
        max_concurrency=max_concurrency,
        fresh=fresh,
        offline=offline,
        window=parse_window(date_from, date_to, cutoff),
        split=split,
        python=python,
        exclude_broken=exclude_broken,
        endpoint=endpoint,
        request_timeout=request_timeout,
    )
    if sweep is not None:
        table = run_sweep(sweep, settings)
        if as_json:
            print(json.dumps(table.to_json()))
        else:
            print_sweep(table)
        for cell in table.failed:
            print(f"apr: {cell.row.label}, {cell.benchmark}: {cell.error}", file=sys.stderr)
        raise typer.Exit(1 if table.failed else 0)
    if show_prompt:
        print_prompts(shown_prompts(settings), as_json)
        return
    if is_suite(benchmark):
        found = evaluate_suite(settings)
        if as_json:
            print(json.dumps(found.to_json()))
        else:
            print_suite(found, per_task, show_samples)
        return
    result, folder = run(settings)
    if as_json:
        print(json.dumps({**result.to_json(), "folder": str(folder)}))
        return
    print_samples(folder, show_samples)
    print_result(result, per_task)
    print(f"samples.jsonl and results.json are in {folder}")


def _perplexity(
    model: str,
    text: str,
    data: Path | None,
    threshold: float | None,
    as_json: bool,
    settings: dict[str, Any],
) -> None:
    from apr.calibrate.perplexity import evaluate_perplexity
    from apr.calibrate.texts import load_text
    from apr.cli.options import show_perplexity

    result = evaluate_perplexity(model, load_text(text, data), threshold=threshold, **settings)
    print(json.dumps(result)) if as_json else show_perplexity(result)
    if result["passed"] is False:
        raise typer.Exit(1)
