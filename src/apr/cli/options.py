"""What several verbs share: reading option values, showing results."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from apr.common.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import typer
    from rich.table import Table

    from apr.engine.session import Session, TextRequest
    from apr.eval.benchmarks.task import Prompt, Window
    from apr.eval.history.sweep import SweepResult
    from apr.eval.run.result import Result
    from apr.eval.run.suite import SuiteResult
    from apr.merge.diagnostics import MergeDiagnosis
    from apr.sandbox import Level
    from apr.text import FimOrder

T = TypeVar("T")

FIM_TOKENS_HELP = "PREFIX,SUFFIX,MIDDLE: tokens of a model trained to infill with others' names."

FROM_HELP = "Only problems of contests from this day on (YYYY-MM-DD)."
TO_HELP = "Only problems of contests up to this day (YYYY-MM-DD)."
CUTOFF_HELP = "Last day of the model's training data: says how many problems are not newer."
SPLIT_HELP = "BigCodeBench: complete (continue a docstring) or instruct (asked in words)."
STRATEGY_HELP = (
    "standard, few-shot, scot (structured chain of thought), scot-two-step, cgo (chain of grounded "
    "objectives), reflexion (repair by the examples the prompt shows). structured-cot is scot."
)
RERANK_HELP = (
    "Choose one of several samples a task, without the tests: majority (behaviour), tests (those "
    "the prompt shows), logprob; also several, e.g. majority,logprob."
)
PYTHON_HELP = "Interpreter that runs the programs, with the libraries they need. Default: ours."
PERPLEXITY_HELP = (
    "Measure perplexity and bits per byte instead: on a file (.txt, .jsonl, packed with gzip or"
    " not), wikitext-2, or builtin, a sample of Python."
)
BROKEN_HELP = "Leave tasks whose reference solution fails here out of the score."
MODEL_HELP = "Short name, hf://org/name, pypi://package, folder or .gguf."
ADAPTER_HELP = "A LoRA adapter to put on the model: PEFT's folder, or hf://org/name."


def one_of(flag: str, value: str, choices: Mapping[str, T]) -> T:
    """The choice a flag names. Raises UsageError listing them."""
    if value not in choices:
        raise UsageError(f"--{flag} {value} is unknown", f"one of {', '.join(choices)}")
    return choices[value]


def byte_size(flag: str, text: str | None) -> int | None:
    """Bytes of a size like 8GB or 512MiB. Raises UsageError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UsageError(f"--{flag} {text} is no size", "e.g. 8GB") from None


def parse_rerank(text: str) -> tuple[str, ...]:
    """--rerank majority,logprob or none."""
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def parse_ks(text: str) -> tuple[int, ...] | None:
    """ "1,10" as numbers; None for an empty text."""
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--k {text} is not a list of numbers", "e.g. --k 1,10") from None


def parse_window(first: str, last: str, cutoff: str) -> Window | None:
    """The dates of --from, --to and --cutoff; None if none is given."""
    from datetime import datetime

    from apr.eval.benchmarks.task import Window

    def day(flag: str, text: str) -> datetime | None:
        try:
            return datetime.strptime(text, "%Y-%m-%d") if text else None
        except ValueError:
            raise UsageError(f"--{flag} {text} is not a day", "as 2024-02-17") from None

    if not (first or last or cutoff):
        return None
    window = Window(day("from", first), day("to", last), day("cutoff", cutoff))
    if window.first and window.last and window.first > window.last:
        raise UsageError(f"--from {first} is after --to {last}")
    return window


def sandbox_choice(value: str) -> Literal["auto"] | Level:
    """The isolation level --sandbox-level names."""
    from apr.sandbox import LEVELS

    return one_of("sandbox-level", value, {"auto": "auto", **{level: level for level in LEVELS}})


