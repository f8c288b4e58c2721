"""`apr run`: complete a prompt, or every prompt of a file, or fill a gap."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from apr.cli.options import (
    FIM_TOKENS_HELP,
    JSON_HELP,
    OUTPUT,
    read_gap,
    read_prompt,
    show_session,
)
from apr.common.errors import UsageError
from apr.common.settings import check, option
from apr.engine.request import MODEL, SAMPLING, ModelSettings, Sampling

if TYPE_CHECKING:
    from apr.engine.session import Session, TextRequest

ASK = "Prompt"


@dataclass(frozen=True)
class Asked:
    """What the model is asked: a prompt, a gap to fill, or every row of a file."""

    prompt: str | None = option(
        None, "The text to continue; - reads standard input.", argument=True
    )
    fim_tokens: tuple[str, ...] = option((), FIM_TOKENS_HELP, panel=MODEL)
    chat: bool = option(False, "Put the prompt into the model's chat template.", panel=ASK)
    system: str | None = option(None, "System message; implies --chat.", panel=ASK)
    prefix: Path | None = option(None, "Fill a gap: the file that comes before it.", panel=ASK)
    suffix: Path | None = option(None, "Fill a gap: the file that comes after it.", panel=ASK)
    fim: Path | None = option(
        None, "Fill the gap that --marker marks in this file; - reads standard input.", panel=ASK
    )
    marker: str = option("<FILL>", "What marks the gap.", panel=ASK)
    fim_order: Literal["psm", "spm"] = option(
        "psm",
        "What the model is shown first: psm, the text before the gap; spm, that after it.",
        panel=ASK,
    )
    batch_jsonl: Path | None = option(
        None,
        "Answer every row of this file: JSON objects with prompt or messages, and task_id.",
        panel=ASK,
    )
    max_tokens: int = option(256, "Most new tokens of an answer.", panel=SAMPLING)
    n: int = option(1, "Answers to each prompt.", panel=SAMPLING)
    stop: tuple[str, ...] = option(
        (), "End before this text; may be given several times.", repeated=True, panel=SAMPLING
    )
    seed: int = option(
        0, "Fixes the random numbers; rows of a file differ by their task_id.", panel=SAMPLING
    )
    logprobs: bool = option(
        False, "Give each token's log-probability (with --json or a file).", panel=OUTPUT
    )

    def __post_init__(self) -> None:
        gap = (self.prefix, self.suffix, self.fim) != (None, None, None)
        if [self.prompt is None, self.batch_jsonl is None, not gap].count(False) != 1:
            raise UsageError(
                "apr run needs a prompt, `batch_jsonl` FILE or `fim` FILE (`prefix`, `suffix`), one"
                " of the three"
            )
        if gap and (self.chat or self.system is not None):
            raise UsageError("`chat` and `system` do not go with filling a gap")
        check(self)


@dataclass(frozen=True)
class Told:
    """Where answers go, and what is told of them."""

    out: Path | None = option(
        None, "The file for --batch-jsonl's answers.", short="-o", panel=OUTPUT
    )
    verbose: bool = option(
        False,
        "Say in which type, where and with what memory the model runs.",
        short="-v",
        panel=OUTPUT,
    )
    as_json: bool = option(False, JSON_HELP, flag="json", panel=OUTPUT)


def register(app: typer.Typer) -> None:
    app.command("run", help="Continue a text, fill a gap, or answer every prompt of a file.")(run)


def run(settings: ModelSettings, asked: Asked, sampling: Sampling, told: Told) -> None:
    from apr.engine.request import TextRequest

    gap = read_gap(asked.prefix, asked.suffix, asked.fim, asked.marker)
    before, after = gap or (read_prompt(asked.prompt) if asked.prompt is not None else "", None)
    chat = asked.chat or asked.system is not None
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    if before:
        messages.append({"role": "user", "content": before})
    request = TextRequest(
        prompt=None if chat else before,
        suffix=after,
        order=asked.fim_order,
        messages=messages if chat else None,
        n=asked.n,
        max_tokens=asked.max_tokens,
        sampling=sampling,
        stop=asked.stop,
        seed=asked.seed,
        logprobs=asked.logprobs,
    )

    def load() -> Session:
        session = open_session(settings, infill=gap is not None, fim_tokens=asked.fim_tokens)
        show_session(session, told.verbose)
        return session

    if asked.batch_jsonl is not None:
        _run_file(load, asked.batch_jsonl, told.out, request, told.as_json)
    elif told.as_json or asked.n > 1:
        _run_whole(load(), request, told.as_json)
    else:
        _run_streaming(load(), request)


def open_session(settings: ModelSettings, **how: Any) -> Session:
    """The model on its runner. how: of `Session.load`."""
    from apr.engine.session import Session
    from apr.model.opened import open_model

    opened = open_model(settings.model, settings.adapter, offline=settings.offline)
    return Session.load(
        opened, dtype=settings.dtype, device=settings.device, context=settings.max_context, **how
    )


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
        raise UsageError("`batch_jsonl` needs -o FILE for the answers")
    if out.resolve() == path.resolve():
        raise UsageError(f"-o {out} is the file of `batch_jsonl`", "name another for the answers")
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
