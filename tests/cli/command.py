"""Running `apr` in this process as its console script runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from apr.cli.main import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Command:
    """`apr(*arguments)` -> Result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *arguments: object) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["apr", *map(str, arguments)])
        self._capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = self._capfd.readouterr()
        return Result(code, captured.out, captured.err)