def fim_token_names(text: str) -> tuple[str, ...]:
    """--fim-tokens A,B,C; none for an empty text."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def read_prompt(prompt: str) -> str:
    """The prompt, or standard input for "-"."""
    return sys.stdin.read() if prompt == "-" else prompt


def read_gap(
    prefix: Path | None, suffix: Path | None, whole: Path | None, marker: str
) -> tuple[str, str] | None:
    """The two sides of a gap from --prefix and --suffix or from --fim; None without these.

    Line ends stay as they are. Raises UsageError.
    """
    from apr.text import around

    if whole is not None:
        if prefix is not None or suffix is not None:
            raise UsageError("--fim and --prefix, --suffix exclude each other", "one file, or two")
        return around(_read_text(whole), marker)
    if prefix is None and suffix is None:
        return None
    return (
        "" if prefix is None else _read_text(prefix),
        "" if suffix is None else _read_text(suffix),
    )


def _read_text(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def text_request(
    *,
    prompt: str,
    chat: bool,
    system: str | None,
    max_tokens: int,
    sampling: tuple[float, int, float, float, float],
    n: int = 1,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    logprobs: bool = False,
    suffix: str | None = None,
    order: FimOrder = "psm",
) -> TextRequest:
    """A request from flags. sampling: temperature, top_k, top_p, min_p, repetition_penalty.

    With an empty prompt, the settings alone (messages hold the system message, if any).
    """
    from apr.engine.session import Sampling, TextRequest

    messages = [{"role": "system", "content": system}] if system else []
    if prompt:
        messages.append({"role": "user", "content": prompt})
    return TextRequest(
        prompt=None if chat else prompt,
        suffix=suffix,
        order=order,
        messages=messages if chat else None,
        n=n,
        max_tokens=max_tokens,
        sampling=Sampling(*sampling),
        stop=stop,
        seed=seed,
        logprobs=logprobs,
    )


def show_session(session: Session, verbose: bool) -> None:
    """What a user should know about how the model runs, on stderr. Fallbacks always show."""
    facts = session.describe()
    if facts["kernels_note"]:
        print(f"apr: compiled kernels not used: {facts['kernels_note']}", file=sys.stderr)
    if verbose:
        how = f"{facts['dtype']} on {facts['device']}, {facts['kernels']} kernels"
        print(f"apr: {how}; {facts['cache']}", file=sys.stderr)
    for note in session.opened.notes:
        print(f"apr: {note}", file=sys.stderr)


def print_result(result: Result, per_task: bool) -> None:
    """The tables of a result on standard output."""
    from rich.console import Console

    from apr.cli.eval_output import summary_table, task_table

    console = Console()
    if per_task:
        console.print(task_table(result))
    console.print(summary_table(result))


def print_samples(folder: Path, count: int) -> None:
    """The first programs of a run."""
    if not count:
        return
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    for row in map(json.loads, lines):
        print(f"--- {row['task_id']}\n{row['completion']}")


def print_suite(found: SuiteResult, per_task: bool, samples: int) -> None:
    """The table of several benchmarks, and what was left out."""
    from rich.console import Console

    from apr.cli.eval_output import suite_table, task_table

    console = Console()
    for result, folder in found.runs:
        print_samples(folder, samples)
        if per_task:
            console.print(task_table(result))
    console.print(suite_table(found))
    for name, reason in found.left_out.items():
        print(f"not run: {name}: {reason}")


def print_sweep(found: SweepResult) -> None:
    """The table of a sweep, and where all of it is."""
    from rich.console import Console

    from apr.eval.history.sweep import sweep_table

    Console().print(sweep_table(found))
    print(f"all of it is in {found.path}")


def show_merge_plan(summary: Mapping[str, Any], to_stderr: bool = False) -> None:
    """What a merge does, before it starts."""
    out = sys.stderr if to_stderr else sys.stdout
    models = ", ".join(summary["models"])
    print(f"{summary['method']} of {models}", file=out)
    print(
        f"{summary['tensors']} tensors, {summary['parameters'] / 1e6:,.1f} million parameters in"
        f" {', '.join(summary['dtypes'])}: reads {summary['read_bytes'] / 1e6:,.0f} MB, writes"
        f" {summary['output_bytes'] / 1e6:,.0f} MB, peak memory about"
        f" {summary['peak_memory_bytes'] / 1e6:,.0f} MB with {summary['threads']} threads",
        file=out,
    )
    for note in summary["notes"]:
        print(f"note: {note}", file=out)


def show_merge(result: Mapping[str, Any]) -> None:
    """What a merge wrote, and how it did in its check."""
    print(result["folder"])
    check = result.get("check")
    if check:
        for row in check["perplexity"]:
            print(f"perplexity on Python: {_number(row['perplexity'])}  {row['model']}")
        print(f"HumanEval, first {check['tasks']} tasks: {check['passed']} passed")
        if check["verdict"] == "broken":
            print("this merge is broken: its perplexity is above ten times the worst input's")


def show_perplexity(result: Mapping[str, Any]) -> None:
    """What was measured on a text, and how."""
    tokens, text = result["tokens"], result["text"]
    print(f"perplexity     {_number(result['perplexity'])}  {result['model']}")
    print(f"bits per byte  {_number(result['bits_per_byte'], 4)}")
    print(f"predicted      {tokens} tokens, {result['bytes']} bytes of {text}")
    print(
        f"windows        {result['windows']} of {result['window']} tokens, stride"
        f" {result['stride']}; {result['dtype']} on {result['device']}"
    )
    if result["passed"] is False:
        print(f"above --threshold {result['threshold']:g}")


def _number(value: float | None, digits: int = 3) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def only_flags(context: typer.Context, allowed: Collection[str], mode: str) -> None:
    """Raises UsageError where a flag was given that means nothing in this mode of a verb."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in allowed:
            raise UsageError(f"{parameter.opts[0]} has no meaning {mode}")


