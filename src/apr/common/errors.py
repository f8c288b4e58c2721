"""The errors a user may see. Everything else is a bug and keeps its traceback.

AprError            the request was sound, the work failed (exit code 1)
└── UsageError      the request itself is wrong: a flag, a file, a field (exit code 2)
"""

from __future__ import annotations


class AprError(Exception):
    """A failure that is told in one line, with what to do about it.

    message: names the file, field or flag and what is wrong with it.
    hint: what to do; printed after the message on the same line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(AprError):
    """The request cannot be carried out as written (exit code 2)."""

    exit_code = 2
