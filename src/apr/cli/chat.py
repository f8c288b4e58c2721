"""`apr chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import typer

from apr.cli.options import OUTPUT, show_session
from apr.cli.run import ASK, open_session
from apr.common.errors import UsageError
from apr.common.settings import check, option
from apr.engine.request import SAMPLING, TEMPERATURE_HELP, TOP_P_HELP, ModelSettings, Sampling

HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit leaves"


@dataclass(frozen=True)
class ChatSampling(Sampling):
    """Sampling as one likes it in a conversation."""

    temperature: float = option(0.7, TEMPERATURE_HELP, least=0, panel=SAMPLING)
    top_p: float = option(0.95, TOP_P_HELP, above=0, most=1, panel=SAMPLING)


@dataclass(frozen=True)
class Talk:
    """A conversation."""

    system: str | None = option(
        None, "What the model is told before the first question.", panel=ASK
    )
    max_tokens: int = option(1024, "Most new tokens of an answer.", least=1, panel=SAMPLING)
    seed: int = option(0, "Fixes the random numbers.", panel=SAMPLING)
    as_json: bool = option(
        False,
        "Print no answers, but the whole conversation at the end.",
        flag="json",
        panel=OUTPUT,
    )

    def __post_init__(self) -> None:
        check(self)


def register(app: typer.Typer) -> None:
    app.command("chat", help="Talk to a chat model in the terminal.")(chat)


def chat(settings: ModelSettings, sampling: ChatSampling, talk: Talk) -> None:
    from apr.engine.request import TextRequest
    from apr.engine.session import Conversation

    asked = TextRequest(
        prompt=None, messages=[], max_tokens=talk.max_tokens, sampling=sampling, seed=talk.seed
    )
    session = open_session(settings, max_concurrency=1)
    if session.tokenizer.chat_template is None:
        raise UsageError(f"{settings.model} has no chat template", "apr run continues raw text")
    show_session(session, verbose=False)
    conversation = Conversation(session, asked, talk.system)
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
            _answer(conversation, line, quiet=talk.as_json)
    if talk.as_json:
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
