"""`apr run`: complete a prompt, or every prompt of a file, or fill a gap."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from apr.cli.options import (
    ADAPTER_HELP,
    FIM_TOKENS_HELP,
    MODEL_HELP,
    fim_token_names,
    one_of,
    read_gap,
    read_prompt,
    show_session,
    text_request,
)
from apr.common.errors import UsageError

# Headings of flags in the help, and texts that `apr chat` and `apr bench` use too.
MODEL, ASK, SAMPLING, OUTPUT = "Model", "Prompt", "Sampling", "Output"
DTYPE_HELP = "Number type of the computation: bfloat16, float16 or float32."
DEVICE_HELP = "cpu, cuda or mps; auto takes a GPU where there is one."
OFFLINE_HELP = "Download nothing: use the files that are on this disk."
TEMPERATURE_HELP = "0 always takes the likeliest token; higher values vary more."
TOP_P_HELP = "Draw only from the likeliest tokens that have this probability together; 1 is off."
TOP_K_HELP = "Draw only from so many likeliest tokens; 0 is off."
MIN_P_HELP = "Leave out tokens less likely than this part of the likeliest; 0 is off."
PENALTY_HELP = "Above 1: makes tokens less likely that are already in the text; 1 is off."

if TYPE_CHECKING:
    from apr.engine.session import Session, TextRequest


def register(app: typer.Typer) -> None:
    app.command("run", help="Continue a text, fill a gap, or answer every prompt of a file.")(run)


def run(
    model: str = typer.Argument(help=MODEL_HELP),
    prompt: str = typer.Argument(None, help="The text to continue; - reads standard input."),
    adapter: str = typer.Option(None, help=ADAPTER_HELP, rich_help_panel=MODEL),
    dtype: str = typer.Option("auto", help=DTYPE_HELP, rich_help_panel=MODEL),
    device: str = typer.Option("auto", help=DEVICE_HELP, rich_help_panel=MODEL),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP, rich_help_panel=MODEL),
    fim_tokens: str = typer.Option("", help=FIM_TOKENS_HELP, rich_help_panel=MODEL),
    chat: bool = typer.Option(
        False, "--chat", help="Put the prompt into the model's chat template.", rich_help_panel=ASK
    ),
    system: str = typer.Option(None, help="System message; implies --chat.", rich_help_panel=ASK),
    prefix: Path = typer.Option(
        None, help="Fill a gap: the file that comes before it.", rich_help_panel=ASK
    ),
    suffix: Path = typer.Option(
        None, help="Fill a gap: the file that comes after it.", rich_help_panel=ASK
    ),
    fim: Path = typer.Option(
        None,
        help="Fill the gap that --marker marks in this file; - reads standard input.",
        rich_help_panel=ASK,
    ),
    marker: str = typer.Option("<FILL>", help="What marks the gap.", rich_help_panel=ASK),
    fim_order: str = typer.Option(
        "psm",
        help="What the model is shown first: psm, the text before the gap; spm, that after it.",
        rich_help_panel=ASK,
    ),
    batch_jsonl: Path = typer.Option(
        None,
        help="Answer every row of this file: JSON objects with prompt or messages, and task_id.",
        rich_help_panel=ASK,
    ),
    max_tokens: int = typer.Option(
        256, help="Most new tokens of an answer.", rich_help_panel=SAMPLING
    ),
    n: int = typer.Option(1, help="Answers to each prompt.", rich_help_panel=SAMPLING),
    temperature: float = typer.Option(0.0, help=TEMPERATURE_HELP, rich_help_panel=SAMPLING),
    top_p: float = typer.Option(1.0, help=TOP_P_HELP, rich_help_panel=SAMPLING),
    top_k: int = typer.Option(0, help=TOP_K_HELP, rich_help_panel=SAMPLING),
    min_p: float = typer.Option(0.0, help=MIN_P_HELP, rich_help_panel=SAMPLING),
    repetition_penalty: float = typer.Option(1.0, help=PENALTY_HELP, rich_help_panel=SAMPLING),
    stop: list[str] = typer.Option(
        [], help="End before this text; may be given several times.", rich_help_panel=SAMPLING
    ),
    seed: int = typer.Option(
        0,
        help="Fixes the random numbers; rows of a file differ by their task_id.",
        rich_help_panel=SAMPLING,
    ),
    out: Path = typer.Option(
        None, "--out", "-o", help="The file for --batch-jsonl's answers.", rich_help_panel=OUTPUT
    ),
    logprobs: bool = typer.Option(
        False,
        "--logprobs",
        help="Give each token's log-probability (with --json or a file).",
        rich_help_panel=OUTPUT,
    ),
    verbose: bool = typer.Option(
        False,
        "--verbose",
        "-v",
        help="Say in which type, where and with what memory the model runs.",
        rich_help_panel=OUTPUT,
    ),
    as_json: bool = typer.Option(
        False, "--json", help="Print one JSON object.", rich_help_panel=OUTPUT
    ),
) -> None:
    gap = read_gap(prefix, suffix, fim, marker)
    if [prompt is None, batch_jsonl is None, gap is None].count(False) != 1:
        raise UsageError(
            "apr run needs a prompt, --batch-jsonl FILE or --fim FILE (--prefix, --suffix), one"
            " of the three"
        )
    if gap is not None and (chat or system is not None):
        raise UsageError("--chat and --system do not go with filling a gap")
    before, after = gap or (read_prompt(prompt) if prompt is not None else "", None)
    request = text_request(
        prompt=before,
        suffix=after,
        order=one_of("fim-order", fim_order, {"psm": "psm", "spm": "spm"}),
        chat=chat or system is not None,
        system=system,
        n=n,
        max_tokens=max_tokens,
        sampling=(temperature, top_k, top_p, min_p, repetition_penalty),
        stop=tuple(stop),
        seed=seed,
        logprobs=logprobs,
    )

    def load() -> Session:
        from apr.engine.session import Session
        from apr.model.opened import open_model

        session = Session.load(
            open_model(model, adapter, offline=offline), dtype=dtype, device=device,
            infill=gap is not None, fim_tokens=fim_token_names(fim_tokens),
        )  # fmt: skip
        show_session(session, verbose)
        return session

    if batch_jsonl is not None:
        _run_file(load, batch_jsonl, out, request, as_json)
    elif as_json or n > 1:
        _run_whole(load(), request, as_json)
    else:
        _run_streaming(load(), request)


def _run_streaming(session: Session, request: TextRequest) -> None:
    for piece in session.stream(request):
        if isinstance(piece, str):
            print(piece, end="", flush=True)
        else:
            print()
            print(
                f"apr: {piece.tokens_generated} tokens, {piece.tok_per_sec:.1f} tok/s,"
                f" ended by {piece.finish_reason}",
                file=sys.stderr,
            )
    if (
        request.prompt is not None
        and request.suffix is None
        and session.tokenizer.chat_template is not None
    ):
        print("apr: raw completion; --chat asks in the model's chat template", file=sys.stderr)


def _run_whole(session: Session, request: TextRequest, as_json: bool) -> None:
    completions = sorted(session.generate([request]), key=lambda c: c.sample_index)
    if as_json:
        samples = [{**asdict(c), "tok_per_sec": c.tok_per_sec} for c in completions]
        print(json.dumps({"model": session.describe(), "samples": samples}))
        return
    for completion in completions:
        print(f"--- sample {completion.sample_index}\n{completion.text}")


def _run_file(load, path: Path, out: Path | None, request: TextRequest, as_json: bool) -> None:  # type: ignore[no-untyped-def]
    from apr.engine.batch_file import BatchReport, answer_file, read_requests

    if out is None:
        raise UsageError("--batch-jsonl needs -o FILE for the answers")
    if out.resolve() == path.resolve():
        raise UsageError(f"-o {out} is the file of --batch-jsonl", "name another for the answers")
    report = BatchReport(0, 0, 0)
    for report in answer_file(load, read_requests(path, request), out):
        if report.already_there and not report.answered:
            print(
                f"apr: {report.already_there} of {report.rows} rows are in {out} already",
                file=sys.stderr,
            )
    if as_json:
        print(json.dumps({**asdict(report), "out": str(out)}))
    else:
        print(f"answered {report.answered} of {report.rows} rows into {out}", file=sys.stderr)
