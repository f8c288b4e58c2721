"""Checked values out of a parsed `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from apr.common.errors import UsageError


def refuse(message: str, hint: str = "") -> NoReturn:
    """Raise UsageError about this configuration."""
    raise UsageError(f"model configuration: {message}", hint)


def short(value: Any) -> str:
    """A value as a one-line message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The positive integer under a key; a null or absent one is the default, or refused."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        said = "is missing" if value is None else f"is {short(value)}, not a positive integer"
        refuse(f"{key} {said}")
    return value


def number(params: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The positive number under a key; a null or absent one is the default, or refused."""
    value = params.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        said = "is missing" if value is None else f"is {short(value)}, not a positive number"
        refuse(f"{key} {said}")
    return float(value)


def mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; empty where it is null or absent."""
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        refuse(f"{key} is {short(value)}, not an object")
    return dict(value or {})
