"""`apr chat`: a conversation in the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import typer

from apr.cli.options import ADAPTER_HELP, MODEL_HELP, show_session, text_request
from apr.cli.run import (
    ASK,
    DEVICE_HELP,
    DTYPE_HELP,
    MIN_P_HELP,
    MODEL,
    OFFLINE_HELP,
    OUTPUT,
    PENALTY_HELP,
    SAMPLING,
    TEMPERATURE_HELP,
    TOP_K_HELP,
    TOP_P_HELP,
)
from apr.common.errors import UsageError

HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit leaves"


def register(app: typer.Typer) -> None:
    app.command("chat", help="Talk to a chat model in the terminal.")(chat)


def chat(
    model: str = typer.Argument(help=MODEL_HELP),
    adapter: str = typer.Option(None, help=ADAPTER_HELP, rich_help_panel=MODEL),
    dtype: str = typer.Option("auto", help=DTYPE_HELP, rich_help_panel=MODEL),
    device: str = typer.Option("auto", help=DEVICE_HELP, rich_help_panel=MODEL),
    offline: bool = typer.Option(False, "--offline", help=OFFLINE_HELP, rich_help_panel=MODEL),
    system: str = typer.Option(
        None, help="What the model is told before the first question.", rich_help_panel=ASK
    ),
    max_tokens: int = typer.Option(
        1024, help="Most new tokens of an answer.", rich_help_panel=SAMPLING
    ),
    temperature: float = typer.Option(0.7, help=TEMPERATURE_HELP, rich_help_panel=SAMPLING),
    top_p: float = typer.Option(0.95, help=TOP_P_HELP, rich_help_panel=SAMPLING),
    top_k: int = typer.Option(0, help=TOP_K_HELP, rich_help_panel=SAMPLING),
    min_p: float = typer.Option(0.0, help=MIN_P_HELP, rich_help_panel=SAMPLING),
    repetition_penalty: float = typer.Option(1.0, help=PENALTY_HELP, rich_help_panel=SAMPLING),
    seed: int = typer.Option(0, help="Fixes the random numbers.", rich_help_panel=SAMPLING),
    as_json: bool = typer.Option(
        False,
        "--json",
        help="Print no answers, but the whole conversation at the end.",
        rich_help_panel=OUTPUT,
    ),
) -> None:
    import json

    from apr.engine.session import Conversation, Session
    from apr.model.opened import open_model

    settings = text_request(
        prompt="",
        chat=True,
        system=None,
        max_tokens=max_tokens,
        sampling=(temperature, top_k, top_p, min_p, repetition_penalty),
        seed=seed,
    )
    opened = open_model(model, adapter, offline=offline)
    session = Session.load(opened, dtype=dtype, device=device, max_concurrency=1)
    if session.tokenizer.chat_template is None:
        raise UsageError(f"{model} has no chat template", "apr run continues raw text")
    show_session(session, verbose=False)
    conversation = Conversation(session, settings, system)
    print(f"apr: {HELP}", file=sys.stderr)
    while (line := _read_line()) is not None:
        if line == "/reset":
            conversation.reset()
        elif line.split()[:1] == ["/system"]:
            conversation.system = line.removeprefix("/system").strip() or None
        elif line in ("/exit", "/quit"):
            break
        elif line.startswith("/"):
            print(f"apr: {HELP}", file=sys.stderr)
        elif line:
            _answer(conversation, line, quiet=as_json)
    if as_json:
        print(json.dumps({"model": session.describe(), "messages": conversation.turns}))


def _read_line() -> str | None:
    """The next line, None at the end of input or on Ctrl-C."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(conversation, question: str, quiet: bool) -> None:  # type: ignore[no-untyped-def]
    try:
        # Ctrl-C takes effect between two tokens: a step of the network is never cut in half.
        with _interrupts() as interrupted, closing(conversation.ask(question)) as answer:
            for piece in answer:
                if not quiet:
                    print(piece, end="", flush=True)
                if interrupted:
                    print(" [stopped]", file=sys.stderr)
                    break
    except UsageError as error:
        print(f"apr: {error}", file=sys.stderr)
        return
    if not quiet:
        print()
    if conversation.forgotten:
        print(
            f"apr: the oldest {conversation.forgotten} turns no longer fit the context",
            file=sys.stderr,
        )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C; a second Ctrl-C interrupts at once."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