def show_extraction(result: Mapping[str, Any]) -> None:
    """What an extracted adapter holds, and what it does not."""
    print(result["folder"])
    errors = sorted(result["layers"], key=lambda layer: -layer["error"])
    print(
        f"rank {result['rank']}: {100 * result['energy']:.1f} % of the change's energy in"
        f" {len(errors)} layers, {result['nbytes'] / 1e6:,.1f} MB"
    )
    for layer in errors[:3]:
        print(f"relative error {layer['error']:.3f}  {layer['name']}")
    if result["energy"] < 0.5:
        print("note: less than half of the change is kept; a higher --rank keeps more")
    for name, change in result["left_out"][:5]:
        print(f"note: not in the adapter: {name}, changed by {100 * change:.2g} %")
    if len(result["left_out"]) > 5:
        print(f"note: and {len(result['left_out']) - 5} more tensors that no LoRA holds")


def merge_report_table(found: MergeDiagnosis) -> Table:
    """One row per part of the model; with several pairs of models, their range."""

    from rich.table import Table

    models = ", ".join(found.models)
    table = Table(title=f"{models} against {found.base}", title_justify="left")
    for column in ("", "params", "change", "zero", "cosine", "conflicts"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for group in found.groups:
        table.add_row(
            group.name,
            f"{group.parameters / 1e6:,.1f}M",
            _span(group.change, percent=True),
            _span(group.zeros, percent=True),
            _span(group.cosines),
            _span(group.conflicts, percent=True),
        )
    return table


def _span(values: tuple[float, ...], percent: bool = False) -> str:
    if not values:
        return ""
    ends = [f"{100 * v:.0f}" if percent else f"{v + 0.0:.2f}" for v in (min(values), max(values))]
    return (ends[0] if ends[0] == ends[1] else "–".join(ends)) + (" %" if percent else "")


def print_table(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def page(text: str) -> None:
    """Show a long text, page by page at a terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if console.is_terminal and text.count("\n") > console.height:
        with console.pager():
            console.print(text)
    else:
        print(text)


def print_prompts(prompts: Sequence[Prompt], as_json: bool) -> None:
    """Prompts as they are sent, one after the other: raw text, or messages in order."""
    if as_json:
        print(json.dumps({"prompts": [asdict(prompt) for prompt in prompts]}))
        return
    for number, prompt in enumerate(prompts):
        if number:
            print("\n=== then")
        if prompt.messages is None:
            print(prompt.text)
        for message in prompt.messages or ():
            print(f"--- {message['role']}\n{message['content']}")
        if prompt.prefill:
            print(f"--- assistant begins with\n{prompt.prefill}")
