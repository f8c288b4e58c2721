"""A conversation with a chat model that never outgrows its context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from apr.common.errors import UsageError
from apr.engine.session import Message, Session, TextCompletion, TextRequest


@dataclass
class Conversation:
    """Turns so far. settings: everything of a request but its messages."""

    session: Session
    settings: TextRequest
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    forgotten: int = 0  # turns dropped by the last question to stay within the context

    def ask(self, question: str) -> Iterator[str]:
        """The answer piece by piece; kept as a turn also when the caller stops listening.

        Raises UsageError, with the conversation as it was, when the question alone is too long.
        """
        kept = list(self.turns)
        self.turns.append({"role": "user", "content": question})
        try:
            request = self._fitting_request()
            self.session.check(request)
        except UsageError:
            self.turns = kept
            raise
        answer = ""
        try:
            for piece in self.session.stream(request):
                if not isinstance(piece, TextCompletion):
                    answer += piece
                    yield piece
        finally:
            self.turns.append({"role": "assistant", "content": answer})

    def reset(self) -> None:
        self.turns.clear()

    def _fitting_request(self) -> TextRequest:
        """The request, without the oldest turns if prompt and answer would not fit otherwise."""
        self.forgotten = 0
        context = self.session.engine.context
        while True:
            system = [{"role": "system", "content": self.system}] if self.system else []
            request = replace(self.settings, messages=[*system, *self.turns])
            length = len(self.session.encode(request))
            if length + min(self.settings.max_tokens, context // 2) <= context:
                return request
            if len(self.turns) < 3:
                return request  # if even this is too long, the check names both lengths
            del self.turns[:2]
            self.forgotten += 2
