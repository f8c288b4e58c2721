"""N:M patterns: at most N of every M neighbouring weights of a row are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr.common.errors import UsageError


@dataclass(frozen=True)
class Pattern:
    """kept of every `group` consecutive inputs of an output (Mishra et al. 2021: 2:4)."""

    kept: int
    group: int

    @property
    def zeros(self) -> int:
        return self.group - self.kept

    @property
    def sparsity(self) -> float:
        return self.zeros / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


def parse_pattern(text: str) -> Pattern:
    """ "2:4" to a Pattern. Raises UsageError for anything that is no N:M with 0 < N < M."""
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
    kept, group = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < kept < group:
        raise UsageError(f"--pattern {text} is no N:M", "e.g. 2:4, which keeps 2 of every 4")
    return Pattern(kept, group)
