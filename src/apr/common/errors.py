"""The errors a user may see. Everything else is a bug and keeps its traceback.

AprError            the request was sound, the work failed (exit code 1)
└── UsageError      the request itself is wrong: a flag, a file, a field (exit code 2)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Self


class AprError(Exception):
    """A failure that is told in one line, with what to do about it.

    message: names the file or the field and what is wrong with it; a field in backticks, so that
        `named` finds it.
    hint: what to do; printed after the message on the same line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def named(self, name: Callable[[str], str]) -> Self:
        """The same error with what `name` gives in place of each field (`like_this`)."""
        self.message, self.hint = (
            re.sub(r"`(\w+)`", lambda found: name(found[1]), text)
            for text in (self.message, self.hint)
        )
        return self


class UsageError(AprError):
    """The request cannot be carried out as written (exit code 2)."""

    exit_code = 2
