"""Options stated once: flags, keys of YAML and values by field name from one dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
import typer
from typer.testing import CliRunner

from apr.cli.options import with_flags
from apr.common.errors import UsageError
from apr.common.settings import changed, check, made, option, read_keys, settings_in


@dataclass(frozen=True)
class Inner:
    top_k: int = option(0, "Likeliest tokens.")


@dataclass(frozen=True)
class Outer:
    name: str = option("x", "A name.", argument=True)
    share: float = option(0.5, "A share.", flag="eval", least=0)
    mode: Literal["base", "chat"] | None = option(None, "A mode.", none="auto")
    ks: tuple[int, ...] | None = option(None, "Numbers.", flag="k")
    inner: Inner = field(default_factory=Inner)
    hidden: int = 3  # no option

    def __post_init__(self) -> None:
        check(self)


KNOWN = {one.key: one for one in settings_in(Outer)}


def run(*arguments: str) -> tuple[int, str | Outer]:
    app, seen = typer.Typer(), []

    def command(settings: Outer) -> None:
        """Nothing."""
        seen.append(settings)

    app.command()(with_flags(command))
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, seen[0] if seen else str(done.exception)


def test_flags_fill_nested_settings() -> None:
    assert run() == (0, Outer())
    arguments = ("m", "--eval", "0.25", "--mode", "chat", "--k", "1,10", "--top-k", "5")
    assert run(*arguments) == (0, Outer("m", 0.25, "chat", (1, 10), Inner(5)))
    assert run("--mode", "auto") == (0, Outer())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--eval", "-1"), "--eval is -1 (it must be 0 or more)"),
        (("--mode", "talk"), "--mode talk is unknown (one of auto, base, chat)"),
        (("--k", "one"), "--k one is not a list of numbers (as 1,10)"),
    ],
)
def test_errors_call_a_field_by_its_flag(arguments: tuple[str, ...], message: str) -> None:
    assert run(*arguments)[1] == message


def test_values_by_field_name() -> None:
    assert made(Outer, {"share": 1.0, "top_k": 2}) == Outer(share=1.0, inner=Inner(2))
    assert changed(Outer("m"), {"top_k": 2}) == Outer("m", inner=Inner(2))


def test_keys_of_a_file() -> None:
    found = read_keys(KNOWN, {"top_k": 4, "k": [1], "mode": None}, "settings.0")
    assert found == {"k": (1,), "top_k": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"topk": 1}, r"key settings.0.topk is unknown .*; top_k was meant\?"),
        ({"top_k": "many"}, "settings.0.top_k: Input should be a valid integer"),
        ({"hidden": 1}, "key settings.0.hidden is unknown"),
    ],
)
def test_keys_that_a_file_cannot_have(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_keys(KNOWN, given, "settings.0")
